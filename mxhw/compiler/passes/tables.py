"""Entries of every function table, from the accuracy that a node's result needs."""

from torch import fx

from mxhw import ops
from mxhw.compiler.frontend import source_line
from mxhw.compiler.passes.base import GraphPass, LoweringOptions
from mxhw.errors import UserError
from mxhw.formats import BlockFormat
from mxhw.lut.choice import choose_tables

__all__ = ["NODE_TABLES", "ChooseTables", "half_step"]

NODE_TABLES: dict[object, tuple[str, ...]] = {
    ops.rms_norm: ("rsqrt",),
    ops.softmax: ("exp2",),
    ops.attention_values: ("reciprocal",),
    ops.swiglu: ("exp2", "reciprocal"),
    ops.silu: ("exp2", "reciprocal"),
}
"""Functions that an operator looks up."""


def half_step(format: BlockFormat) -> float:
    """Half a step of the largest elements of a block, relative to their magnitude's bound."""
    element = format.element
    return 2.0 ** -(element.fraction_bits + element.max_exponent + 2)


class ChooseTables(GraphPass):
    """Give each node's tables as many entries as its share of a rounding error needs.

    The bound is the options' ``table_budget`` times :func:`half_step` of the activation format, to
    which every result is rounded before it is multiplied again.
    """

    name = "choose-tables"
    summary = "function tables get the entries that the accuracy budget needs"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        largest = options.table_budget * half_step(options.activation_format)
        for node in module.graph.nodes:
            functions = NODE_TABLES.get(node.target)
            if functions is None:
                continue
            try:
                use = choose_tables(functions, largest)
            except ValueError as error:
                raise UserError(
                    f"Table budget of {options.table_budget:g} is too small for {node.name} at "
                    f"{source_line(node)}: {error}"
                ) from None
            bits = {f"{function}_bits": count for function, count in use.index_bits.items()}
            node.kwargs = {**node.kwargs, **bits}
            node.meta["tables"] = use
