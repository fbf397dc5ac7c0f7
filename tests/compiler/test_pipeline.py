import json
import re
from pathlib import Path

import pytest

import mxhw
from mxhw.compiler.context import Context, Settings
from mxhw.compiler.pipeline import STEPS, Step, find_step, run_steps
from mxhw.compiler.progress import SilentProgress
from mxhw.compiler.workspace import BuildFolder
from mxhw.errors import BuildError, ToolError, UserError


class Recorder(SilentProgress):
    def __init__(self):
        self.events = []

    def begin(self, step):
        self.events.append(f"begin {step}")

    def finish(self, step, seconds, *, reused):
        self.events.append(f"{'reuse' if reused else 'end'} {step}")


class Stand:
    """Three steps that count their runs; each can be told what to raise."""

    def __init__(self, path: Path):
        self.path = path
        self.runs: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.content = "first"
        self.steps = [
            self.step("plan", ("model",)),
            self.step("golden", ("model", "prompt"), ("plan.txt",)),
            self.step("bitstream", ("model",), ("golden.txt",), "board"),
        ]

    def step(self, name, settings, reads=(), only_if=None):
        def run(context, out):
            self.runs.append(name)
            (out / f"{name}.txt").write_text(self.content)
            (out / f"{name}.log").write_text("log")
            if name in self.errors:
                raise self.errors[name]
            return {"name": name, "seen": sorted(context.results)}

        return Step(name, f"what {name} does", run, settings, reads, only_if=only_if)

    def build(self, stop_after=None, **settings):
        self.runs.clear()
        settings = Settings(**{"model": "m", "target": "t", "board": True, **settings})
        self.progress = Recorder()
        with BuildFolder(self.path) as folder:
            context = Context(settings, folder.path, self.progress)
            return run_steps(
                context, folder, self.progress, stop_after=stop_after, pipeline=self.steps
            )


@pytest.fixture
def stand(tmp_path, monkeypatch):
    monkeypatch.setattr("mxhw.compiler.pipeline.source_digest", lambda parts: "sources")
    return Stand(tmp_path / "out")


def test_steps_of_the_build():
    assert [step.name for step in STEPS] == [
        "plan",
        "golden",
        "rtl",
        "simulate",
        "errors",
        "synthesise",
        "place-and-route",
        "bitstream",
    ]
    names = {field for step in STEPS for field in step.settings}
    assert names <= set(Settings.__dataclass_fields__)
    page = Path(__file__).parents[2] / "docs" / "reference" / "build.md"
    documented = page.read_text("utf-8")
    package = Path(mxhw.__file__).parent
    for step in STEPS:
        assert step.summary
        assert f"| `{step.name}` |" in documented
        assert [name for name in step.reads if f"`{name}`" not in documented] == []
        assert [name for name in step.sources if not (package / name).exists()] == []


def test_steps_run_in_order_and_leave_files(stand):
    report = stand.build()
    assert stand.runs == ["plan", "golden", "bitstream"]
    assert stand.progress.events == [
        f"{what} {step}" for step in stand.runs for what in ("begin", "end")
    ]
    facts = json.loads((stand.path / "bitstream.json").read_text())
    assert facts == {"name": "bitstream", "seen": ["golden", "plan"]}
    assert report == json.loads((stand.path / "report.json").read_text())
    assert list(report["wall_seconds"]) == stand.runs
    assert report["stopped"] is None


def test_nothing_runs_again_without_a_change(stand):
    first = stand.build()
    second = stand.build()
    assert stand.runs == []
    assert stand.progress.events == ["reuse plan", "reuse golden", "reuse bitstream"]
    assert first == second


def test_a_setting_reruns_the_steps_that_depend_on_it(stand):
    stand.build()
    stand.build(tokens=3)
    assert stand.runs == []
    # The bitstream reads golden's files, which are the same as before.
    stand.build(prompt="Other")
    assert stand.runs == ["golden"]
    stand.build(model="n", prompt="Other")
    assert stand.runs == ["plan", "golden", "bitstream"]


def test_changed_files_of_a_step_rerun_what_reads_them(stand):
    stand.build()
    (stand.path / "golden.txt").write_text("edited")
    stand.content = "second"
    stand.build()
    assert stand.runs == ["golden", "bitstream"]


def test_a_changed_package_reruns_everything(stand, monkeypatch):
    stand.build()
    monkeypatch.setattr("mxhw.compiler.pipeline.source_digest", lambda parts: "changed")
    stand.build()
    assert stand.runs == ["plan", "golden", "bitstream"]


def test_without_a_board_its_steps_are_left_out(stand):
    stand.build(board=False)
    assert stand.runs == ["plan", "golden"]
    stand.build()
    assert stand.runs == ["bitstream"]


def test_stop_after(stand):
    report = stand.build(stop_after="plan")
    assert stand.runs == ["plan"]
    assert list(report["wall_seconds"]) == ["plan"]
    stand.build()
    assert stand.runs == ["golden", "bitstream"]


def test_stopping_after_a_board_step_needs_a_board(stand):
    with pytest.raises(UserError, match=r"^Step 'bitstream' needs a board; add --board$"):
        stand.build(stop_after="bitstream", board=False)


def test_steps_that_only_a_vendor_has_tools_for(stand):
    stand.steps[2] = stand.step("bitstream", ("model",), ("golden.txt",), "bitstream")
    stand.build()
    assert stand.runs == ["plan", "golden"]
    with pytest.raises(
        UserError,
        match=r"^Step 'bitstream' needs the vendor's tools for 't'; the build ends with a project "
        r"for them \(--stop-after golden\)$",
    ):
        stand.build(stop_after="bitstream")


def test_unknown_steps():
    assert find_step("plan") == "plan"
    with pytest.raises(UserError, match=r"^There is no step 'simulat': did you mean 'simulate'\?$"):
        find_step("simulat")
    expected = "There is no step 'xyz': choose one of " + ", ".join(step.name for step in STEPS)
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        find_step("xyz")


def test_an_interrupt_keeps_what_was_done_and_resumes(stand):
    stand.errors["golden"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stand.build()
    assert not (stand.path / "golden.txt").exists()
    assert (stand.path / "plan.txt").exists()
    report = json.loads((stand.path / "report.json").read_text())
    assert report["stopped"] == "step golden: KeyboardInterrupt"
    stand.errors.clear()
    assert stand.build()["stopped"] is None
    assert stand.runs == ["golden", "bitstream"]


@pytest.mark.parametrize("kind", [BuildError, ToolError, UserError])
def test_an_error_keeps_logs_and_names_the_step_in_the_report(stand, kind):
    stand.errors["bitstream"] = kind("Tool x is missing")
    with pytest.raises(kind, match="^Tool x is missing$"):
        stand.build()
    assert (stand.path / "failed-bitstream.log").read_text() == "log"
    assert not (stand.path / "bitstream.txt").exists()
    report = json.loads((stand.path / "report.json").read_text())
    assert report["stopped"] == "step bitstream: Tool x is missing"
    stand.errors.clear()
    stand.build()
    assert stand.runs == ["bitstream"]


def test_a_full_disk_is_a_build_error(stand):
    stand.errors["golden"] = OSError(28, "No space left on device", "golden.txt")
    with pytest.raises(
        BuildError, match=r"^Step 'golden' failed: No space left on device \(golden\.txt\)$"
    ):
        stand.build()
