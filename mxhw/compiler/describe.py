"""The lowered decode step as JSON: operators, formats, shapes, source lines and units."""

from typing import Any

import torch
from torch import fx

from mxhw import ops
from mxhw.compiler.frontend import Node, source_code
from mxhw.compiler.lower import reset_caches
from mxhw.compiler.trace import GoldenTrace
from mxhw.sw.golden.attention import Probabilities
from mxhw.sw.golden.linear import FIXED_BITS, FIXED_FRACTION_BITS
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["NODE_UNITS", "describe_graph"]

FIXED_NAME = f"fixed {FIXED_BITS}.{FIXED_FRACTION_BITS}"
"""Scores and logits: bits, and how many of them are fraction."""

NODE_UNITS: dict[Any, tuple[str, ...]] = {
    ops.embedding: ("weights", "embedding"),
    ops.linear: ("engine", "quantizer"),
    ops.logits: ("engine", "to_fixed"),
    ops.scores: ("engine", "to_fixed"),
    ops.softmax: ("softmax",),
    ops.attention_values: ("engine", "quantizer", "attention"),
    ops.rms_norm: ("norm",),
    ops.rope: ("rope",),
    ops.key_cache: ("keys",),
    ops.value_cache: ("values",),
    ops.swiglu: ("gated",),
    ops.add: ("residual",),
    ops.argmax: ("argmax",),
}
"""Units of the folded decoder that compute an operator, in the order the data takes."""


def _value(value: Any, context: int) -> tuple[str, list[int]]:
    """Format and shape of one token's value; axes along the positions are as long as they get."""
    if isinstance(value, Probabilities):
        heads = value.numerators.elements.shape[-2]
        return value.numerators.format.name, [heads, context]
    if isinstance(value, MXTensor):
        return value.format.name, list(value.elements.shape[1:])
    return FIXED_NAME, list(value.shape[1:])


def _describe(module: fx.GraphModule, node: Node, value: Any, context: int) -> dict[str, Any]:
    name, shape = _value(value, context)
    if node.target in (ops.key_cache, ops.value_cache):
        shape = [context, *shape]
    elif node.target is ops.scores:
        shape = [shape[0], context]
    elif node.target is ops.argmax:
        name, shape = "token", [1]
    weight = None
    for argument in node.args:
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            constant = getattr(module, str(argument.target))
            if isinstance(constant, MXTensor):
                weight = {
                    "format": constant.format.name,
                    "shape": list(constant.elements.shape),
                }
    inputs = [
        argument.name
        for argument in node.args
        if isinstance(argument, fx.Node) and argument.op != "get_attr"
    ]
    origin = str(node.meta.get("origin", ""))
    return {
        "name": node.name,
        "operator": node.target.__name__,
        "origin": origin if origin.isprintable() and " " not in origin else "",
        "source": str(node.meta.get("source", "")),
        "code": source_code(node),
        "format": name,
        "shape": shape,
        "weight": weight,
        "units": list(NODE_UNITS.get(node.target, ())),
        "inputs": inputs,
    }


@torch.no_grad()
def describe_graph(lowered: fx.GraphModule, context: int) -> dict[str, Any]:
    """Every operator of a lowered decode step, in order, with what its edges carry.

    Shapes are those of one token; axes along the positions have the length of the context.

    Parameters
    ----------
    lowered : torch.fx.GraphModule
        Lowered decode step.
    context : int
        Positions that the model has.

    Returns
    -------
    dict
        ``inputs``: names of the placeholders; ``nodes``: for each operator its ``name``,
        ``operator``, ``origin`` (the model's module), ``source`` (file and line), ``code`` (text
        of that line), ``format`` and ``shape`` of its value, ``weight`` (format and shape, or
        null), ``units`` of the hardware and ``inputs`` (names of nodes or placeholders).
    """
    trace = GoldenTrace(lowered)
    reset_caches(lowered)
    trace.run(torch.tensor([0]), torch.tensor([0]))
    reset_caches(lowered)
    nodes = lowered.graph.nodes
    return {
        "inputs": [node.name for node in nodes if node.op == "placeholder"],
        "nodes": [
            _describe(lowered, node, trace.values[node], context)
            for node in nodes
            if node.op == "call_function"
        ],
    }
