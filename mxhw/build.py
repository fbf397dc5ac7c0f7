"""The command line: ``python -m mxhw.build llama --board``.

Every expected failure is one line on the standard error output and an exit status: 1 for what the
user asked for, 2 for a step that failed, 3 for a missing tool, 130 for an interrupt.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mxhw import __version__
from mxhw.cli import Interrupted, model_options, run_command
from mxhw.errors import UserError

# What loads PyTorch or the compiler is imported where it is used, so that help is immediate.

__all__ = ["DEFAULT_BOARD", "command", "main", "model_source"]

DEFAULT_BOARD = "ulx3s-85f"
"""Board that a bare ``--board`` means."""

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
@model_options
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
    help="Last step to run: plan, golden, rtl, simulate, errors, synthesise, place-and-route, "
    "bitstream.",
)
@click.option(
    "--estimate",
    is_flag=True,
    help="Print resources and speed to expect; needs no tools and writes nothing.",
)
@click.option(
    "--text",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Print the perplexity of the float, ideal and golden models on a text file (several texts "
    "are separated by <|endoftext|>); builds nothing.",
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

    MODEL is the name of a bundled model, or a path: a Hugging Face folder, a GGUF file or a .bin
    file of llama2.c. The build captures it, quantises it, checks the exact
    integer model against the float one, generates the hardware, lets the simulated hardware
    generate text, and, with --board, builds the bitstream.
    """
    _run(**options)


def _run(
    *,
    model: str | None,
    board: str | None,
    format_: str,
    table_budget: float,
    clock: float | None,
    tokens: int,
    prompt: str,
    context: int | None,
    tokenizer: Path | None,
    out: Path | None,
    stop_after: str | None,
    estimate: bool,
    text: Path | None,
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
    from mxhw.compiler.context import Settings, parse_formats
    from mxhw.compiler.defaults import choose_defaults
    from mxhw.compiler.pipeline import find_step
    from mxhw.compiler.progress import StatusProgress
    from mxhw.models.bundled import MODELS

    if model is None and board in MODELS:
        # In "--board llama" the name is the model's.
        model, board = board, DEFAULT_BOARD
    if model is None:
        raise UserError(f"Model is missing; choose one of {', '.join(MODELS)} (--list-models)")
    source = model_source(model, context, tokenizer)
    target = find_board(board or DEFAULT_BOARD)
    weights, activations = parse_formats(format_)
    if stop_after is not None:
        find_step(stop_after)
    if tokens < 1:
        raise UserError(f"Number of tokens must be at least 1, not {tokens}")
    if board is not None:
        _check_clock(target, target.design_clock_mhz if clock is None else clock)
    settings = Settings(
        target=target.name,
        board=board is not None,
        bitstream=board is not None and target.toolchain == Toolchain.TRELLIS,
        weight_format=weights.name,
        activation_format=activations.name,
        table_budget=table_budget,
        tokens=tokens,
        prompt=prompt,
        **source,
    )
    errors = Console(stderr=True, highlight=False)
    if not quiet and "/" not in format_ and weights != activations:
        errors.print(f"Weights in {weights.name}, activations in {activations.name}.")
    if text is not None:
        _print_perplexity(settings, text, quiet=quiet, console=console, errors=errors)
        return
    with StatusProgress(errors, quiet=quiet) as progress:
        chosen, sentences = choose_defaults(settings, clock, progress)
        for sentence in sentences if not quiet else ():
            errors.print(sentence, soft_wrap=True, markup=False)
        if estimate:
            _print_estimate(chosen, console)
            return
    folder = out if out is not None else _default_folder(chosen.settings)
    _build(chosen.settings, folder, stop_after, quiet=quiet, console=console, errors=errors)


def model_source(model: str, context: int | None, tokenizer: Path | None) -> dict[str, Any]:
    """Fields of the settings that say which model is meant.

    Parameters
    ----------
    model : str
        Name of a bundled model, or path of another one.
    context : int, optional
    tokenizer : Path, optional
        Both only for a path.

    Raises
    ------
    UserError
        If there is no such model.
    """
    from mxhw.compiler.context import unknown_name
    from mxhw.models.bundled import MODELS
    from mxhw.models.loaders import fingerprint, is_model_path

    if model in MODELS or not is_model_path(model):
        if model not in MODELS:
            raise UserError(unknown_name("model", model, MODELS))
        for name, value in (("--context", context), ("--tokenizer", tokenizer)):
            if value is not None:
                raise UserError(f"Model {model!r} is bundled and takes no {name}")
        return {"model": model}
    path = Path(model)
    if not path.exists():
        raise UserError(f"There is no model at {path}")
    return {
        "model": str(path.resolve()),
        "context": context,
        "tokenizer": None if tokenizer is None else str(tokenizer.resolve()),
        "fingerprint": fingerprint(path, tokenizer),
    }


def _check_clock(board: Any, clock_mhz: float) -> None:
    from mxhw.boards.wrapper import achievable_hz

    try:
        achievable_hz(board, round(clock_mhz * 1e6))
    except ValueError as error:
        raise UserError(
            f"Clock of {clock_mhz:g} MHz cannot be made on {board.name!r}: {error}"
        ) from error


def _default_folder(settings: Any) -> Path:
    name = f"{settings.name}-{settings.target}"
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
            raise Interrupted(
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


def _print_estimate(context: Any, console: Console) -> None:
    from mxhw.compiler.report import resource_table
    from mxhw.compiler.steps import plan_facts

    settings = context.settings
    if settings.fingerprint:
        console.print(_memory_statement(context), soft_wrap=True, markup=False)
    facts, refusal = plan_facts(context)
    resources = {"estimated": facts["resources"], "capacity": facts["capacity"]}
    cycles = facts["cycles_per_token"]
    share = facts["macs_per_token"] / (facts["multipliers"] * cycles)
    console.print(f"{settings.name} in {settings.format} for {settings.target}")
    console.print(facts["binding"])
    console.print(
        f"{cycles:,} cycles a token at context {facts['context']}, "
        f"multipliers busy in {share:.0%} of them\n"
    )
    console.print(resource_table(resources))
    if refusal is not None:
        raise UserError(refusal)


def _memory_statement(context: Any) -> str:
    from mxhw.compiler.memory import describe_memory, memory_needed

    options, board = context.options, context.board
    memory = memory_needed(
        context.config, options.weight_format, options.activation_format, options.wide_format
    )
    bits = board.device.block_ram_bits * board.capacity.block_rams
    return describe_memory(memory, context.config, board.name, bits)


def _print_perplexity(
    settings: Any, text: Path, *, quiet: bool, console: Console, errors: Console
) -> None:
    import time

    from mxhw.compiler import accuracy
    from mxhw.compiler.context import Context
    from mxhw.compiler.ideal import IdealModel
    from mxhw.compiler.progress import make_progress
    from mxhw.models.evaluate import read_stories

    stories = read_stories(text)
    with make_progress(errors, quiet=quiet) as progress:
        progress.plan([("model", "load and lower"), ("perplexity", f"score {text.name}")])
        context = Context(settings, Path(), progress)
        start = time.monotonic()
        progress.begin("model")
        models = accuracy.model_readings(
            context.model, IdealModel(context.model, context.options), context.prefill
        )
        progress.finish("model", time.monotonic() - start, reused=False)
        start = time.monotonic()
        progress.begin("perplexity")
        try:
            scores = accuracy.measure(
                models,
                context.tokenizer,
                stories,
                context.config.context,
                lambda done, total: progress.update("windows", done, total),
            )
        except ValueError as error:
            raise UserError(f"Text {text} cannot be scored: {error}") from error
        progress.finish("perplexity", time.monotonic() - start, reused=False)
    console.print(
        f"{settings.name} in {settings.format} on {text.name}: {scores.tokens:,} tokens, "
        f"{scores.bytes:,} bytes, windows of {context.config.context}",
        soft_wrap=True,
        markup=False,
    )
    console.print(_perplexity_table(scores))


def _perplexity_table(scores: Any) -> Table:
    def interval(bounds: tuple[float, float], digits: int) -> str:
        low, high = bounds
        known = low > 0 and high < float("inf")
        return f"{low:.{digits}f} to {high:.{digits}f}" if known else "unknown (one window)"

    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for title in ("perplexity", "95 % interval", "bits/byte", "over float", "95 % interval"):
        table.add_column(title, justify="right")
    for name in scores.nats:
        table.add_row(
            name,
            f"{scores.perplexity(name):.4f}",
            interval(scores.perplexity_interval(name), 3),
            f"{scores.bits_per_byte(name):.4f}",
            f"x{scores.difference(name, 'float').ratio:.4f}",
            interval(scores.ratio_interval(name, "float"), 4),
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(command, "python -m mxhw.build", arguments)


if __name__ == "__main__":
    sys.exit(main())
