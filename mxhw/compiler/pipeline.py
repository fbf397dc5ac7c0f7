"""The build as one list of named steps, and what runs it.

A step reads what earlier steps left, writes files into a folder of its own and returns facts as
JSON; the facts become the file ``STEP.json``. A step whose settings, inputs and package are those
of an earlier build is not run again.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mxhw.compiler import report, steps
from mxhw.compiler.context import Context, unknown_name
from mxhw.compiler.progress import Progress
from mxhw.compiler.workspace import BuildFolder, StepRecord, digest_of, source_digest
from mxhw.errors import BuildError, MxhwError, UserError
from mxhw.report import PAGE_FILE, gather, render

__all__ = ["STEPS", "Step", "find_step", "run_steps"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One entry of the build.

    Members
    -------
    name, summary : str
    run : callable
        Takes the context and an empty folder for its files; returns facts as a JSON object. It
        must not depend on anything that ``settings``, ``reads`` and the package do not name.
    settings : tuple of str
        Fields of :class:`~mxhw.compiler.context.Settings` that the result depends on.
    reads : tuple of str
        Files of earlier steps that the result depends on.
    sources : tuple of str
        Files and folders of the package that the result depends on; by default all. Place and
        route takes minutes and depends on little, so it is not repeated for an unchanged netlist.
    only_if : str, optional
        A yes-or-no field of the settings without which the step is left out.
    prebuild_for : str, optional
        A later step whose simulator is compiled in the background meanwhile.
    """

    name: str
    summary: str
    run: Callable[[Context, Path], dict[str, Any]]
    settings: tuple[str, ...]
    reads: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("",)
    only_if: str | None = None
    prebuild_for: str | None = None

    @property
    def result(self) -> str:
        """Name of the file that holds the step's facts."""
        return f"{self.name}.json"


_MODEL = ("model", "fingerprint", "context", "tokenizer")
_DESIGN = (*_MODEL, "target", "weight_format", "activation_format", "table_budget")
_BOARD = (*_DESIGN, "clock_mhz")
_TOOL_SOURCES = (
    "boards",
    "compiler/toolflow.py",
    "compiler/_tools.py",
    "compiler/netlist/cells.py",
    "compiler/netlist/document.py",
    "compiler/netlist/floorplan.py",
    "compiler/netlist/resources.py",
    "compiler/netlist/timing.py",
    "compiler/steps.py",
)

STEPS: list[Step] = [
    Step("plan", "capture, lower, bind and estimate", steps.plan, _DESIGN),
    Step(
        "golden",
        "run the golden model, compare it with float",
        steps.golden,
        (*_DESIGN, "tokens", "prompt"),
        prebuild_for="simulate",
    ),
    Step(
        "rtl",
        "generate RTLIL, Verilog and packed weights",
        steps.rtl,
        _DESIGN,
        prebuild_for="simulate",
    ),
    Step(
        "simulate",
        "generate text in the simulated hardware",
        steps.simulate,
        _DESIGN,
        reads=("script.json", "logits.npz"),
    ),
    Step(
        "errors",
        "measure the error of every node",
        steps.errors,
        (*_DESIGN, "tokens", "prompt"),
        reads=("script.json", "logits.npz"),
    ),
    Step(
        "synthesise",
        "map to the device",
        steps.synthesise,
        _BOARD,
        only_if="board",
    ),
    Step(
        "place-and-route",
        "place, route and close timing",
        steps.place_and_route,
        _BOARD,
        reads=("top.json",),
        sources=_TOOL_SOURCES,
        only_if="bitstream",
    ),
    Step(
        "bitstream",
        "pack the configuration",
        steps.bitstream,
        _BOARD,
        reads=("top.config",),
        sources=_TOOL_SOURCES,
        only_if="bitstream",
    ),
]


def find_step(name: str) -> str:
    """The step's name, if it is one.

    Raises
    ------
    UserError
        If it is not; with the nearest names.
    """
    names = [step.name for step in STEPS]
    if name not in names:
        raise UserError(unknown_name("step", name, names))
    return name


def run_steps(
    context: Context,
    folder: BuildFolder,
    progress: Progress,
    *,
    stop_after: str | None = None,
    pipeline: Sequence[Step] | None = None,
) -> dict[str, Any]:
    """Run the steps that are not valid yet and write the report.

    The report is also written when a step fails or is interrupted: it then says where the build
    stands.

    Parameters
    ----------
    context : Context
    folder : BuildFolder
    progress : Progress
    stop_after : str, optional
        Name of the last step to run; by default the last that the settings ask for.
    pipeline : sequence of Step, optional
        By default :data:`STEPS`.

    Returns
    -------
    dict
        The report, as written.

    Raises
    ------
    MxhwError
        From a step, after its log files were kept and the report was written.
    """
    pipeline = STEPS if pipeline is None else pipeline
    settings = context.settings
    chosen = [step for step in pipeline if not step.only_if or getattr(settings, step.only_if)]
    if stop_after is not None:
        names = [step.name for step in chosen]
        if stop_after not in names:
            if not settings.board:
                raise UserError(f"Step {stop_after!r} needs a board; add --board")
            raise UserError(
                f"Step {stop_after!r} needs the vendor's tools for {settings.target!r}; the build "
                f"ends with a project for them (--stop-after {names[-1]})"
            )
        chosen = chosen[: names.index(stop_after) + 1]
    progress.plan([(step.name, step.summary) for step in chosen])
    records: dict[str, StepRecord] = {}
    try:
        for step in chosen:
            records[step.name] = _run_step(step, context, folder, progress, chosen)
    except BaseException as error:
        reason = str(error) if isinstance(error, MxhwError) else type(error).__name__
        _write_report(context, folder, records, f"step {step.name}: {reason}")
        raise
    finally:
        context.stop_prebuild()
    return _write_report(context, folder, records, None)


def _run_step(
    step: Step,
    context: Context,
    folder: BuildFolder,
    progress: Progress,
    chosen: Sequence[Step],
) -> StepRecord:
    """Run one step unless it is valid."""
    settings = {name: getattr(context.settings, name) for name in step.settings}
    digests = folder.file_digests()
    inputs = {name: digests.get(name) for name in step.reads}
    key = digest_of([step.name, source_digest(step.sources), settings, inputs])
    record = folder.valid(step.name, key)
    if record is not None:
        context.results[step.name] = folder.read_json(step.result)
        progress.finish(step.name, record.seconds, reused=True)
        return record
    progress.begin(step.name)
    start = time.monotonic()
    if step.prebuild_for in [other.name for other in chosen]:
        context.start_prebuild()
    with folder.staging() as staging:
        try:
            result = step.run(context, staging)
            context.results[step.name] = result
            # A file of the step's own must not have this name.
            with (staging / step.result).open("x", encoding="utf-8") as file:
                file.write(report.to_json(result))
            elapsed = time.monotonic() - start
            record = StepRecord(key, elapsed, report.peak_memory_mb(), {})
            record = folder.commit(step.name, record, staging)
        except OSError as error:
            folder.keep_logs(staging)
            place = f" ({error.filename})" if error.filename else ""
            raise BuildError(f"Step {step.name!r} failed: {error.strerror}{place}") from error
        except MxhwError:
            folder.keep_logs(staging)
            raise
    progress.finish(step.name, elapsed, reused=False)
    return record


def _write_report(
    context: Context, folder: BuildFolder, records: dict[str, StepRecord], stopped: str | None
) -> dict[str, Any]:
    seconds = {name: record.seconds for name, record in records.items()}
    memory = max((record.memory_mb for record in records.values()), default=0.0)
    content = report.make_report(context.settings, context.results, seconds, memory, stopped)
    folder.write_json(report.REPORT_FILE, content)
    folder.write_text(PAGE_FILE, render(gather(folder.path, content, context.results)))
    return content
