"""What every stream of a folded decoder must carry, computed from the golden graph.

A golden run records each node's value; :func:`expected_beats` turns a value into the beats of the
stream that carries it, so that a simulation can be compared node by node, block by block.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from mxhw import ops
from mxhw.compiler.frontend import Node
from mxhw.dataflow.program import Destination
from mxhw.formats import SCALE_BITS
from mxhw.sw.golden.attention import Probabilities
from mxhw.sw.golden.linear import FIXED_BITS
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["Expected", "GoldenTrace", "expected_streams", "stream_names", "stream_of"]


class GoldenTrace(fx.Interpreter):
    """Run a lowered decode step and keep every node's value.

    Members
    -------
    values : dict of Node to value
        Of the latest run.
    """

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node and keep its value."""
        value = super().run_node(n)
        self.values[n] = value
        return value


@dataclasses.dataclass(frozen=True)
class Expected:
    """One transfer that a stream must carry.

    Members
    -------
    payload, mask : int
        Bits that must agree where the mask is set.
    node : torch.Node
    token : int
        Number of the token in the run.
    block : int
        Block of the node's value (row of logits for fixed-point streams: beat number).
    elements : tuple of int
        Values in the beat's lanes.
    first_element : int
        Index, in the block, of lane 0.
    element_bits : int
        Width of a lane in the payload.
    """

    payload: int
    mask: int
    node: Node
    token: int
    block: int
    elements: tuple[int, ...]
    first_element: int
    element_bits: int


_RESULT_STREAMS = {
    ops.rope: f"wide_route.o.{Destination.ROPE.value}",
    ops.add: f"wide_route.o.{Destination.RESIDUAL.value}",
    ops.swiglu: f"wide_route.o.{Destination.GATED.value}",
    ops.value_cache: "values.i",
}


def stream_of(node: Node) -> str | None:
    """Name of the decoder's stream that carries a node's value; None if it is not observable."""
    target = node.target
    users = [user.target for user in node.users]
    if target is ops.bias:
        return "values.i" if ops.value_cache in users else "rope.i"
    if target is ops.linear and users[0] is ops.bias:
        (bias,) = node.users
        values = ops.value_cache in [user.target for user in bias.users]
        return f"wide_route.o.{(Destination.VALUES if values else Destination.ROPE).value}"
    if target is ops.embedding:
        return "embedding.o"
    if target is ops.rms_norm:
        return "norm.o"
    if target is ops.linear:
        return _RESULT_STREAMS.get(users[0])
    if target is ops.logits:
        return "tap.o"
    if target is ops.argmax:
        return "argmax.o"
    if target is ops.rope:
        return "rope.o_key" if ops.key_cache in users else "rope.o_query"
    if target is ops.scores:
        return "softmax.i"
    if target is ops.softmax:
        return "softmax.o"
    if target is ops.attention_values:
        return "attention.o"
    if target is ops.swiglu:
        return "gated.o"
    if target is ops.add:
        return "residual.o"
    return None


def stream_names(lowered: fx.GraphModule) -> list[str]:
    """Streams inside the decoder that carry values of a lowered decode step."""
    names = {stream_of(node) for node in lowered.graph.nodes}
    return sorted({"residual.o", *names} - {None})


def _pack(elements: Iterable[int], bits: int) -> int:
    word = 0
    for lane, value in enumerate(elements):
        word |= (int(value) & ((1 << bits) - 1)) << (lane * bits)
    return word


def _block_beats(
    node: Node, value: MXTensor, token: int, lanes: int, element_bits: int, first_block: int = 0
) -> list[Expected]:
    size = value.format.block_size
    mask = (1 << (lanes * element_bits + SCALE_BITS)) - 1
    beats = []
    codes = value.elements.flatten().tolist()
    for block, scale in enumerate(value.scales.flatten().tolist()):
        for first in range(0, size, lanes):
            start = block * size + first
            elements = tuple(codes[start : start + lanes])
            payload = _pack(elements, element_bits) | scale << (lanes * element_bits)
            beats.append(
                Expected(
                    payload, mask, node, token, first_block + block, elements, first, element_bits
                )
            )
    return beats


def _fixed_beats(
    node: Node, values: torch.Tensor, valid: int, token: int, lanes: int, first: int
) -> list[Expected]:
    beats = []
    row = values.flatten().tolist()[:valid]
    for start in range(0, valid, lanes):
        elements = tuple(row[start : start + lanes])
        mask = (1 << (len(elements) * FIXED_BITS)) - 1
        payload = _pack(elements, FIXED_BITS)
        beats.append(Expected(payload, mask, node, token, first, elements, start, FIXED_BITS))
    return beats


def _node_beats(node: Node, value: Any, token: int, position: int, lanes: int) -> list[Expected]:
    target = node.target
    if target is ops.scores:
        heads = value.shape[-2]
        parts = [
            _fixed_beats(node, value[0, head], position + 1, token, lanes, head)
            for head in range(heads)
        ]
        return [beat for part in parts for beat in part]
    if target is ops.logits:
        return _fixed_beats(node, value, value.numel(), token, lanes, 0)
    if target is ops.argmax:
        index = int(value)
        return [Expected(index, -1, node, token, 0, (index,), 0, 0)]
    if isinstance(value, Probabilities):
        numerators = value.numerators
        used = position // numerators.format.block_size + 1
        beats = []
        for head in range(numerators.scales.shape[-2]):
            row = MXTensor(
                numerators.elements[0, head, : used * numerators.format.block_size],
                numerators.scales[0, head, :used],
                numerators.format,
            )
            beats += _block_beats(
                node, row, token, lanes, row.format.element.bits, first_block=head * used
            )
        return beats
    return _block_beats(node, value, token, lanes, value.format.element.bits)


def expected_streams(
    trace: GoldenTrace,
    *,
    token: int,
    position: int,
    sampled: bool,
    lanes: int,
    logits: bool = False,
) -> dict[str, list[Expected]]:
    """Transfers of every observable stream for the trace's latest token, in order.

    Parameters
    ----------
    trace : GoldenTrace
    token : int
        Number of the token in the run.
    position : int
    sampled : bool
        Whether the head runs.
    lanes : int
        Elements of a beat.
    logits : bool
        Whether a copy of the logits leaves the decoder.
    """
    streams: dict[str, list[Expected]] = {}
    gates: dict[Node, list[Expected]] = {}
    for node, value in trace.values.items():
        name = stream_of(node)
        if name is None or (not sampled and node.target in (ops.logits, ops.argmax)):
            continue
        beats = _node_beats(node, value, token, position, lanes)
        if node.target is ops.embedding:
            streams.setdefault("residual.o", []).extend(beats)
        elif node.target is ops.logits and logits:
            streams.setdefault("o_logits", []).extend(beats)
        user = next(iter(node.users))
        if user.target is ops.swiglu:
            gates[node] = beats
            gate, up = user.args
            if gate in gates and up in gates:
                streams.setdefault(name, []).extend(_in_turns(gates[gate], gates[up]))
            continue
        streams.setdefault(name, []).extend(beats)
    return streams


def _in_turns(first: list[Expected], second: list[Expected]) -> list[Expected]:
    """Blocks of both in turns, as the interleaved rows come out of the engine."""
    merged = []
    blocks = sorted({beat.block for beat in first})
    for block in blocks:
        merged += [beat for beat in first if beat.block == block]
        merged += [beat for beat in second if beat.block == block]
    return merged
