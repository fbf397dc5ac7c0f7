"""What every nonlinear node of a lowered graph looks up."""

import math
from typing import Any

from torch import fx

from mxhw import ops
from mxhw.compiler.describe import NODE_UNITS
from mxhw.compiler.float_reading import NONLINEAR
from mxhw.compiler.passes import LoweringOptions
from mxhw.compiler.passes.tables import half_step
from mxhw.sw.golden.rope import ROPE_FRACTION_BITS

__all__ = ["nonlinear_nodes"]


def nonlinear_nodes(lowered: fx.GraphModule, options: LoweringOptions) -> list[dict[str, Any]]:
    """Every nonlinear node with its unit and its tables, in the order of the graph.

    Returns
    -------
    list of dict
        ``node``, ``operator``, ``unit``; ``tables``: entries by function; ``allowed_error`` and
        ``largest_error``: relative, of the budget and of the tables over all their codes.
    """
    allowed = options.table_budget * half_step(options.activation_format)
    rows = []
    for node in lowered.graph.nodes:
        if node.target not in NONLINEAR:
            continue
        if node.target is ops.rope:
            # A memory of every position's rounded angles.
            tables = {"angle": node.kwargs["context"] * node.kwargs["head_size"] // 2}
            error = math.sqrt(2) * 2.0 ** -(ROPE_FRACTION_BITS + 1)
        else:
            use = node.meta["tables"]
            tables = {function: 1 << bits for function, bits in use.index_bits.items()}
            error = use.error
        rows.append(
            {
                "node": node.name,
                "operator": node.target.__name__,
                "unit": NODE_UNITS.get(node.target, ("",))[-1],
                "tables": tables,
                "allowed_error": allowed,
                "largest_error": error,
            }
        )
    return rows
