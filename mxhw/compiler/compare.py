"""Compare every node of a simulated decoder with golden; stop at the first difference.

``python -m mxhw.compiler.compare llama --tokens 3 --waveform first.vcd`` prints one line per node
kind if all agree, else the first difference with node, block, element and both values.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import fx

from mxhw.compiler.lower import reset_caches
from mxhw.compiler.trace import Expected, GoldenTrace, expected_streams
from mxhw.cosim.engine import Engine, make_engine
from mxhw.dataflow.decoder import FoldedDecoder
from mxhw.dataflow.program import TokenStep

__all__ = ["Comparison", "Difference", "compare_decoder", "golden_run"]

_WINDOW_CYCLES = 200
_TIMEOUT_CYCLES_PER_TOKEN = 200_000


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
        ``"element"``, ``"scale"`` or ``"missing"``.
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
        Nodes and transfers that agreed.
    """

    difference: Difference | None
    nodes: int
    transfers: int


@torch.no_grad()
def golden_run(
    lowered: fx.GraphModule, tokens: Sequence[int], *, sampled: Sequence[bool], lanes: int
) -> dict[str, list[Expected]]:
    """Expected transfers of every stream for a sequence of tokens from position 0."""
    reset_caches(lowered)
    trace = GoldenTrace(lowered)
    streams: dict[str, list[Expected]] = {}
    for position, token in enumerate(tokens):
        trace.run(torch.tensor([token]), torch.tensor([position]))
        part = expected_streams(
            trace, token=position, position=position, sampled=sampled[position], lanes=lanes
        )
        for name, beats in part.items():
            streams.setdefault(name, []).extend(beats)
    return streams


def _first_in(stream: str, expected: list[Expected], got: list[int]) -> tuple[int, Expected] | None:
    for index, beat in enumerate(expected):
        if index >= len(got) or (got[index] ^ beat.payload) & beat.mask:
            return index, beat
    return None


def _describe(stream: str, index: int, beat: Expected, got: list[int], cycle: int) -> Difference:
    common = {
        "node": beat.node.name,
        "source": str(beat.node.meta.get("source", "?")),
        "stream": stream,
        "token": beat.token,
        "block": beat.block,
        "cycle": cycle,
    }
    if index >= len(got):
        return Difference(
            **common, element=beat.first_element, golden=0, hardware=0, what="missing"
        )
    bits = beat.element_bits
    for lane, golden in enumerate(beat.elements):
        raw = (got[index] >> (lane * bits)) & ((1 << bits) - 1) if bits else got[index]
        hardware = raw - (1 << bits) if bits and raw >> (bits - 1) else raw
        if hardware != golden:
            return Difference(
                **common,
                element=beat.first_element + lane,
                golden=golden,
                hardware=hardware,
                what="element",
            )
    shift = len(beat.elements) * bits
    return Difference(
        **common,
        element=beat.first_element,
        golden=beat.payload >> shift,
        hardware=got[index] >> shift,
        what="scale",
    )


def compare_decoder(
    decoder: FoldedDecoder,
    lowered: fx.GraphModule,
    tokens: Sequence[int],
    *,
    waveform: Path | None = None,
    engine: str = "cxxrtl",
    on_progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Feed tokens from position 0 and compare every node's value in program order.

    Parameters
    ----------
    decoder : FoldedDecoder
        Hardware to check (a damaged one in tests).
    lowered : torch.fx.GraphModule
        The lowered decode step that it was built from.
    tokens : sequence of int
    waveform : Path, optional
        Where to write a VCD file around the first difference.
    engine : str
        ``"cxxrtl"`` or ``"pysim"``.
    """
    shape = decoder.parameters.shape
    streams = golden_run(lowered, tokens, sampled=[True] * len(tokens), lanes=shape.lanes)

    def run(window: tuple[int, int] | None) -> tuple[Engine, bool]:
        sim = make_engine(decoder, engine, probes=list(streams), on_progress=on_progress)
        for name in streams:
            sim.probe(name)
        if window is not None and waveform is not None:
            sim.waveform(waveform, *window)
        layout = TokenStep(vocabulary=shape.vocabulary, context=shape.context)
        steps = [
            layout.const({"token": token, "position": position, "sample": 1, "logits": 0}).as_bits()
            for position, token in enumerate(tokens)
        ]
        sim.put("i_step", steps)
        sim.collect("o_token", len(tokens))
        return sim, _finishes(sim, len(tokens))

    sim, _ = run(None)
    with sim:
        result, difference = _compare_streams(sim, streams)
    if difference is not None and waveform is not None:
        middle = difference.cycle if difference.cycle >= 0 else result
        window = (max(0, middle - _WINDOW_CYCLES), middle + _WINDOW_CYCLES // 4)
        run(window)[0].close()
    nodes = {beat.node for beats in streams.values() for beat in beats}
    transfers = sum(len(beats) for beats in streams.values())
    return Comparison(difference, len(nodes), transfers)


def _finishes(sim: Engine, tokens: int) -> bool:
    from mxhw.cosim.engine import SimulationTimeout

    try:
        sim.run_until(["o_token"], timeout_cycles=_TIMEOUT_CYCLES_PER_TOKEN * tokens)
    except SimulationTimeout:
        return False
    return True


def _compare_streams(
    sim: Engine, streams: dict[str, list[Expected]]
) -> tuple[int, Difference | None]:
    """The earliest difference by token and then by place in the graph."""
    first: tuple[tuple[int, int], Difference] | None = None
    for name, expected in streams.items():
        cycles = sim.transfer_cycles(name)
        got = sim.take(name)
        found = _first_in(name, expected, got)
        if found is None:
            continue
        index, beat = found
        order = list(beat.node.graph.nodes).index(beat.node)
        cycle = cycles[index] if index < len(cycles) else -1
        key = (beat.token, order)
        if first is None or key < first[0]:
            first = (key, _describe(name, index, beat, got, cycle))
    return sim.cycles, first[1] if first else None
