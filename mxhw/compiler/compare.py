"""Compare every node of a simulated decoder with golden; stop at the first difference.

``python -m mxhw.compiler.compare llama --tokens 3 --waveform first.vcd`` tells how many nodes and
transfers agree, or else the first difference with node, block, element and both values.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
from torch import fx

from mxhw.cli import run_command
from mxhw.compiler.lower import reset_caches
from mxhw.compiler.report import peak_memory_mb
from mxhw.compiler.trace import Expected, GoldenTrace, expected_streams, stream_names
from mxhw.cosim.engine import Engine, make_engine
from mxhw.dataflow.decoder import FoldedDecoder
from mxhw.dataflow.program import Shape, TokenStep
from mxhw.errors import UserError

__all__ = [
    "Comparison",
    "DecodeStep",
    "Difference",
    "command",
    "compare_decoder",
    "compare_engine",
    "golden_run",
    "main",
]

_CYCLES_BEFORE = 200
_CYCLES_AFTER = 50
_CHUNK_CYCLES = 500
_QUIET_CHUNKS = 10
"""Chunks without a transfer on any stream after which nothing more is expected."""


@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """One token to feed.

    Members
    -------
    token, position : int
    sample, logits : bool
        Whether the next token, and the logits, are asked for.
    """

    token: int
    position: int
    sample: bool = True
    logits: bool = False

    @property
    def head(self) -> bool:
        """Whether the logits are computed."""
        return self.sample or self.logits


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first place where hardware and golden disagree.

    Members
    -------
    node, source, stream : str
    token, block, element : int
    golden, hardware : int
        The element's code (or the block's scale byte, or the fixed-point value).
    what : str
        ``"element"``, ``"scale"``, ``"missing"`` or ``"extra"``.
    cycle : int
        Cycle of the transfer in the simulation, -1 if it never came.
    """

    node: str
    source: str
    stream: str
    token: int
    block: int
    element: int
    golden: int
    hardware: int
    what: str
    cycle: int

    def __str__(self) -> str:
        place = f"node {self.node} ({self.source}), token {self.token}, block {self.block}"
        if self.what == "missing":
            return f"{place}: stream {self.stream} stopped before element {self.element}"
        if self.what == "extra":
            return f"{place}: stream {self.stream} went on behind it in cycle {self.cycle}"
        name = "scale" if self.what == "scale" else f"element {self.element}"
        return (
            f"{place}, {name}: hardware {self.hardware}, golden {self.golden} "
            f"(stream {self.stream}, cycle {self.cycle})"
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Members
    -------
    difference : Difference or None
    nodes, transfers : int
        Nodes and transfers that were compared, up to the difference.
    """

    difference: Difference | None
    nodes: int
    transfers: int


Streams = dict[str, list[Expected]]


def _as_steps(tokens: Sequence[int | DecodeStep]) -> list[DecodeStep]:
    return [
        token if isinstance(token, DecodeStep) else DecodeStep(token, position)
        for position, token in enumerate(tokens)
    ]


@torch.no_grad()
def golden_run(
    lowered: fx.GraphModule, tokens: Sequence[int | DecodeStep], *, lanes: int
) -> Streams:
    """Expected transfers of every stream for a sequence of tokens; position 0 begins a new text."""
    trace = GoldenTrace(lowered)
    streams: Streams = {}
    for number, step in enumerate(_as_steps(tokens)):
        if step.position == 0:
            reset_caches(lowered)
        trace.run(torch.tensor([step.token]), torch.tensor([step.position]))
        part = expected_streams(
            trace,
            token=number,
            position=step.position,
            sampled=step.head,
            lanes=lanes,
            logits=step.logits,
        )
        for name, beats in part.items():
            streams.setdefault(name, []).extend(beats)
    return streams


def _describe(
    stream: str, beat: Expected, got: int | None, cycle: int, *, extra: bool = False
) -> Difference:
    def difference(what: str, element: int, golden: int, hardware: int) -> Difference:
        source = str(beat.node.meta.get("source", "?"))
        place = (beat.node.name, source, stream, beat.token, beat.block, element)
        return Difference(*place, golden, hardware, what, cycle)

    first = beat.first_element
    if got is None:
        return difference("missing", first, 0, 0)
    if extra:
        return difference("extra", first, 0, 0)
    bits = beat.element_bits
    for lane, golden in enumerate(beat.elements):
        raw = (got >> (lane * bits)) & ((1 << bits) - 1) if bits else got
        hardware = raw - (1 << bits) if bits and raw >> (bits - 1) else raw
        if hardware != golden:
            return difference("element", first + lane, golden, hardware)
    shift = len(beat.elements) * bits
    return difference("scale", first, beat.payload >> shift, got >> shift)


class _Follower:
    """What has come out of each stream so far, against what is expected."""

    def __init__(self, sim: Engine, streams: Streams, names: Sequence[str]):
        self._sim = sim
        self._streams = {name: streams.get(name, []) for name in names}
        self._got: dict[str, list[int]] = {name: [] for name in names}
        self._checked = dict.fromkeys(names, 0)
        graph = next(iter(streams.values()))[0].node.graph
        self._places = {node: index for index, node in enumerate(graph.nodes)}
        for name in names:
            sim.take(name)
        self._skipped = {name: sim.transfers(name) for name in names}

    @property
    def transfers(self) -> int:
        """Transfers so far."""
        return sum(map(len, self._got.values()))

    @property
    def last_cycle(self) -> int:
        """Cycle of the latest transfer."""
        cycles = [self._sim.transfer_cycles(name)[-1:] for name in self._got]
        return max((c[0] for c in cycles if c), default=0)

    @property
    def nodes(self) -> set[fx.Node]:
        """Nodes of which something was compared."""
        return {
            beat.node
            for name, beats in self._streams.items()
            for beat in beats[: len(self._got[name])]
        }

    @property
    def complete(self) -> bool:
        """Whether everything that is expected has come."""
        return all(len(self._got[name]) >= len(beats) for name, beats in self._streams.items())

    def take(self) -> int:
        """Take what is new; how many transfers that is."""
        before = self.transfers
        for name, rows in self._got.items():
            rows += self._sim.take(name)
        return self.transfers - before

    def _cycle(self, name: str, index: int) -> int:
        return self._sim.transfer_cycles(name)[self._skipped[name] + index]

    def first_difference(self, *, ended: bool) -> Difference | None:
        """The earliest difference by token and then by place in the graph.

        Parameters
        ----------
        ended : bool
            Whether nothing more will come, so that what is missing is a difference.
        """
        found = []
        for name, beats in self._streams.items():
            got = self._got[name]
            common = min(len(beats), len(got))
            wrong = (
                index
                for index in range(self._checked[name], common)
                if (got[index] ^ beats[index].payload) & beats[index].mask
            )
            index = next(wrong, common)
            self._checked[name] = index
            if index < common:
                found.append((beats[index], name, got[index], self._cycle(name, index), False))
            elif len(got) > len(beats) and beats:
                found.append((beats[-1], name, got[common], self._cycle(name, common), True))
            elif ended and len(beats) > len(got):
                found.append((beats[index], name, None, -1, False))
        if not found:
            return None
        beat, name, got, cycle, extra = min(
            found, key=lambda item: (item[0].token, self._places[item[0].node])
        )
        return _describe(name, beat, got, cycle, extra=extra)


def _feed(
    sim: Engine, shape: Shape, steps: list[DecodeStep], stalls: tuple[float, float], seed: int
) -> None:
    layout = TokenStep(vocabulary=shape.vocabulary, context=shape.context)
    payloads = [layout.const(dataclasses.asdict(step)).as_bits() for step in steps]  # pyright: ignore[reportArgumentType]
    sim.put("i_step", payloads, valid_probability=stalls[0], seed=seed)
    beats = -(-shape.vocabulary // shape.lanes)
    for name, count in (
        ("o_token", sum(step.head for step in steps)),
        ("o_logits", beats * sum(step.logits for step in steps)),
    ):
        sim.collect(name, count, ready_probability=stalls[1], seed=seed)


def compare_engine(
    sim: Engine,
    shape: Shape,
    lowered: fx.GraphModule,
    tokens: Sequence[int | DecodeStep],
    *,
    waveform: Path | None = None,
    stalls: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
) -> Comparison:
    """Compare a simulation that runs already; it is reset first.

    Parameters
    ----------
    sim : Engine
        Simulation of a decoder.
    shape : Shape
        The decoder's.
    lowered : torch.fx.GraphModule
        The lowered decode step that it was built from.
    tokens : sequence of int or DecodeStep
        Integers stand for sampled tokens at the position of their number.
    waveform : Path, optional
        Where to write a VCD file around the first difference: the run is repeated for it.
    stalls : (float, float)
        Probabilities that steps are offered and results are taken.
    seed : int
        Of the stalls.
    """
    steps = _as_steps(tokens)
    streams = golden_run(lowered, steps, lanes=shape.lanes)
    names = sorted({*stream_names(lowered), "o_logits"})
    for name in names:
        if name not in sim.design.streams:
            sim.probe(name)
    sim.reset()
    start = sim.cycles
    follower = _Follower(sim, streams, names)
    _feed(sim, shape, steps, stalls, seed)
    quiet = 0
    difference = None
    while difference is None and quiet < _QUIET_CHUNKS:
        sim.run(_CHUNK_CYCLES)
        quiet = 0 if follower.take() else quiet + 1
        difference = follower.first_difference(ended=False)
        if follower.complete and quiet:
            break
    if difference is None:
        difference = follower.first_difference(ended=True)
    if difference is not None and waveform is not None:
        middle = difference.cycle if difference.cycle >= 0 else follower.last_cycle
        sim.reset()
        moved = sim.cycles - start
        end = middle + moved + _CYCLES_AFTER
        sim.waveform(waveform, max(sim.cycles, end - _CYCLES_AFTER - _CYCLES_BEFORE), end)
        _feed(sim, shape, steps, stalls, seed)
        sim.run(end - sim.cycles)
        if difference.cycle >= 0:
            difference = dataclasses.replace(difference, cycle=difference.cycle + moved)
    return Comparison(difference, len(follower.nodes), follower.transfers)


def compare_decoder(
    decoder: FoldedDecoder,
    lowered: fx.GraphModule,
    tokens: Sequence[int | DecodeStep],
    *,
    waveform: Path | None = None,
    engine: str = "cxxrtl",
    on_progress: Callable[[str], None] | None = None,
    stalls: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
) -> Comparison:
    """Feed tokens to a simulation of the decoder and compare every node's value.

    Parameters
    ----------
    decoder : FoldedDecoder
        Hardware to check (a damaged one in tests).
    lowered : torch.fx.GraphModule
        The lowered decode step that it was built from.
    tokens : sequence of int or DecodeStep
        Integers stand for sampled tokens at the position of their number.
    waveform : Path, optional
        Where to write a VCD file around the first difference; it costs a longer build, because
        inner signals are kept.
    engine : str
        ``"cxxrtl"`` or ``"pysim"``.
    on_progress : callable, optional
        Called with a line of text before each slow step.
    stalls, seed
        As for :func:`compare_engine`.
    """
    progress = on_progress or (lambda text: None)
    with make_engine(
        decoder,
        engine,
        probes=stream_names(lowered),
        on_progress=progress,
        inner_signals=waveform is not None,
    ) as sim:
        progress(f"Comparing {len(tokens)} tokens")
        shape = decoder.parameters.shape
        return compare_engine(
            sim, shape, lowered, tokens, waveform=waveform, stalls=stalls, seed=seed
        )


def _greedy(lowered: fx.GraphModule, prompt: list[int], count: int, context: int) -> list[int]:
    """The first ``count`` tokens of a prompt and its greedy continuation."""
    if not 1 <= count <= context:
        raise UserError(f"Number of tokens must be 1 to {context}, not {count}")
    tokens = prompt[:count]
    reset_caches(lowered)
    with torch.no_grad():
        for position in range(count - 1):
            choice, _ = lowered(torch.tensor([tokens[position]]), torch.tensor([position]))
            if position + 1 == len(tokens):
                tokens.append(int(choice))
    return tokens


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model")
@click.option(
    "--tokens",
    metavar="N",
    type=int,
    default=3,
    show_default=True,
    help="Tokens to feed, from position 0; a short prompt is continued greedily.",
)
@click.option(
    "--prompt", metavar="TEXT", default="Once upon a time", show_default=True, help="What to feed."
)
@click.option(
    "--waveform",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write a VCD file of 200 cycles before the first difference and 50 after it.",
)
@click.option(
    "--engine",
    type=click.Choice(["cxxrtl", "pysim"]),
    default="cxxrtl",
    show_default=True,
    help="Simulation in native code, or Amaranth's.",
)
@click.option(
    "--layers",
    metavar="N",
    type=int,
    help="Take the model's first layers only, with its embedding and its head. The simulation "
    "holds any number of weights, so this is for models that no block RAM holds.",
)
@click.option(
    "--format",
    "format_",
    metavar="W[/A]",
    default="mxint8",
    show_default=True,
    help="MX formats of weights and activations, as for mxhw.build.",
)
@click.option("--context", metavar="N", type=click.IntRange(min=8), help="As for mxhw.build.")
@click.option(
    "--tokenizer", metavar="FILE", type=click.Path(path_type=Path), help="As for mxhw.build."
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def command(
    model: str,
    tokens: int,
    prompt: str,
    waveform: Path | None,
    engine: str,
    layers: int | None,
    format_: str,
    context: int | None,
    tokenizer: Path | None,
) -> None:
    """Compare every node of MODEL's hardware with golden, up to the first difference.

    MODEL is what mxhw.build takes.

    Exit status: 0 if all agree, 1 at a difference or for a request that cannot be served, 2 for a
    step that failed, 3 for a missing tool.
    """
    from mxhw.build import DEFAULT_BOARD, model_source
    from mxhw.compiler.context import Context, Settings, parse_formats
    from mxhw.compiler.defaults import choose_context
    from mxhw.compiler.progress import SilentProgress

    def progress(text: str) -> None:
        click.echo(f"  {text}", err=True)

    weights, activations = parse_formats(format_)
    settings = Settings(
        **model_source(model, context, tokenizer),
        target=DEFAULT_BOARD,
        weight_format=weights.name,
        activation_format=activations.name,
    )
    shared, fewer = choose_context(Context(settings, Path(), SilentProgress()))
    if fewer is not None:
        progress(fewer)
    if layers is not None:
        shared = shared.first_layers(layers)
    progress(f"Lowering {shared.config.layers} layers of model {settings.name!r}")
    sequence = _greedy(
        shared.decode, shared.tokenizer.encode(prompt), tokens, shared.config.context
    )
    start = time.monotonic()
    result = compare_decoder(
        shared.component(),
        shared.decode,
        sequence,
        waveform=waveform,
        engine=engine,
        on_progress=progress,
    )
    progress(f"{time.monotonic() - start:.1f} s, {peak_memory_mb():,.0f} MB at most")
    if result.difference is not None:
        raise UserError(str(result.difference))
    click.echo(f"All agree: {result.nodes} nodes, {result.transfers} transfers, {tokens} tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(command, "python -m mxhw.compiler.compare", arguments)


if __name__ == "__main__":
    sys.exit(main())
