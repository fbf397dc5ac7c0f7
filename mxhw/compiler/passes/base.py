"""What a pass is, and the settings that passes share."""

import dataclasses
from collections.abc import Iterable

from torch import fx

from mxhw.compiler.context import TABLE_BUDGET
from mxhw.errors import BuildError
from mxhw.formats import BlockFormat

__all__ = ["GraphPass", "LoweringOptions", "VerificationError", "erase_dead"]


@dataclasses.dataclass(frozen=True)
class LoweringOptions:
    """Formats and accuracy of a lowered graph.

    Members
    -------
    weight_format : BlockFormat
        Constant matrices.
    activation_format : BlockFormat
        Operands of matrix operators, keys and values.
    wide_format : BlockFormat
        Edges that only add or feed pointwise operators.
    table_budget : float
        Largest relative error that a node's function tables may have, in half steps of the
        activation format.
    """

    weight_format: BlockFormat = BlockFormat.mxint(8)
    activation_format: BlockFormat = BlockFormat.mxint(8)
    wide_format: BlockFormat = BlockFormat.mxint(16)
    table_budget: float = TABLE_BUDGET


class VerificationError(BuildError):
    """A graph broke a rule of the stage it is in: a defect of the compiler."""


class GraphPass:
    """One named transformation of a graph, in place.

    Members
    -------
    name, summary : str
    """

    name = ""
    summary = ""

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        """Transform the graph."""
        raise NotImplementedError


def erase_dead(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
    """Erase nodes that have no users left, last first."""
    for node in reversed(list(nodes)):
        if not node.users:
            module.graph.erase_node(node)
