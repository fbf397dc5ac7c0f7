"""The command line: ``python -m mxhw.build llama --board``.

Every expected failure is one line on the standard error output and an exit status: 1 for what the
user asked for, 2 for a step that failed, 3 for a missing tool, 130 for an interrupt.
"""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mxhw import __version__
from mxhw.errors import MxhwError, UserError

# What loads PyTorch or the compiler is imported where it is used, so that help is immediate.

__all__ = ["DEFAULT_BOARD", "command", "main"]

DEFAULT_BOARD = "ulx3s-85f"
"""Board that a bare ``--board`` means."""

_INTERNAL_STATUS = 2
_INTERRUPT_STATUS = 130


class _Interrupted(MxhwError):
    """The user stopped the build."""

    exit_status = _INTERRUPT_STATUS


_EPILOG = """Exit status: 0 if all went well, 1 for a request that cannot be served, 2 for a step
that failed, 3 for a missing tool, 130 for an interrupt. A build that ended early goes on where it
stood when the same command is given again."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.argument("model", required=False)
@click.option(
    "--board",
    metavar="[NAME]",
    is_flag=False,
    flag_value=DEFAULT_BOARD,
    help=f"Build for a board ({DEFAULT_BOARD} if no name is given); without this option the build "
    "ends after simulation.",
)
@click.option(
    "--format",
    "format_",
    metavar="W[/A]",
    default="mxint8",
    show_default=True,
    help="MX formats of weights and activations. One name sets the weights, and the activations "
    "too if it is MXINT of at most 8 bits; else they are mxint8.",
)
@click.option(
    "--clock",
    metavar="MHZ",
    type=float,
    default=65.0,
    show_default=True,
    help="Clock of the design on the board.",
)
@click.option(
    "--tokens",
    metavar="N",
    type=int,
    default=256,
    show_default=True,
    help="Tokens to generate in the simulation.",
)
@click.option(
    "--prompt",
    metavar="TEXT",
    default="Once upon a time",
    show_default=True,
    help="Text to continue.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Build folder; by default build/MODEL-BOARD.",
)
@click.option(
    "--stop-after",
    metavar="STEP",
    help="Last step to run: plan, golden, rtl, simulate, synthesise, place-and-route, bitstream.",
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Print resources and speed to expect; needs no tools and writes nothing.",
)
@click.option("--list-models", is_flag=True, help="List the bundled models.")
@click.option(
    "--list-boards",
    is_flag=True,
    help="List the boards, and why one cannot hold the bundled model.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the summary and errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="mxhw")
def command(**options: Any) -> None:
    """Turn a PyTorch Llama into microscaling (MX) hardware.

    MODEL is the name of a bundled model. The build captures it, quantises it, checks the exact
    integer model against the float one, generates the hardware, lets the simulated hardware
    generate text, and, with --board, builds the bitstream.
    """
    _run(**options)


def _run(
    *,
    model: str | None,
    board: str | None,
    format_: str,
    clock: float,
    tokens: int,
    prompt: str,
    out: Path | None,
    stop_after: str | None,
    estimate: bool,
    list_models: bool,
    list_boards: bool,
    quiet: bool,
    debug: bool,
) -> None:
    console = Console(highlight=False)
    if list_models:
        console.print(_models_table())
        return
    if list_boards:
        console.print(_boards_table())
        return
    from mxhw.boards.catalog import Toolchain, find_board
    from mxhw.compiler.context import Settings, parse_formats, unknown_name
    from mxhw.compiler.pipeline import find_step
    from mxhw.models.bundled import MODELS

    if model is None and board in MODELS:
        # In "--board llama" the name is the model's.
        model, board = board, DEFAULT_BOARD
    if model is None:
        raise UserError(f"Model is missing; choose one of {', '.join(MODELS)} (--list-models)")
    if model not in MODELS:
        raise UserError(unknown_name("model", model, MODELS))
    target = find_board(board or DEFAULT_BOARD)
    weights, activations = parse_formats(format_)
    if stop_after is not None:
        find_step(stop_after)
    if tokens < 1:
        raise UserError(f"Number of tokens must be at least 1, not {tokens}")
    if board is not None:
        _check_clock(target, clock)
    settings = Settings(
        model=model,
        target=target.name,
        board=board is not None,
        bitstream=board is not None and target.toolchain == Toolchain.TRELLIS,
        weight_format=weights.name,
        activation_format=activations.name,
        clock_mhz=clock,
        tokens=tokens,
        prompt=prompt,
    )
    errors = Console(stderr=True, highlight=False)
    if not quiet and "/" not in format_ and weights != activations:
        errors.print(f"Weights in {weights.name}, activations in {activations.name}.")
    if estimate:
        _print_estimate(settings, console)
        return
    folder = out if out is not None else _default_folder(settings)
    _build(settings, folder, stop_after, quiet=quiet, console=console, errors=errors)


def _check_clock(board: Any, clock_mhz: float) -> None:
    from mxhw.boards.wrapper import achievable_hz

    try:
        achievable_hz(board, round(clock_mhz * 1e6))
    except ValueError as error:
        raise UserError(
            f"Clock of {clock_mhz:g} MHz cannot be made on {board.name!r}: {error}"
        ) from error


def _default_folder(settings: Any) -> Path:
    name = f"{settings.model}-{settings.target}"
    if settings.format != "mxint8":
        name += "-" + settings.format.replace("/", "-")
    return Path("build") / name


def _build(
    settings: Any,
    path: Path,
    stop_after: str | None,
    *,
    quiet: bool,
    console: Console,
    errors: Console,
) -> None:
    from mxhw.compiler.context import Context
    from mxhw.compiler.pipeline import run_steps
    from mxhw.compiler.progress import make_progress
    from mxhw.compiler.report import REPORT_FILE, render_summary
    from mxhw.compiler.workspace import BuildFolder
    from mxhw.report import PAGE_FILE

    with BuildFolder(path) as folder:
        try:
            with make_progress(errors, quiet=quiet) as progress:
                context = Context(settings, path, progress)
                content = run_steps(context, folder, progress, stop_after=stop_after)
        except KeyboardInterrupt:
            done = ", ".join(context.results) or "nothing"
            raise _Interrupted(
                f"interrupted; {done} kept in {path}: the same command goes on from there"
            ) from None
        names = [str(name) for name in folder.files(context.results)]
        console.print(render_summary(content, str(path), [*names, REPORT_FILE, PAGE_FILE]))


def _models_table() -> Table:
    from mxhw.models.bundled import MODELS

    table = Table(box=None, pad_edge=False)
    table.add_column("model", style="bold")
    table.add_column("what it is")
    for name, model in MODELS.items():
        table.add_row(name, model.summary)
    return table


def _boards_table() -> Table:
    from mxhw.boards.catalog import BOARDS, check
    from mxhw.compiler.context import Context, Settings
    from mxhw.compiler.progress import SilentProgress

    context = Context(Settings("llama", DEFAULT_BOARD), Path(), SilentProgress())
    # One block of lines a board: a row with a column for each fact needs a very wide terminal.
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("board", style="bold", no_wrap=True)
    table.add_column("facts")
    for name, board in BOARDS.items():
        capacity = board.capacity
        trellis = board.toolchain.value == "trellis"
        facts = (
            f"{capacity.luts:,} lookup tables, {capacity.block_rams:,} block RAMs, "
            f"{capacity.multipliers:,} multipliers, "
            f"{'a' if board.has_uart else 'no'} serial port; the build ends with a "
            f"{'bitstream' if trellis else board.toolchain.value}"
        )
        reasons = check(board, context.for_board(name).estimate[0])
        verdict = "[green]fits[/]" if not reasons else f"[red]does not fit:[/] {'; '.join(reasons)}"
        table.add_row(name, f"{board.title}\n{facts}\nllama in mxint8: {verdict}\n")
    return table


def _print_estimate(settings: Any, console: Console) -> None:
    import tempfile

    from mxhw.compiler.context import Context
    from mxhw.compiler.progress import SilentProgress
    from mxhw.compiler.report import resource_table
    from mxhw.compiler.steps import plan

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        facts = plan(Context(settings, path, SilentProgress()), path)
    resources = {"estimated": facts["resources"], "capacity": facts["capacity"]}
    cycles = facts["cycles_per_token"]
    share = facts["macs_per_token"] / (facts["multipliers"] * cycles)
    console.print(f"{settings.model} in {settings.format} for {settings.target}")
    console.print(facts["binding"])
    console.print(
        f"{cycles:,} cycles a token at context {facts['context']}, "
        f"multipliers busy in {share:.0%} of them\n"
    )
    console.print(resource_table(resources))


def _report_error(message: str) -> None:
    click.echo(f"mxhw: error: {message}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    try:
        command.main(list(arguments), prog_name="python -m mxhw.build", standalone_mode=False)
        return 0
    except click.Abort:
        _report_error("interrupted")
        return _INTERRUPT_STATUS
    except KeyboardInterrupt:
        _report_error("interrupted")
        return _INTERRUPT_STATUS
    except click.ClickException as error:
        _report_error(f"{error.format_message()} (--help lists the options)")
        return UserError.exit_status
    except MxhwError as error:
        if debug:
            traceback.print_exc()
        _report_error(str(error))
        return error.exit_status
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; run with --debug for the traceback"
        _report_error(f"internal error: {type(error).__name__}: {error}{hint}")
        return _INTERNAL_STATUS


if __name__ == "__main__":
    sys.exit(main())
