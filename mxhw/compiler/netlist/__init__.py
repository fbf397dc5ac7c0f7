"""The netlist of an ECP5 between Yosys, which writes it as JSON, and nextpnr, which places it.

Passes change a module of it in place, in the order in which :func:`improve` runs them:

1. :mod:`~mxhw.compiler.netlist.multipliers`: factors at the upper end of their ports;
2. :mod:`~mxhw.compiler.netlist.absorb`: tables into the cells behind them. Comes before the zeros,
   which hide an adder whose first operand is one;
3. :mod:`~mxhw.compiler.netlist.constants`: inputs that are constant zeros become open ones;
4. :mod:`~mxhw.compiler.netlist.sites`: sites of the matrix engine, of the cells that are left.

Others read it: :mod:`~mxhw.compiler.netlist.document` from a file,
:mod:`~mxhw.compiler.netlist.resources` counts its cells, :mod:`~mxhw.compiler.netlist.cells`
assigns them to units, :mod:`~mxhw.compiler.netlist.floorplan` tells where nextpnr put them, and
:mod:`~mxhw.compiler.netlist.timing` how fast they are.

What drives and reads a bit all of them ask :mod:`~mxhw.compiler.netlist.index`; contents of lookup
tables are the subject of :mod:`~mxhw.compiler.netlist.tables`.
"""

from typing import Any

from mxhw.compiler.netlist.absorb import absorb_tables
from mxhw.compiler.netlist.constants import absorb_zeros
from mxhw.compiler.netlist.multipliers import align_factors
from mxhw.compiler.netlist.sites import place_engine

__all__ = ["improve"]


def improve(module: dict[str, Any], die: str) -> None:
    """Run all passes: the design computes the same with fewer cells and wires.

    Parameters
    ----------
    module : dict
        A flat module as Yosys writes it with ``write_json``; changed in place.
    die : str
        nextpnr's name of the die: ``"85k"``, ``"um5g-85k"``.
    """
    align_factors(module)
    absorb_tables(module)
    absorb_zeros(module)
    place_engine(module, die)
