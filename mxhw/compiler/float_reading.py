"""The lowered graph in float64 with the weights as trained, and how far golden is from it.

The graph is the same, node for node, so that every node of the golden reading has a float value to
be compared with. Three errors are measured for a
node:

* *error*: golden's value against the float value of the whole graph; it holds what all nodes before
  it added, and what the node added itself;
* *added error*: golden's value against the float operator on golden's own operands; what the
  node alone adds;
* *function error*: the part of it that is there before the result is rounded to its format: what a
  nonlinear node's tables and cut codes add.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mxhw import ops
from mxhw.compiler.frontend import Node
from mxhw.compiler.lower import reset_caches
from mxhw.compiler.trace import GoldenTrace
from mxhw.formats import SCALE_BIAS, BlockFormat, parse_format
from mxhw.sw.golden.attention import Probabilities, reciprocal
from mxhw.sw.golden.cache import KeyStore, ValueStore
from mxhw.sw.golden.linear import FIXED_FRACTION_BITS
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["FLOAT_OPERATORS", "NONLINEAR", "FloatReading", "NodeError", "measure_node_errors"]

_TOTAL_FRACTION_BITS = 31
_FINE_BITS = 24
"""Elements whose rounding is nothing beside a function's error."""


class _Rows:
    """Cached rows by position: the float twin of golden's stores."""

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}

    def write(self, row: Tensor, position: Tensor) -> Tensor:
        """Store one token's row; return the rows of all positions up to it."""
        last = int(position)
        self.rows[last] = row[0]
        return torch.stack([self.rows[index] for index in range(last + 1)])


def _linear(x: Tensor, weight: Tensor, **_: Any) -> Tensor:
    return x @ weight.T


def _embedding(table: Tensor, token: Tensor, **_: Any) -> Tensor:
    return table[token]


def _rms_norm(x: Tensor, weight: Tensor | None, *, epsilon: float, dim: int, **_: Any) -> Tensor:
    result = x * torch.rsqrt(x.square().sum(-1, keepdim=True) / dim + epsilon)
    return result if weight is None else result * weight


def _rope(
    x: Tensor,
    position: Tensor,
    *,
    head_size: int,
    theta: float,
    rotary: int | None = None,
    slots: int = 1,
    **_: Any,
) -> Tensor:
    rotary = rotary or head_size
    part = head_size // slots // 2
    pairs = torch.arange(part, dtype=torch.float64)
    angle = position.double().unsqueeze(-1) * torch.exp(-2 * pairs / rotary * math.log(theta))
    cosine, sine = angle.cos().unsqueeze(-2), angle.sin().unsqueeze(-2)
    values = x.unflatten(-1, (-1, part, 2))
    even, odd = values[..., 0], values[..., 1]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-3)


def _write(row: Tensor, position: Tensor, store: _Rows) -> Tensor:
    return store.write(row, position)


def _scores(query: Tensor, keys: Tensor, *, heads: int, kv_heads: int, slots: int = 1) -> Tensor:
    rows = query.unflatten(-1, (heads, -1))
    return torch.einsum("thd,phd->thp", rows, _slot_of_each(keys, heads, kv_heads, slots))


def _slot_of_each(cached: Tensor, heads: int, kv_heads: int, slots: int) -> Tensor:
    """Rows ``[positions, heads, elements]`` that each head sees, by block and by slot."""
    rows = cached.unflatten(-1, (kv_heads, slots, -1))
    return rows.repeat_interleave(heads // kv_heads // slots, -3).flatten(-3, -2)


def _softmax(score: Tensor, values: Tensor, position: Tensor, **_: Any) -> Tensor:
    visible = torch.arange(score.shape[-1]) <= position[:, None, None]
    return (score * math.log(2)).masked_fill(~visible, -math.inf).softmax(-1)


def _attention_values(
    probabilities: Tensor, values: Tensor, *, kv_heads: int, slots: int = 1, **_: Any
) -> Tensor:
    cached = _slot_of_each(values, probabilities.shape[-2], kv_heads, slots)
    return torch.einsum("thp,phd->thd", probabilities, cached).flatten(-2)


def _silu(x: Tensor, **_: Any) -> Tensor:
    return torch.nn.functional.silu(x)


def _swiglu(gate: Tensor, up: Tensor, **_: Any) -> Tensor:
    return torch.nn.functional.silu(gate) * up


FLOAT_OPERATORS: dict[Any, Callable[..., Tensor]] = {
    ops.embedding: _embedding,
    ops.linear: _linear,
    ops.logits: _linear,
    ops.argmax: lambda logits: logits.argmax(-1),
    ops.rms_norm: _rms_norm,
    ops.rope: _rope,
    ops.key_cache: _write,
    ops.value_cache: _write,
    ops.scores: _scores,
    ops.softmax: _softmax,
    ops.attention_values: _attention_values,
    ops.swiglu: _swiglu,
    ops.silu: _silu,
    ops.add: lambda x, y, **_: x + y,
    ops.bias: lambda x, constant, **_: x + constant,
    ops.requantize: lambda x, **_: x,
}
"""What an operator computes without any rounding, one token at a time."""


NONLINEAR = (
    ops.rms_norm,
    ops.rope,
    ops.softmax,
    ops.attention_values,
    ops.swiglu,
    ops.silu,
)
"""Operators that look up a function."""


class FloatReading(fx.Interpreter):
    """Run a lowered decode step in float64 with the weights as they were before quantisation.

    Parameters
    ----------
    module : torch.fx.GraphModule
        Lowered decode step.

    Members
    -------
    values : dict of Node to value
        Of the latest run.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}
        self._attributes: dict[Node, Any] = {}

    def reset(self) -> None:
        """Forget every cached key and value."""
        self._attributes = {
            node: value for node, value in self._attributes.items() if not isinstance(value, _Rows)
        }

    def run_node(self, n: Node) -> Any:
        """Run one node and keep its value."""
        self.values[n] = value = self._value(n)
        return value

    def _value(self, node: Node) -> Any:
        if node.op == "get_attr":
            if node not in self._attributes:
                self._attributes[node] = self._attribute(node)
            return self._attributes[node]
        if node.op == "call_function":
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            return FLOAT_OPERATORS[node.target](*args, **kwargs)
        return super().run_node(node)

    def _attribute(self, node: Node) -> Any:
        value = self.fetch_attr(str(node.target))
        if isinstance(value, (KeyStore, ValueStore)):
            return _Rows()
        return node.meta["exact"]


@dataclasses.dataclass(frozen=True)
class NodeError:
    """Error of a node's golden values over the tokens of a run.

    Members
    -------
    error : float
        Root mean square of golden minus float, over the root mean square of float; for a choice of
        tokens the share of tokens that differ.
    added : float or None
        The same against the float operator on golden's operands; None for what only stores.
    largest : float
        Largest difference of an element, over the largest magnitude of float.
    function : float or None
        The part of ``added`` that a nonlinear node's function makes; None for other nodes.
    """

    error: float
    added: float | None
    largest: float
    function: float | None = None


class _Sum:
    """Squares of differences, added up over tokens."""

    def __init__(self) -> None:
        self.difference = self.reference = self.largest = self.peak = 0.0

    def add(self, value: Tensor, reference: Tensor) -> None:
        """Count one token's values."""
        gap = value - reference
        self.difference += float(gap.square().sum())
        self.reference += float(reference.square().sum())
        self.largest = max(self.largest, float(gap.abs().max()))
        self.peak = max(self.peak, float(reference.abs().max()))

    @property
    def ratio(self) -> float:
        """Relative root mean square."""
        return math.sqrt(self.difference / self.reference) if self.reference else 0.0

    @property
    def largest_ratio(self) -> float:
        """Largest difference over the largest reference."""
        return self.largest / self.peak if self.peak else 0.0


def _probabilities(value: Probabilities, values: MXTensor, kv_heads: int) -> Tensor:
    """Golden's probabilities: numerators without the values' scales, over their total."""
    positions = values.scales.shape[0]
    scales = values.scales.T.to(torch.int64)
    scales = scales.repeat_interleave(value.total.shape[-1] // kv_heads, 0)
    numerators = value.numerators.dequantize().double()[..., :positions]
    total = torch.ldexp(value.total.double(), torch.tensor(-_TOTAL_FRACTION_BITS))
    return torch.ldexp(numerators, SCALE_BIAS - scales) / total.unsqueeze(-1)


def _as_float(node: Node, value: Any, golden: dict[Node, Any]) -> Any:
    """A node's golden value as float64."""
    if isinstance(value, MXTensor):
        return value.dequantize().double()
    if isinstance(value, Probabilities):
        return _probabilities(value, golden[node.args[1]], node.kwargs["kv_heads"])
    if node.target in (ops.scores, ops.logits):
        return torch.ldexp(value.double(), torch.tensor(-FIXED_FRACTION_BITS))
    return value


_STORES = (ops.key_cache, ops.value_cache)


def _alone(node: Node, golden: dict[Node, Any], exact: FloatReading) -> Tensor:
    """The float operator on golden's operands; constants stay as trained."""

    def operand(argument: Node) -> Any:
        if argument.op == "get_attr":
            return exact.values[argument]
        return _as_float(argument, golden[argument], golden)

    args = fx.node.map_arg(node.args, operand)
    return FLOAT_OPERATORS[node.target](*args, **node.kwargs)


def _unrounded(node: Node, golden: dict[Node, Any]) -> tuple[Tensor, Tensor]:
    """A nonlinear node's golden result before it is rounded, and the float operator's."""

    def run(operator: Any, convert: Callable[[Node, Any], Any], **kwargs: Any) -> Any:
        args = fx.node.map_arg(node.args, lambda argument: convert(argument, golden[argument]))
        return operator(*args, **{**node.kwargs, **kwargs})

    if node.target is ops.attention_values:
        # Its function is the reciprocal alone, a factor of each head.
        total = golden[node.args[0]].total
        factor = reciprocal(total, node.kwargs["reciprocal_bits"]).to_float()
        exact = torch.ldexp(total.double(), torch.tensor(-_TOTAL_FRACTION_BITS))
        value = golden[node].dequantize().double().unflatten(-1, (total.shape[-1], -1))
        return value * (factor * exact).unsqueeze(-1), value
    size = parse_format(node.kwargs["format"]).block_size
    fine = BlockFormat.mxint(_FINE_BITS, size).name
    value = run(node.target, lambda _, value: value, format=fine)
    exact = run(FLOAT_OPERATORS[node.target], lambda n, value: _as_float(n, value, golden))
    return _as_float(node, value, golden), exact


@torch.no_grad()
def measure_node_errors(
    lowered: fx.GraphModule,
    tokens: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, NodeError]:
    """Run a text through golden and through the float reading and compare every node.

    Both are given the same tokens from position 0 on, and each keeps its own keys and values.

    Parameters
    ----------
    lowered : torch.fx.GraphModule
        Lowered decode step.
    tokens : sequence of int
        At most the context.
    on_progress : callable, optional
        Called with the tokens done and their number.

    Returns
    -------
    dict of str to NodeError
        By node name, in the order of the graph.
    """
    golden, exact = GoldenTrace(lowered), FloatReading(lowered)
    nodes = [node for node in lowered.graph.nodes if node.op == "call_function"]
    sums = {node: (_Sum(), _Sum(), _Sum()) for node in nodes}
    wrong = {node: 0 for node in nodes if node.target is ops.argmax}
    reset_caches(lowered)
    for position, token in enumerate(tokens):
        inputs = (torch.tensor([token]), torch.tensor([position]))
        golden.run(*inputs)
        exact.run(*inputs)
        for node in nodes:
            value = _as_float(node, golden.values[node], golden.values)
            if node in wrong:
                wrong[node] += int(value != exact.values[node])
                continue
            sums[node][0].add(value, exact.values[node])
            if node.target not in _STORES:
                sums[node][1].add(value, _alone(node, golden.values, exact))
            if node.target in NONLINEAR:
                sums[node][2].add(*_unrounded(node, golden.values))
        if on_progress is not None:
            on_progress(position + 1, len(tokens))
    reset_caches(lowered)
    result = {}
    for node in nodes:
        whole, own, unrounded = sums[node]
        if node in wrong:
            share = wrong[node] / len(tokens)
            result[node.name] = NodeError(share, None, share)
        else:
            added = None if node.target in _STORES else own.ratio
            function = unrounded.ratio if node.target in NONLINEAR else None
            result[node.name] = NodeError(whole.ratio, added, whole.largest_ratio, function)
    return result
