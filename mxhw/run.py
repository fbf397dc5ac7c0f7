"""Text from a design: ``python -m mxhw.run llama "Once upon a time"``.

The design is simulated, or on a board behind a serial port (``--port``). Either way one client
talks to it, through one protocol.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from mxhw import __version__
from mxhw.build import DEFAULT_BOARD, model_source
from mxhw.cli import Interrupted, model_options, run_command
from mxhw.errors import BuildError, MxhwError, UserError

if TYPE_CHECKING:
    from mxhw.compiler.context import Context
    from mxhw.compiler.progress import Progress
    from mxhw.sw.host.client import MxhwClient
    from mxhw.sw.host.text import Speed, TextGenerator

# What loads PyTorch or the compiler is imported where it is used, so that help is immediate.

__all__ = ["command", "main", "open_simulation"]

_BOARD_TIMEOUT_S = 2.0
# A simulated design answers late, not never: if the simulation fails, the line is closed.
_SIMULATION_TIMEOUT_S = 600.0


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 if all went well, 1 for a request that cannot be served, 2 for a link "
    "or a step that failed, 3 for a missing tool, 130 for an interrupt.",
)
@click.argument("model")
@click.argument("prompt", default="")
@click.option(
    "--port",
    metavar="PORT",
    help="Talk to a board at this serial port (/dev/ttyUSB0, COM3 or an URL of pyserial), not to "
    "a simulation.",
)
@click.option(
    "--baud",
    metavar="RATE",
    type=click.IntRange(min=1),
    help="Baud rate of the port; by default the one that designs are built with.",
)
@click.option(
    "--board",
    metavar="NAME",
    default=DEFAULT_BOARD,
    show_default=True,
    help="Board that the design was or would be built for.",
)
@model_options
@click.option(
    "--tokens",
    metavar="N",
    type=click.IntRange(min=1, max=0xFFFF),
    default=256,
    show_default=True,
    help="Most tokens to generate; a text also ends with its last word or a full context.",
)
@click.option(
    "--temperature",
    metavar="T",
    type=float,
    help="Draw each token on the host, from the logits divided by T; 0 is greedy.",
)
@click.option(
    "--top-p",
    metavar="P",
    type=float,
    help="Draw among the likeliest tokens that have the probability P together.",
)
@click.option("--seed", metavar="N", type=int, help="Seed of the draws.")
@click.option("--interactive", "-i", is_flag=True, help="Ask for prompts until end of file.")
@click.option("--quiet", "-q", is_flag=True, help="Print the text and errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="mxhw")
def command(**options: Any) -> None:
    """Let a design continue the text PROMPT.

    MODEL is what mxhw.build takes. The design is simulated unless --port names a board's serial
    port. The likeliest token is taken each time; with --temperature or --top-p tokens are drawn.
    """
    _run(**options)


def _run(
    *,
    model: str,
    prompt: str,
    port: str | None,
    baud: int | None,
    board: str,
    format_: str,
    context: int | None,
    tokenizer: Path | None,
    clock: float | None,
    table_budget: float,
    tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    interactive: bool,
    quiet: bool,
    debug: bool,
) -> None:
    from mxhw.boards.catalog import find_board
    from mxhw.boards.wrapper import DEFAULT_BAUD
    from mxhw.compiler.context import Settings, parse_formats
    from mxhw.compiler.defaults import choose_defaults
    from mxhw.compiler.progress import StatusProgress, make_progress
    from mxhw.sw.host.text import TextGenerator

    baud = baud or DEFAULT_BAUD
    sampler = _make_sampler(temperature, top_p, seed)
    weights, activations = parse_formats(format_)
    settings = Settings(
        **model_source(model, context, tokenizer),
        target=find_board(board).name,
        weight_format=weights.name,
        activation_format=activations.name,
        table_budget=table_budget,
    )
    errors = Console(stderr=True, highlight=False)
    with StatusProgress(errors, quiet=quiet) as status:
        shared, sentences = choose_defaults(settings, clock, status)
    for sentence in sentences if not quiet else ():
        errors.print(sentence, soft_wrap=True, markup=False)
    shared.progress = progress = make_progress(errors, quiet=quiet)
    if port is None:
        opened = _simulated(shared, baud, progress)
    else:
        opened = _on_board(shared, port, baud, progress)
    with opened as client:
        if not quiet:
            _introduce(client, port, errors)
        generator = TextGenerator(client, shared.tokenizer, sampler)
        told = None if quiet else errors
        if interactive:
            _converse(generator, client, prompt, tokens, told, simulated=port is None, baud=baud)
        else:
            _tell(generator, client, prompt, tokens, told, simulated=port is None, baud=baud)


def _make_sampler(temperature: float | None, top_p: float | None, seed: int | None) -> Any:
    from mxhw.sw.host.sampling import Sampler

    if temperature is None and top_p is None:
        if seed is not None:
            raise UserError("Greedy text needs no --seed: add --temperature or --top-p")
        return None
    sampler = Sampler(
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
    )
    return None if temperature == 0 else sampler


@contextlib.contextmanager
def open_simulation(context: "Context", progress: "Progress") -> "Iterator[Any]":
    """Start a simulation of a design behind a serial port, and yield that port.

    Parameters
    ----------
    context : Context
        Of the model and its formats.
    progress : Progress
        Told what takes time.

    Yields
    ------
    SimulatedSerialPort
    """
    from mxhw.boards.wrapper import TIMEOUT_BITS
    from mxhw.compiler.hosted import SIMULATED_BITS_A_CYCLE, hosted_decoder
    from mxhw.cosim.engine import make_engine
    from mxhw.cosim.serial import SimulatedSerialPort

    component = hosted_decoder(context)
    silence = round(TIMEOUT_BITS / SIMULATED_BITS_A_CYCLE)
    with (
        make_engine(
            component, "cxxrtl", on_progress=progress.update, inner_signals=False
        ) as engine,
        SimulatedSerialPort(engine, quiet_cycles=2 * silence) as port,
    ):
        yield port


@contextlib.contextmanager
def _simulated(context: "Context", baud: int, progress: "Progress") -> "Iterator[MxhwClient]":
    from mxhw.sw.host.client import MxhwClient, open_serial

    with contextlib.ExitStack() as stack:
        with progress:
            progress.plan(
                [("model", "load, lower and bind"), ("simulator", "compile the design once")]
            )
            model_hash = _lower(context, progress)
            start = time.monotonic()
            progress.begin("simulator")
            port = stack.enter_context(open_simulation(context, progress))
            progress.finish("simulator", time.monotonic() - start, reused=False)
        serial = stack.enter_context(open_serial(port.url, baud=baud))
        client = MxhwClient(serial, timeout_s=_SIMULATION_TIMEOUT_S, model_hash=model_hash)
        try:
            yield client
        except MxhwError as error:
            if port.failure is not None:
                raise BuildError(f"The simulation failed: {port.failure}") from error
            raise


@contextlib.contextmanager
def _on_board(
    context: "Context", port: str, baud: int, progress: "Progress"
) -> "Iterator[MxhwClient]":
    from mxhw.sw.host.client import LinkError, MxhwClient, open_serial

    with open_serial(port, baud=baud) as serial:
        with progress:
            progress.plan([("model", "load, lower and bind")])
            model_hash = _lower(context, progress)
        client = MxhwClient(serial, timeout_s=_BOARD_TIMEOUT_S, model_hash=model_hash)
        try:
            client.identify()
        except LinkError as error:
            raise LinkError(
                f"No design of mxhw answers at {port} with {baud} baud: {error}; "
                f"load the bitstream first"
            ) from error
        yield client


def _lower(context: "Context", progress: "Progress") -> bytes:
    start = time.monotonic()
    progress.begin("model")
    model_hash = context.model_hash
    progress.finish("model", time.monotonic() - start, reused=False)
    return model_hash


def _introduce(client: "MxhwClient", port: str | None, errors: Console) -> None:
    identity = client.identity
    errors.print(
        f"{identity.name} {'simulated' if port is None else f'at {port}'}, model "
        f"{identity.model_hash.hex()}, {identity.clock_hz / 1e6:.4g} MHz, context "
        f"{identity.context}\n",
        markup=False,
        soft_wrap=True,
    )


def _show(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


def _tell(
    generator: "TextGenerator",
    client: "MxhwClient",
    prompt: str,
    tokens: int,
    errors: Console | None,
    *,
    simulated: bool,
    baud: int,
) -> None:
    try:
        speed = generator.generate(prompt, tokens, _show)
    except KeyboardInterrupt:
        _show("\n")
        raise Interrupted("interrupted") from None
    except MxhwError:
        _show("\n")
        raise
    _show("\n")
    if errors is not None:
        errors.print(
            f"\n{describe_speed(speed, client.identity.clock_hz, baud, simulated=simulated)}",
            markup=False,
            soft_wrap=True,
        )


def _converse(
    generator: "TextGenerator",
    client: "MxhwClient",
    prompt: str,
    tokens: int,
    errors: Console | None,
    *,
    simulated: bool,
    baud: int,
) -> None:
    sign = "> " if sys.stdin.isatty() else ""
    if errors is not None and sign:
        errors.print("A line begins a new text; Ctrl-C stops it, Ctrl-D ends.")
    while True:
        if not prompt:
            try:
                prompt = input(sign)
            except (EOFError, KeyboardInterrupt):
                _show("\n" if sign else "")
                return
        if prompt:
            # A text that was stopped, or a prompt that is too long, does not end the session.
            try:
                _tell(generator, client, prompt, tokens, errors, simulated=simulated, baud=baud)
            except (Interrupted, UserError) as error:
                click.echo(f"mxhw: {error}", err=True)
        prompt = ""


def describe_speed(speed: "Speed", clock_hz: int, baud: int, *, simulated: bool) -> str:
    """One line about the speed of a generation, simulated or on a board, and what it stands for."""
    from mxhw.sw.host.protocol import Status

    ends = {
        Status.COMPLETE: "",
        Status.STOP_TOKEN: ", to the end of the text",
        Status.CONTEXT_FULL: ", until the context was full",
        Status.STOPPED: ", until it was stopped",
    }
    verb = "simulated" if simulated else "measured"
    noun = "token" if speed.tokens == 1 else "tokens"
    cycles = round(speed.cycles / speed.tokens) if speed.tokens else 0
    return (
        f"{speed.tokens} {noun} in {speed.seconds:.1f} s{ends[speed.status]}: "
        f"{speed.tokens_per_second:,.1f} tokens/s {verb}; {cycles:,} cycles a token, "
        f"{speed.design_tokens_per_second(clock_hz):,.0f} tokens/s "
        f"{'projected ' if simulated else ''}at {clock_hz / 1e6:.4g} MHz "
        f"(a line of {baud:,} baud carries {speed.line_tokens_per_second(baud):,.0f})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(command, "python -m mxhw.run", arguments)


if __name__ == "__main__":
    sys.exit(main())
