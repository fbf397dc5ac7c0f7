"""The operator set of the lowered graph.

Every node of a lowered graph calls one of these functions. Called, an operator computes its golden
reading: exact integers on MX blocks, batched over the leading axis (one row a token). Formats are
given by name, so that a printed graph reads well and runs. The arguments ``exp2_bits``,
``reciprocal_bits`` and ``rsqrt_bits`` are the logarithms of tables' entries. Its other readings are
found by its name: ``info(target)`` tells what kind of unit serves it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from mxhw.formats import parse_format
from mxhw.sw.golden import attention as _attention
from mxhw.sw.golden import linear as _linear
from mxhw.sw.golden import norm as _norm
from mxhw.sw.golden import pointwise as _pointwise
from mxhw.sw.golden import rope as _rope
from mxhw.sw.golden.attention import Probabilities
from mxhw.sw.golden.cache import KeyStore, ValueStore
from mxhw.sw.golden.tensor import MXTensor, quantize_wide, widen

__all__ = [
    "OPERATORS",
    "OperatorInfo",
    "add",
    "argmax",
    "attention_values",
    "bias",
    "embedding",
    "info",
    "key_cache",
    "linear",
    "logits",
    "requantize",
    "rms_norm",
    "rope",
    "scores",
    "silu",
    "softmax",
    "swiglu",
    "value_cache",
]


@dataclasses.dataclass(frozen=True)
class OperatorInfo:
    """What the compiler knows of an operator besides its golden function.

    Members
    -------
    name : str
    unit : str
        Kind of hardware unit that serves it: ``"engine"`` for matrix operators, else the name of
        a pointwise, memory or reduction unit.
    summary : str
    """

    name: str
    unit: str
    summary: str


OPERATORS: dict[Callable[..., Any], OperatorInfo] = {}


def _operator(unit: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        OPERATORS[function] = OperatorInfo(function.__name__, unit, summary)
        return function

    return register


def info(target: Any) -> OperatorInfo | None:
    """Description of a node's target, or None if it is not an operator."""
    return OPERATORS.get(target)


@_operator("engine")
def embedding(table: MXTensor, token: torch.Tensor, *, format: str) -> MXTensor:
    """Row of a table by token number."""
    return _linear.embedding(table, token, parse_format(format))


@_operator("engine")
def linear(x: MXTensor, weight: MXTensor, *, format: str) -> MXTensor:
    """Matrix product with a constant weight, requantised."""
    return _linear.linear(x, weight, parse_format(format))


@_operator("bias")
def bias(x: MXTensor, constant: MXTensor, *, format: str) -> MXTensor:
    """Sum with a constant vector."""
    shape = x.elements.shape
    rows = MXTensor(
        constant.elements.expand(shape),
        constant.scales.expand(x.scales.shape),
        constant.format,
    )
    return _pointwise.add(x, rows, parse_format(format))


@_operator("engine")
def logits(x: MXTensor, weight: MXTensor) -> torch.Tensor:
    """Matrix product with a constant weight in fixed point."""
    return _linear.logits(x, weight)


@_operator("argmax")
def argmax(fixed: torch.Tensor) -> torch.Tensor:
    """Index of the largest logit, the first of equals."""
    return _linear.argmax(fixed)


@_operator("rms_norm")
def rms_norm(
    x: MXTensor,
    weight: MXTensor | None,
    *,
    epsilon: float,
    dim: int,
    format: str,
    rsqrt_bits: int = 5,
) -> MXTensor:
    """Root-mean-square norm with weights."""
    return _norm.rms_norm(x, weight, epsilon, dim, parse_format(format), rsqrt_bits)


@_operator("rope")
def rope(
    x: MXTensor,
    position: torch.Tensor,
    *,
    context: int,
    head_size: int,
    theta: float,
    format: str,
    rotary: int | None = None,
    slots: int = 1,
) -> MXTensor:
    """Rotary position embedding on interleaved pairs."""
    narrow = parse_format(format)
    return _rope.rope(x, position, context, head_size, theta, narrow, rotary, slots)


@_operator("key_cache")
def key_cache(k: MXTensor, position: torch.Tensor, store: KeyStore) -> MXTensor:
    """Store keys by position; the keys of every position so far."""
    return store.write(k, position)


@_operator("value_cache")
def value_cache(v: MXTensor, position: torch.Tensor, store: ValueStore) -> MXTensor:
    """Store values by position; the values of every position so far."""
    return store.write(v, position)


def _head(x: MXTensor, head: int, head_size: int) -> MXTensor:
    size = x.format.block_size
    blocks = slice(head * head_size // size, (head + 1) * head_size // size)
    elements = x.elements[..., head * head_size : (head + 1) * head_size]
    return MXTensor(elements, x.scales[..., blocks], x.format)


@_operator("engine")
def scores(
    query: MXTensor, keys: MXTensor, *, heads: int, kv_heads: int, slots: int = 1
) -> torch.Tensor:
    """Base-2 attention logits ``[tokens, heads, positions]`` in fixed point.

    Heads are counted by block, and in a block by slot.
    """
    size = query.elements.shape[-1] * slots // heads
    group = heads // kv_heads
    rows = []
    for head in range(heads):
        block, slot = divmod(head, slots)
        part = _attention.only_slot(_head(query, block, size), slot, slots)
        rows.append(_attention.scores(part, _head(keys, head // group, size)))
    return torch.stack(rows, dim=-2)


@_operator("softmax")
def softmax(
    fixed: torch.Tensor,
    values: MXTensor,
    position: torch.Tensor,
    *,
    kv_heads: int,
    format: str,
    exp2_bits: int = 5,
) -> Probabilities:
    """Softmax numerators over the positions up to the token's own, value scales folded in."""
    heads = fixed.shape[-2]
    # Blocks of one head have scales of their own, so each has its own numerators.
    blocks = values.blocks // kv_heads
    visible = torch.arange(fixed.shape[-1]) <= position.unsqueeze(-1)
    scales = values.scales.T.unflatten(0, (kv_heads, blocks))
    scales = scales.repeat_interleave(heads // kv_heads, 0).flatten(0, 1)
    fixed = fixed.repeat_interleave(blocks, -2)
    visible = visible.unsqueeze(-2).expand_as(fixed)
    return _attention.softmax(
        fixed, visible, scales.expand_as(fixed), parse_format(format), exp2_bits
    )


@_operator("engine")
def attention_values(
    probabilities: Probabilities,
    values: MXTensor,
    *,
    kv_heads: int,
    format: str,
    wide: str,
    reciprocal_bits: int = 5,
    slots: int = 1,
) -> MXTensor:
    """Probability-weighted sum of the cached values, normalised."""
    narrow = parse_format(format)
    size = narrow.block_size
    blocks = values.elements.shape[-1] // kv_heads // size
    heads = probabilities.total.shape[-1] // blocks
    parts = []
    for part in range(0, heads * blocks, slots):
        head, block = divmod(part, blocks)
        these = part if slots == 1 else slice(part, part + slots)
        rows = Probabilities(probabilities.numerators[:, these], probabilities.total[:, these])
        source = head * kv_heads // heads * blocks + block
        cached = values.elements[..., source * size : (source + 1) * size]
        parts.append(
            _attention.values(
                rows, cached, narrow, parse_format(wide), reciprocal_bits, slots=slots
            )
        )
    elements = torch.cat([part.elements for part in parts], -1)
    return MXTensor(elements, torch.cat([part.scales for part in parts], -1), narrow)


@_operator("swiglu")
def swiglu(
    gate: MXTensor, up: MXTensor, *, format: str, exp2_bits: int = 5, reciprocal_bits: int = 5
) -> MXTensor:
    """``silu(gate) * up``."""
    return _pointwise.swiglu(gate, up, parse_format(format), exp2_bits, reciprocal_bits)


@_operator("silu")
def silu(x: MXTensor, *, format: str, exp2_bits: int = 5, reciprocal_bits: int = 5) -> MXTensor:
    """``x * sigmoid(x)``."""
    return _pointwise.silu(x, parse_format(format), exp2_bits, reciprocal_bits)


@_operator("residual")
def add(x: MXTensor, y: MXTensor, *, format: str) -> MXTensor:
    """Elementwise sum."""
    return _pointwise.add(x, y, parse_format(format))


@_operator("quantizer")
def requantize(x: MXTensor, *, format: str) -> MXTensor:
    """The same values in another format."""
    return quantize_wide(widen(x), parse_format(format))
