"""The command line: options, sentences and exit statuses, with stand-ins for the slow steps."""

import os
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from mxhw import __version__, build
from mxhw.compiler import pipeline
from mxhw.compiler.pipeline import Step
from mxhw.compiler.progress import SilentProgress
from mxhw.errors import BuildError, MxhwError, ToolError, UserError

PIPELINE = list(pipeline.STEPS)


@pytest.fixture
def stand(monkeypatch, tmp_path):
    """Steps that only write a file; ``stand.error`` is raised by the second."""
    monkeypatch.chdir(tmp_path)
    stand = types.SimpleNamespace(error=None, seen=[])

    def run(context, out, name):
        stand.seen.append((name, context.settings))
        (out / f"{name}.txt").write_text(name)
        if name == "golden" and stand.error is not None:
            raise stand.error
        return {}

    def step(name, only_if):
        def call(context, out):
            return run(context, out, name)

        return Step(name, name, call, ("model",), only_if=only_if)

    steps = [step(s.name, s.only_if) for s in pipeline.STEPS]
    monkeypatch.setattr(pipeline, "STEPS", steps)
    return stand


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        status = build.main(list(arguments))
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def error_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("mxhw: error: ")]
    assert "Traceback" not in text
    return line.removeprefix("mxhw: error: ")


def test_bare_board_means_the_default_one(cli, stand):
    status, out, _ = cli("llama", "--board")
    assert status == 0
    assert [name for name, _ in stand.seen] == [step.name for step in pipeline.STEPS]
    assert stand.seen[0][1].target == "ulx3s-85f"
    assert stand.seen[0][1].board is True
    assert Path("build/llama-ulx3s-85f/report.json").is_file()
    assert "build/llama-ulx3s-85f: bitstream.json, bitstream.txt, " in out.replace("\n", " ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("llama", "--board", "--quiet"),
        ("--quiet", "llama", "--board"),
        ("--board", "llama", "--quiet"),
        ("llama", "--quiet", "--board", "ULX3S-85F"),
        ("--board=ulx3s-85f", "llama", "--quiet"),
    ],
)
def test_places_of_the_board_option(cli, stand, arguments):
    status, _, err = cli(*arguments)
    assert (status, err) == (0, "")
    assert stand.seen[-1][0] == "bitstream"
    assert stand.seen[-1][1].target == "ulx3s-85f"


def test_another_board(cli, stand):
    assert cli("llama", "--board", "ecpix5-85f")[0] == 0
    assert stand.seen[-1][1].target == "ecpix5-85f"
    assert Path("build/llama-ecpix5-85f").is_dir()


def test_a_board_with_a_vendors_tools_ends_with_a_project(cli, stand):
    assert cli("llama", "--board", "arty-a7-100")[0] == 0
    assert stand.seen[-1][0] == "synthesise"
    assert stand.seen[-1][1].bitstream is False


def test_without_board_the_build_ends_before_synthesis(cli, stand):
    assert cli("llama")[0] == 0
    assert [name for name, _ in stand.seen][-2:] == ["simulate", "errors"]
    assert stand.seen[-1][1].board is False
    assert cli("llama", "--board")[0] == 0
    assert [name for name, _ in stand.seen][5:] == ["synthesise", "place-and-route", "bitstream"]


def test_progress_is_on_the_error_output_in_plain_lines(cli, stand):
    _, out, err = cli("llama", "--stop-after", "golden")
    assert err.splitlines() == [
        "plan: plan",
        "plan: done in 0.0 s",
        "golden: golden",
        "golden: done in 0.0 s",
    ]
    assert "seconds" in out
    _, _, err = cli("llama", "--stop-after", "golden")
    assert err.splitlines() == ["plan: unchanged", "golden: unchanged"]


def test_other_options(cli, stand):
    status, _, err = cli(
        "llama",
        "--out",
        "x",
        "--format",
        "mxfp4",
        "--tokens",
        "5",
        "--prompt",
        "Hi",
        "--clock",
        "70",
        "--table-budget",
        "0.25",
    )
    assert status == 0
    settings = stand.seen[0][1]
    assert (settings.weight_format, settings.activation_format) == ("mxfp4_e2m1", "mxint8")
    assert (settings.tokens, settings.prompt, settings.clock_mhz) == (5, "Hi", 70.0)
    assert settings.table_budget == 0.25
    assert Path("x/report.json").is_file()
    assert err.startswith("Weights in mxfp4_e2m1, activations in mxint8.\n")


def test_other_formats_have_a_folder_of_their_own(cli, stand):
    assert cli("llama", "--format", "mxfp6_e3m2/mxint6")[0] == 0
    assert Path("build/llama-ulx3s-85f-mxfp6_e3m2-mxint6").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Model is missing; choose one of llama (--list-models)"),
        (("lama",), "There is no model 'lama': did you mean 'llama'?"),
        (("gpt4",), "There is no model 'gpt4': choose one of llama"),
        (
            ("llama", "--board", "ulx3s-86f"),
            "There is no board 'ulx3s-86f': did you mean 'ulx3s-85f', 'ulx3s-45f' or 'ulx3s-25f'?",
        ),
        (
            ("llama", "--format", "mxint7x"),
            "There is no format 'mxint7x': did you mean 'mxint8' or 'mxint6' or 'mxint5'?",
        ),
        (
            ("llama", "--format", "mxfp8"),
            "Weights in mxfp8_e4m3 do not fit the multipliers; hardware takes mxint2 to mxint8, "
            "mxfp4, mxfp6_e2m3 and mxfp6_e3m2",
        ),
        (
            ("llama", "--format", "mxint16"),
            "Weights in mxint16 do not fit the multipliers; hardware takes mxint2 to mxint8, "
            "mxfp4, mxfp6_e2m3 and mxfp6_e3m2",
        ),
        (
            ("llama", "--format", "mxint8/mxfp4"),
            "Activations must be mxint2 to mxint8, not mxfp4_e2m1; write --format mxint8/mxint8",
        ),
        (
            ("llama", "--format", "mxint4_b16/mxint8"),
            "Weights and activations must have blocks of one size, not 16 and 32",
        ),
        (
            ("llama", "--format", "a/b/c"),
            "Format must be W or W/A (weights/activations), not 'a/b/c'",
        ),
        (
            ("llama", "--stop-after", "simulation"),
            "There is no step 'simulation': did you mean 'simulate'?",
        ),
        (
            ("llama", "--stop-after", "bitstream"),
            "Step 'bitstream' needs a board; add --board",
        ),
        (
            ("llama", "--board", "--clock", "5000"),
            "Clock of 5000 MHz cannot be made on 'ulx3s-85f': No PLL setting makes "
            "5000000000 Hz from 25000000 Hz",
        ),
        (
            ("llama", "--board", "--clock", "0"),
            "Clock of 0 MHz cannot be made on 'ulx3s-85f': Output frequency must be a positive "
            "integer, not 0",
        ),
        (("llama", "--table-budget", "0"), "Table budget must be above 0, not 0"),
        (("llama", "--table-budget", "nan"), "Table budget must be above 0, not nan"),
        (("llama", "--tokens", "0"), "Number of tokens must be at least 1, not 0"),
        (
            ("llama", "--tokens", "many"),
            "Invalid value for '--tokens': 'many' is not a valid integer. "
            "(--help lists the options)",
        ),
        (("llama", "extra"), "Got unexpected extra argument (extra) (--help lists the options)"),
    ],
)
def test_requests_that_cannot_be_served(cli, stand, arguments, message):
    status, out, err = cli(*arguments)
    assert status == 1
    assert out == ""
    assert error_line(err) == message
    assert stand.seen == []


def test_unknown_options_name_the_nearest(cli):
    status, _, err = cli("llama", "--bord")
    assert status == 1
    assert error_line(err).startswith("No such option '--bord'.") or "--bord" in error_line(err)
    assert "--board" in err


def test_a_folder_that_holds_something_else(cli, stand):
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    status, _, err = cli("llama", "--out", "mine")
    assert status == 1
    assert error_line(err) == (
        "Folder mine holds something that is not a build of mxhw and was left as it is; "
        "choose another with --out"
    )
    assert os.listdir("mine") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("Weights of 'llama' are corrupt"), 1),
        (BuildError("Hardware differs from golden at token 3"), 2),
        (ToolError("Tool x is missing (pip install x)"), 3),
        (MxhwError("Something else"), 2),
    ],
)
def test_errors_of_steps(cli, stand, error, status):
    stand.error = error
    found, _, err = cli("llama", "--quiet")
    assert found == status
    assert err == f"mxhw: error: {error}\n"
    assert Path("build/llama-ulx3s-85f/plan.txt").is_file()


def test_unexpected_errors_have_no_traceback_without_debug(cli, stand):
    stand.error = ZeroDivisionError("division by zero")
    status, _, err = cli("llama", "--quiet")
    assert status == 2
    assert err == (
        "mxhw: error: internal error: ZeroDivisionError: division by zero; "
        "run with --debug for the traceback\n"
    )
    status, _, err = cli("llama", "--quiet", "--debug")
    assert status == 2
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("mxhw: error: internal error: ZeroDivisionError: division by zero\n")


def test_an_interrupt(cli, stand):
    stand.error = KeyboardInterrupt()
    status, _, err = cli("llama", "--quiet")
    assert status == 130
    assert err == (
        "mxhw: error: interrupted; plan kept in build/llama-ulx3s-85f: "
        "the same command goes on from there\n"
    )
    stand.error = None
    assert cli("llama", "--quiet")[0] == 0
    assert [name for name, _ in stand.seen].count("plan") == 1


def test_list_models(cli):
    status, out, _ = cli("--list-models")
    assert status == 0
    assert out.splitlines()[1].startswith("llama")


def test_list_boards(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = cli("--list-boards")
    assert status == 0
    boards = {}
    for line in out.splitlines():
        if line and not line.startswith(" "):
            name, _, line = line.partition(" ")
            boards[name] = []
        if line.strip():
            boards[name].append(line.strip())
    assert boards["ulx3s-85f"] == [
        "Radiona ULX3S with LFE5U-85F",
        "83,640 lookup tables, 208 block RAMs, 156 multipliers, a serial port; "
        "the build ends with a bitstream",
        "llama in mxint8: fits",
    ]
    assert "does not fit: " in boards["orangecrab-85f"][2]
    assert "no serial port" in boards["orangecrab-85f"][2]
    assert "too few" in boards["ulx3s-45f"][2]
    assert boards["arty-a7-100"][2] == "llama in mxint8: fits"
    assert boards["arty-a7-100"][1].endswith("the build ends with a vendor project only")


def test_estimate_needs_no_folder(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = cli("llama", "--estimate")
    assert (status, err) == (0, "")
    assert not list(tmp_path.iterdir())
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "llama in mxint8 for ulx3s-85f"
    assert any(line.startswith("lookup tables ") and line.endswith("- 83,640") for line in lines)
    assert any("cycles a token at context 64, multipliers busy in" in line for line in lines)


def test_a_model_that_is_too_big(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = cli("llama", "--board", "ulx3s-45f", "--stop-after", "plan", "--quiet")
    assert status == 1
    line = error_line(err)
    assert line.startswith(
        "Model 'llama' in mxint8 cannot be built for 'ulx3s-45f': the board has 108 block RAMs "
        "(DP16KD), but "
    )
    assert line.endswith(
        "too few; choose another board (--list-boards) or narrower weights (--format mxfp4)"
    )


def test_plan_of_the_bundled_model(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli("llama", "--stop-after", "plan", "--quiet")[0] == 0
    folder = tmp_path / "build" / "llama-ulx3s-85f"
    assert (folder / "graph.txt").read_text().startswith("graph():")
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        "graph.json",
        "graph.txt",
        "plan.json",
        "report.html",
        "report.json",
    }


def test_a_prompt_that_is_too_long(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = cli("llama", "--prompt", "cat " * 400, "--quiet")
    assert status == 1
    assert error_line(err).endswith("tokens is longer than the model's context (256 tokens)")


def test_help_names_every_step(cli):
    status, out, _ = cli("--help")
    assert status == 0
    words = out.replace(",", " ").replace(".", " ").split()
    assert [step.name for step in pipeline.STEPS if step.name not in words] == []


def run_module(*arguments, cwd, code=None):
    command = [sys.executable, "-m", "mxhw.build"] if code is None else [sys.executable, "-c", code]
    return subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_as_a_program(tmp_path):
    done = run_module("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"mxhw, version {__version__}\n")
    done = run_module("lama", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "mxhw: error: There is no model 'lama': did you mean 'llama'?\n"
    assert not list(tmp_path.iterdir())


def test_a_program_that_is_interrupted_ends_in_one_line(tmp_path):
    code = textwrap.dedent("""
        import signal, sys, time
        # A shell's background job is started with the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from mxhw import build
        from mxhw.compiler import pipeline
        def wait(context, out):
            print("waiting", flush=True)
            time.sleep(60)
        pipeline.STEPS = [pipeline.Step("plan", "", wait, ())]
        sys.exit(build.main(["llama", "--quiet"]))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == (
        "mxhw: error: interrupted; nothing kept in build/llama-ulx3s-85f: "
        "the same command goes on from there\n"
    )


def test_perplexity_of_a_text(cli, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a dog.\n<|endoftext|>\nTom had a red ball.\n")
    status, out, err = cli("llama", "--text", str(text))
    assert status == 0
    assert "llama in mxint8 on text.txt: " in out
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows[-3:] == ["float", "ideal", "golden"]
    assert "unknown" not in out
    assert "perplexity: score text.txt" in err
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Text {} cannot be read: No such file or directory"),
        (b"", "Text {} must hold at least one story, not 0"),
        (b"\x89PNG", "Text {} must be UTF-8, but byte 0 is not"),
    ],
)
def test_text_that_cannot_be_scored(cli, tmp_path, content, message):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    status, _, err = cli("llama", "--text", str(text))
    assert status == 1
    assert error_line(err) == message.format(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./gone.gguf",), "There is no model at gone.gguf"),
        (("llama", "--context", "64"), "Model 'llama' is bundled and takes no --context"),
        (("llama", "--tokenizer", "t.bin"), "Model 'llama' is bundled and takes no --tokenizer"),
    ],
)
def test_models_from_outside_that_are_not_there(cli, arguments, message):
    status, _, err = cli(*arguments)
    assert (status, error_line(err)) == (1, message)


@pytest.fixture
def outside(tmp_path):
    """A small model of heads of 8 in a file of llama2.c, with its tokenizer."""
    pytest.importorskip("gguf", reason="package gguf is not installed")
    import dataclasses

    from tests.models import model_files as files

    shape = {"heads": 8, "kv_heads": 4, "head_size": 8, "hidden": 44}
    model = files.random_llama(dataclasses.replace(files.BASE, **shape))
    files.write_tokenizer_bin(tmp_path / "tokenizer.bin", 272)
    return files.write_llama2c(tmp_path / "my-model.bin", model)


def test_estimate_of_a_model_from_outside(cli, outside):
    status, out, err = cli(str(outside), "--estimate", "--context", "32")
    assert (status, err) == (0, "")
    assert out.startswith("Memory: 0.07 MB of weights and 0.00 MB of keys and values for 32 ")
    assert "my-model in mxint8 for ulx3s-85f" in out
    assert "cycles a token at context" in out


def test_the_context_that_a_board_holds(cli, outside, monkeypatch):
    """What a board holds is the default, and a line says what it is less than."""
    from mxhw.compiler.context import Context

    status, out, err = cli(str(outside), "--estimate")
    assert (status, err) == (0, "")
    assert "keys and values for 64 positions" in out
    monkeypatch.setattr(Context, "fitting_context", lambda self: 32)
    status, out, err = cli(str(outside), "--estimate")
    assert status == 0
    assert err == (
        "Context is 32 positions, the most that ulx3s-85f holds of the model's 64 in mxint8; "
        "--context asks for another number.\n"
    )
    assert "keys and values for 32 positions" in out


def test_a_lower_clock_where_weights_lie_in_lookup_tables(cli, stand, outside, monkeypatch):
    """The default follows the binding; a clock that is asked for, and a bundled model's, do not."""
    from mxhw.compiler import defaults

    def from_outside(context):
        return bool(context.settings.fingerprint)

    monkeypatch.setattr(defaults, "_has_weights_in_tables", from_outside)
    sentence = (
        "Clock is 58 MHz instead of 65, since a part of the weights lies in lookup tables; "
        "--clock asks for another.\n"
    )
    for arguments, clock, told in (
        ((str(outside),), 58.0, True),
        ((str(outside), "--clock", "65"), 65.0, False),
        (("llama",), 65.0, False),
        (("llama", "--board", "ecpix5-85f"), 95.0, False),
        (("llama", "--board", "ecpix5-85f", "--clock", "70"), 70.0, False),
    ):
        status, _, err = cli(*arguments, "--out", f"build-{len(stand.seen)}")
        assert status == 0
        assert (sentence in err) == told
        assert stand.seen[-1][1].clock_mhz == clock


def test_weights_in_lookup_tables_are_seen(outside, monkeypatch):
    import dataclasses

    from mxhw.compiler.context import Context, Settings
    from mxhw.compiler.defaults import choose_defaults

    settings = Settings(str(outside), "ulx3s-85f", fingerprint="0", context=32)
    progress = SilentProgress()

    def chosen():
        context, sentences = choose_defaults(settings, None, progress)
        return context.settings, sentences

    assert chosen() == (settings, [])
    whole = Context(settings, Path(), SilentProgress()).binding
    short = dataclasses.replace(whole, block_words=1)
    monkeypatch.setattr(Context, "binding", short)
    assert chosen()[0].clock_mhz == 58
    # A model that no block RAM holds is not lowered to find its clock.
    monkeypatch.setattr(Context, "holds_weights", lambda self: False)
    monkeypatch.setattr(Context, "binding", property(lambda self: pytest.fail("lowered")))
    assert chosen() == (settings, [])


def test_build_of_a_model_from_outside(cli, stand, outside):
    status, _, _ = cli(str(outside), "--quiet")
    assert status == 0
    settings = stand.seen[0][1]
    assert (settings.model, settings.name) == (str(outside), "my-model")
    assert settings.context is None
    assert Path("build/my-model-ulx3s-85f/report.json").is_file()
    # The same command over other weights is another model.
    data = bytearray(outside.read_bytes())
    data[40] ^= 1
    outside.write_bytes(data)
    assert build.model_source(str(outside), None, None)["fingerprint"] != settings.fingerprint
    assert all("fingerprint" in step.settings for step in PIPELINE)


def test_model_from_outside_that_is_malformed(cli, outside):
    outside.write_bytes(outside.read_bytes()[:-4])
    size = outside.stat().st_size
    status, _, err = cli(str(outside), "--estimate")
    assert status == 1
    assert error_line(err) == (
        f"{outside}: Size of the file must be {size + 4:,} bytes, as its header says, not {size:,}"
    )
