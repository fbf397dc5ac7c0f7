"""Where the cycles of one token go, recorded from the streams of the simulated hardware.

Every cycle is put down to one node and one unit. Cycles in which the engine multiplies belong to
the node that it multiplies for. In all others the engine waits for what came last, an operand or a
cache; they belong, one after the other, to the nodes on the way to it, each up to the cycle in
which its last beat passed, and at the end to the loading of the operand.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from mxhw import ops
from mxhw.compiler.binding import FoldedBinding
from mxhw.compiler.frontend import Node
from mxhw.compiler.lower import reset_caches
from mxhw.compiler.trace import GoldenTrace, expected_streams, stream_names, stream_of
from mxhw.cosim.engine import Engine
from mxhw.dataflow.program import Destination, Operand, Position, Step, TokenStep

__all__ = ["Segment", "Timeline", "measure_timeline", "probe_names"]

_WORDS = "engine.i_weights"
_ENGINE = "engine"
_LOADING = "operands"
_CACHES = (ops.key_cache, ops.value_cache)
_ALL = Fraction(1)

_UNITS = {
    ops.embedding: "embedding",
    ops.linear: "quantizer",
    ops.bias: "bias",
    ops.logits: "to_fixed",
    ops.scores: "to_fixed",
    ops.softmax: "softmax",
    ops.attention_values: "attention",
    ops.rms_norm: "norm",
    ops.rope: "rope",
    ops.key_cache: "keys",
    ops.value_cache: "values",
    ops.swiglu: "gated",
    ops.add: "residual",
    ops.argmax: "argmax",
}
"""The unit whose output a node's stream is."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Cycles of a token that belong to one node in one unit.

    Members
    -------
    node, unit : str
    start, end : int
        First cycle, and the one after the last, from the token's step on.
    """

    node: str
    unit: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One sampled token.

    Members
    -------
    context : int
        Positions that it sees.
    cycles : int
        From its step to its token.
    words : list of Segment
        When the engine multiplied: first word to last word of each step.
    results : list of Segment
        When a unit was at work for a node: from the first beat of the operand that came last, or
        for results of the engine of the result, to the last beat of the result.
    critical : list of Segment
        All cycles of the token in order, without gaps.
    """

    context: int
    cycles: int
    words: list[Segment]
    results: list[Segment]
    critical: list[Segment]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


def probe_names(lowered: fx.GraphModule) -> list[str]:
    """Streams that a timeline is made from; the simulator is built to record them."""
    return [*stream_names(lowered), _WORDS]


class _Recording:
    """Cycles of every node's transfers, and of the engine's words, of one token."""

    def __init__(
        self, transfers: dict[str, list[int]], streams: dict[str, list[Any]], start: int
    ) -> None:
        self.words = [cycle - start for cycle in transfers[_WORDS]]
        self.beats: dict[Node, list[int]] = {}
        for name, beats in streams.items():
            for beat, cycle in zip(beats, transfers.get(name, ()), strict=False):
                if stream_of(beat.node) == name:
                    self.beats.setdefault(beat.node, []).append(cycle - start)

    def part(self, node: Node, share: Fraction, pieces: int) -> list[int]:
        """Cycles of the beats of a node up to a share of its pieces, the last of them whole."""
        beats = self.beats.get(node, [])
        return beats[: len(beats) * math.ceil(share * pieces) // pieces]


def _counted(step: Step, binding: FoldedBinding, position: int) -> int:
    """Words that a step takes at a position."""
    counts = {
        Position.BLOCKS: position // binding.shape.block_size + 1,
        Position.GROUPS: position // binding.shape.rows + 1,
    }
    blocks, groups = (
        counts[n] if isinstance(n, Position) else n for n in (step.blocks, step.groups)
    )
    return blocks * groups


class _Accountant:
    """Puts every cycle of a token down to a node."""

    def __init__(
        self, lowered: fx.GraphModule, binding: FoldedBinding, recording: _Recording, cycles: int
    ) -> None:
        self._nodes = {node.name: node for node in lowered.graph.nodes}
        self._binding = binding
        self._recording = recording
        self._now = 0
        self._cycles = cycles
        self.words: list[Segment] = []
        self.critical: list[Segment] = []

    def _spend(self, until: int, node: Node, unit: str) -> None:
        until = min(until, self._cycles)
        if until > self._now:
            self.critical.append(Segment(node.name, unit, self._now, until))
            self._now = until

    def _chain(self, node: Node) -> list[Node]:
        """The nodes from the engine, or the embedding, to what the engine waits for; in order."""
        chain = [node]
        while _UNITS.get(chain[0].target) not in ("quantizer", "to_fixed", "embedding"):
            before = [n for n in chain[0].args if isinstance(n, fx.Node) and n in self._beats]
            if not before:
                break
            # The one that came last is the one that was waited for.
            chain.insert(0, max(before, key=lambda n: self._beats[n][-1]))
        return chain

    @property
    def _beats(self) -> dict[Node, list[int]]:
        return self._recording.beats

    def _pieces(self, node: Node) -> int:
        """Equal parts of a node's beats that come one after the other, for the steps of a head."""
        heads = self._binding.heads
        if node.target is ops.softmax:
            return heads * self._binding.shape.key_blocks
        return heads if node.target is ops.scores else heads // self._binding.slots

    def _steps(self, node: Node) -> int:
        """Steps that a node of the attention takes."""
        blocks = self._binding.shape.key_blocks
        return self._binding.heads * (blocks if node.target is ops.attention_values else 1)

    def _arrival(self, node: Node, share: Fraction) -> int:
        """Cycle of the last beat into a cache, or out of another node."""
        if node.target in _CACHES:
            node, share = node.args[0], _ALL
        beats = self._recording.part(node, share, self._pieces(node))
        return beats[-1] if beats else 0

    def _wait(self, node: Node, share: Fraction, until: int) -> None:
        """Cycles before the engine's next word: each node of the chain up to its last beat."""
        for link in self._chain(node):
            part = _ALL if node.target in _CACHES else share
            beats = self._recording.part(link, part, self._pieces(link))
            if beats:
                self._spend(min(beats[-1] + 1, until), link, _UNITS[link.target])
        if node.target in _CACHES:
            self._spend(until, node, _UNITS[node.target])

    def step(self, step: Step, first: int, last: int) -> None:
        """Account for one step of the engine, from its first to its last word."""
        name, _, index = step.name.partition("[")
        node = self._nodes[name]
        share = Fraction(int(index[:-1]) + 1, self._steps(node)) if index else _ALL
        awaited = [] if step.operand is Operand.KEEP else [node.args[0]]
        awaited += [n for n in node.args[1:] if n.target in _CACHES]
        if awaited:
            self._wait(max(awaited, key=lambda n: self._arrival(n, share)), share, first)
        self._spend(first, node, _LOADING)
        sharing = self._sharing(node)
        bounds = [first + (last + 1 - first) * n // len(sharing) for n in range(len(sharing) + 1)]
        for other, (start, end) in zip(sharing, itertools.pairwise(bounds), strict=True):
            self.words.append(Segment(other.name, _ENGINE, start, end))
            self._spend(end, other, _ENGINE)

    @staticmethod
    def _sharing(node: Node) -> list[Node]:
        """Nodes that a step computes: gate and factor are one matrix, in turns."""
        user = next(iter(node.users))
        return list(user.args) if user.target is ops.swiglu else [node]

    def finish(self, logits: Node, argmax: Node) -> None:
        """Account for what follows the last word."""
        for node in (logits, argmax):
            if beats := self._beats.get(node):
                self._spend(beats[-1] + 1, node, _UNITS[node.target])
        self._spend(self._cycles, argmax, _UNITS[argmax.target])


def _results(recording: _Recording) -> list[Segment]:
    """Spans in which the units behind the engine were at work."""
    spans = []
    for node, beats in recording.beats.items():
        unit = _UNITS[node.target]
        operands = [
            recording.beats[n][0]
            for n in node.args
            if isinstance(n, fx.Node) and n in recording.beats
        ]
        own = unit in ("quantizer", "to_fixed", "attention")
        start = beats[0] if own or not operands else max(operands)
        spans.append(Segment(node.name, unit, min(start, beats[0]), beats[-1] + 1))
    return sorted(spans, key=lambda span: span.start)


@torch.no_grad()
def _expected(lowered: fx.GraphModule, position: int, lanes: int) -> dict[str, list[Any]]:
    """Golden's beats of a sampled token; which node each belongs to does not depend on values."""
    trace = GoldenTrace(lowered)
    reset_caches(lowered)
    trace.run(torch.tensor([0]), torch.tensor([position]))
    return expected_streams(trace, token=position, position=position, sampled=True, lanes=lanes)


def measure_timeline(
    engine: Engine,
    lowered: fx.GraphModule,
    binding: FoldedBinding,
    tokens: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    timeout_cycles: int = 2_000_000,
) -> Timeline:
    """Feed a text from position 0 and record the streams of its last token, which is sampled.

    Parameters
    ----------
    engine : Engine
        Simulation of the decoder, idle, made with :func:`probe_names` as probes.
    lowered : torch.fx.GraphModule
    binding : FoldedBinding
    tokens : sequence of int
    on_progress : callable, optional
        Called with the tokens done and their number.
    """
    shape = binding.shape
    layout = TokenStep(vocabulary=shape.vocabulary, context=shape.context)
    last = len(tokens) - 1
    for position, token in enumerate(tokens[:-1]):
        fields = {"token": token, "position": position, "sample": 0, "logits": 0}
        engine.put("i_step", [layout.const(fields).as_bits()])  # pyright: ignore[reportArgumentType]
        engine.run_until(["i_step"], timeout_cycles=timeout_cycles)
        if on_progress is not None:
            on_progress(position + 1, len(tokens))
    # The step is taken at once; the decoder may still be at work on it.
    engine.run(timeout_cycles // 100)
    names = probe_names(lowered)
    for name in names:
        engine.probe(name)
    seen = {name: engine.transfers(name) for name in names}
    start = engine.cycles
    fields = {"token": tokens[-1], "position": last, "sample": 1, "logits": 0}
    engine.put("i_step", [layout.const(fields).as_bits()])  # pyright: ignore[reportArgumentType]
    engine.get("o_token", 1, timeout_cycles=timeout_cycles)
    cycles = engine.cycles - start
    transfers = {name: engine.transfer_cycles(name)[seen[name] :] for name in names}
    streams = _expected(lowered, last, shape.lanes)
    recording = _Recording(transfers, streams, start)
    accountant = _Accountant(lowered, binding, recording, cycles)
    words = iter(recording.words)
    for step in binding.program:
        if step.destination is not Destination.EMBEDDING:
            taken = list(itertools.islice(words, _counted(step, binding, last)))
            accountant.step(step, taken[0], taken[-1])
    nodes = {node.target: node for node in lowered.graph.nodes}
    accountant.finish(nodes[ops.logits], nodes[ops.argmax])
    return Timeline(last + 1, cycles, accountant.words, _results(recording), accountant.critical)
