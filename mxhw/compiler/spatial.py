# amaranth: UnusedElaboratable=no
"""Spatial binding: a unit for each node, linked as the graph is."""

from typing import Any

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from torch import fx

from mxhw import ops
from mxhw.arith.shapes import BlockBeat
from mxhw.compiler.binding import engine_format
from mxhw.compiler.frontend import Node
from mxhw.compiler.passes import LoweringOptions
from mxhw.dataflow.linear import Linear
from mxhw.dataflow.link import link
from mxhw.dataflow.swiglu import Silu
from mxhw.errors import UserError
from mxhw.formats import parse_format

__all__ = ["SpatialDesign", "bind_spatial"]


class SpatialDesign(wiring.Component):
    """A chain of units, one for each node of a lowered graph.

    Contract: the graph's golden reading, vector by vector.

    Parameters
    ----------
    units : list of (str, Component)
        Names and units in order; each has the streams ``i`` and ``o``.

    Members
    -------
    i : In(stream of BlockBeat)
    o : Out(stream of BlockBeat)

    Timing
    ------
    All units work at once; the interval of a vector is that of the slowest.
    """

    def __init__(self, units: list[tuple[str, Any]], first: BlockBeat, last: BlockBeat):
        self._units = units
        super().__init__({"i": In(stream.Signature(first)), "o": Out(stream.Signature(last))})

    @property
    def units(self) -> list[tuple[str, Any]]:
        """Names and units, in order."""
        return list(self._units)

    def elaborate(self, platform) -> Module:
        m = Module()
        source = wiring.flipped(self.i)
        for name, unit in self._units:
            m.submodules[name] = unit
            link(m, source, unit.i)
            source = unit.o
        link(m, source, wiring.flipped(self.o))
        return m


def bind_spatial(
    lowered: fx.GraphModule, options: LoweringOptions, *, rows: int = 4
) -> SpatialDesign:
    """Give each node of a lowered graph a unit of its own.

    The graph must be a chain of Linear and SiLU nodes from one input to one output.

    Raises
    ------
    UserError
        With the first node that is something else, or has more than one reader.
    """
    units: list[tuple[str, Any]] = []
    previous: Any = None
    for node in lowered.graph.nodes:
        if node.op == "placeholder":
            previous = node
        elif node.op == "call_function":
            if node.args[0] is not previous or len(node.users) != 1:
                raise UserError(
                    f"Operator {node.name} ({node.meta.get('source', node.name)}) is not part of "
                    f"a chain; the spatial binding takes one input, one output and no branches"
                )
            units.append((node.name, _unit(lowered, node, options, rows)))
            previous = node
    if not units:
        raise UserError("Graph has no operator to bind")
    first = BlockBeat(format=options.activation_format, lanes=rows)
    last = BlockBeat(format=parse_format(previous.kwargs["format"]), lanes=rows)
    return SpatialDesign(units, first, last)


def _unit(lowered: fx.GraphModule, node: Node, options: LoweringOptions, rows: int) -> Any:
    format: Any = parse_format(node.kwargs["format"]) if "format" in node.kwargs else None
    if node.target is ops.linear:
        return Linear(
            weight=getattr(lowered, str(node.args[1].target)),
            x_format=options.activation_format,
            format=format,
            engine_format=engine_format(options.weight_format, options.activation_format),
            rows=rows,
        )
    if node.target is ops.silu:
        return Silu(
            wide_format=options.wide_format,
            format=format,
            lanes_in=rows,
            lanes=1,
            lanes_out=rows,
            exp2_bits=node.kwargs["exp2_bits"],
            reciprocal_bits=node.kwargs["reciprocal_bits"],
        )
    raise UserError(
        f"Operator {node.name} ({node.meta.get('source', node.name)}) has no spatial unit; "
        f"supported are Linear and SiLU"
    )
