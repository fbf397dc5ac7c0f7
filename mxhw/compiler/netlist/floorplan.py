"""Where the cells of a placed design lie, by unit: a summary of the netlist that nextpnr writes."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from mxhw.compiler.netlist.cells import UnitOf, assign_cells
from mxhw.compiler.netlist.document import read_netlist, top_module

__all__ = ["Floorplan", "read_floorplan"]

_BEL = re.compile(r"X(\d+)/Y(\d+)/")
_BLOCKS = ("DP16KD", "PDPW16KD", "MULT18X18D")
"""Cells that are drawn alone: block RAMs and multipliers."""
_LOGIC = ("TRELLIS_COMB", "TRELLIS_FF", "TRELLIS_RAMW")


@dataclass(frozen=True)
class Floorplan:
    """Places of a design's cells on the device's grid.

    Members
    -------
    columns, rows : int
        Of the part of the grid that is used, counted from its corner.
    units : tuple of str
    tiles : tuple of (int, int, int, int)
        Column, row, number of the unit that most of the tile's logic belongs to, and how many
        cells of logic it has.
    blocks : tuple of (int, int, int, str)
        Column, row, number of the unit and type of each block RAM and multiplier.
    """

    columns: int
    rows: int
    units: tuple[str, ...]
    tiles: tuple[tuple[int, int, int, int], ...]
    blocks: tuple[tuple[int, int, int, str], ...]


def read_floorplan(placed: Path, unit_of: UnitOf) -> Floorplan:
    """Summarise a placed netlist.

    Parameters
    ----------
    placed : Path
        Written by nextpnr's ``--write``.
    unit_of : callable
        Maps the hierarchy of a name to a unit.

    Raises
    ------
    BuildError
        If the file is no netlist.
    """
    module = top_module(read_netlist(placed))
    assigned = assign_cells(module, unit_of)
    units = sorted(set(assigned.values()))
    numbers = {unit: number for number, unit in enumerate(units)}
    logic: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    blocks = []
    columns = rows = 0
    for name, unit in assigned.items():
        cell = module["cells"][name]
        place = _BEL.match(str(cell["attributes"].get("NEXTPNR_BEL", "")))
        if place is None:
            continue
        column, row = int(place[1]), int(place[2])
        columns, rows = max(columns, column + 1), max(rows, row + 1)
        if cell["type"] in _BLOCKS:
            blocks.append((column, row, numbers[unit], cell["type"]))
        elif cell["type"] in _LOGIC:
            logic[column, row][numbers[unit]] += 1
    tiles = [
        (column, row, max(counts, key=lambda n: (counts[n], -n)), sum(counts.values()))
        for (column, row), counts in sorted(logic.items())
    ]
    return Floorplan(columns, rows, tuple(units), tuple(tiles), tuple(sorted(blocks)))
