"""The ideal model of a set of formats: quantise-dequantise each matrix operand, float32 elsewhere.

It shares the formats with the hardware and none of its arithmetic, so its perplexity is what the
formats alone cost, and the bar that the hardware's numerics are measured against.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from mxhw.compiler.frontend import capture, check_supported
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import BlockFormat
from mxhw.models.llama import CausalAttention, Rope
from mxhw.sw.golden.tensor import quantize

__all__ = ["IdealModel", "round_to_format"]

_RESHAPES = ("flatten", "unflatten")


def round_to_format(x: Tensor, format: BlockFormat) -> Tensor:
    """Quantise along the last axis and convert back to float32; the shape stays."""
    length = x.shape[-1]
    return quantize(x, format).dequantize()[..., :length]


class IdealModel(fx.Interpreter):
    """A captured model in which matrix operands are rounded to their MX formats.

    Contract: every operand of a matrix product is replaced by the value of its MX blocks, which lie
    along the contraction axis:

    * input (activation format) and weight (weight format) of each Linear;
    * the embedding table (weight format);
    * queries and keys, along the head axis;
    * probabilities, along the positions, after masking and normalisation.

    Values are rounded as the hardware stores them: one row of blocks along the head axis for every
    position. The query projection's weight is multiplied by ``log2(e) / sqrt(head_size)`` before it
    is rounded, as in the lowered graph, and the attention works in base 2. Norms, rotations,
    softmax, SiLU, residuals and all sums are float32.

    Parameters
    ----------
    model : nn.Module
        A model that :func:`mxhw.compiler.lower.lower` takes, over whole sequences.
    options : LoweringOptions, optional
        Formats; the wide format is not used.

    Raises
    ------
    UserError
        If the model cannot be captured or holds unsupported operations.
    """

    def __init__(self, model: nn.Module, options: LoweringOptions | None = None) -> None:
        graph = capture(model)
        check_supported(graph)
        super().__init__(graph)
        self._options = options or LoweringOptions()
        self._graph = graph
        self._scales = self._query_scales()
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the model returns, here its logits."""
        return self.run(*inputs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate one module, with rounded operands if it multiplies matrices."""
        module = self.fetch_attr(target)
        if isinstance(module, nn.Linear):
            weight = self._rounded_weight(target, module)
            bias = None if module.bias is None else module.bias * self._scales.get(target, 1.0)
            return nn.functional.linear(self._activation(args[0]), weight, bias)
        if isinstance(module, nn.Embedding):
            return nn.functional.embedding(args[0], self._rounded_weight(target, module))
        if isinstance(module, CausalAttention):
            return self._attend(module, *args)
        return super().call_module(target, args, kwargs)

    def _activation(self, x: Tensor) -> Tensor:
        return round_to_format(x, self._options.activation_format)

    def _rounded_weight(self, target: str, module: nn.Linear | nn.Embedding) -> Tensor:
        if target not in self._weights:
            scaled = module.weight.detach().double() * self._scales.get(target, 1.0)
            self._weights[target] = round_to_format(scaled, self._options.weight_format)
        return self._weights[target]

    def _attend(
        self, module: CausalAttention, q: Tensor, k: Tensor, v: Tensor, position: Tensor
    ) -> Tensor:
        """:class:`CausalAttention` in base 2 on queries that carry the scale already."""
        q, k, v = self._activation(q), self._activation(k), self._activation(v)
        group = module.heads // module.kv_heads
        query = q.movedim(-2, -3)
        key = k.movedim(-2, -3).repeat_interleave(group, -3)
        value = v.movedim(-2, -3).repeat_interleave(group, -3)
        hidden = torch.arange(key.shape[-2]) > position.unsqueeze(-1)
        score = (query @ key.transpose(-1, -2)).masked_fill(hidden, -math.inf)
        # exp(x * ln 2) = 2**x: the scores are base-2 logits.
        weight = self._activation((score * math.log(2)).softmax(-1))
        return (weight @ value).movedim(-3, -2)

    def _query_scales(self) -> dict[str, float]:
        """Scale of every Linear whose result an attention reads as queries."""
        scales = {}
        for node in self._graph.graph.nodes:
            if node.op != "call_module":
                continue
            attention = self._graph.get_submodule(str(node.target))
            if not isinstance(attention, CausalAttention):
                continue
            source = node.args[0]
            while (
                source.op == "call_method" and source.target in _RESHAPES or self._is_rope(source)
            ):
                source = source.args[0]
            scales[str(source.target)] = math.log2(math.e) / math.sqrt(attention.head_size)
        return scales

    def _is_rope(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self._graph.get_submodule(str(node.target)), Rope
        )
