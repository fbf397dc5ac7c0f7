"""Sites of the matrix engine's multipliers and of the block RAMs that feed them.

They fill nearly all sites of a device, in a few rows across all of it, and a placer finds their
order late if at all. The order is known: lanes side by side, each lane's multipliers of all engine
rows next to the block RAMs of its weights, keys and values. With these sites fixed the wires of an
LFE5U-85F get a quarter shorter, and placement and routing take a fraction of the time.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mxhw.compiler.netlist.index import Index

__all__ = ["place_engine"]

_MULTIPLIER = "MULT18X18D"
_BLOCK_RAM = "DP16KD"
_COMBINATIONAL = {"LUT4", "PFUMX", "L6MUX21"}
_REGISTER = "TRELLIS_FF"
_PRODUCT = re.compile(r"\.tree_(\d+)\.product_(\d+)(_full)?$")
"""Name of the net of a product: the engine's row, and the lane."""

_GROUPS = (*range(4, 59, 9), *range(69, 115, 9))
"""Columns where groups of four sites begin, of multipliers as of block RAMs: LFE5U-85F."""
_MULTIPLIER_SITES = ((0, "MULT18_0"), (1, "MULT18_1"), (4, "MULT18_4"), (5, "MULT18_5"))
_MULTIPLIER_ROWS = (10, 34, 58)
_BLOCK_RAM_SITES = ((0, "EBR0"), (2, "EBR1"), (4, "EBR2"), (6, "EBR3"))
_BLOCK_RAM_ROWS = (22, 46, 70, 82)
_CENTRE = (62, 46)
_SPARE = 4
"""Sites of the middle beyond those needed: a placer that has to fill all may never find the way."""
_ROW_WEIGHT = 0.5
"""Cost of a tile's distance across rows in those along them: a lane's place along counts more."""


@dataclass(frozen=True, order=True)
class _Site:
    x: int
    y: int
    name: str

    def distance(self, x: float, y: float) -> float:
        return abs(self.x - x) + _ROW_WEIGHT * abs(self.y - y)


def place_engine(module: dict[str, Any], device: str) -> int:
    """Give the engine's multipliers and the block RAMs that feed them a site, in lane order.

    Cells get the attribute ``BEL``, which nextpnr keeps to. The sites nearest to the middle of the
    device stay free for the other cells of these types. Nothing is done for a device whose sites
    are not known, or without an engine.

    Parameters
    ----------
    module : dict
        A module of a netlist as Yosys writes it with ``write_json``; changed in place.
    device : str
        nextpnr's name of the die: ``"85k"``, ``"um5g-85k"``.

    Returns
    -------
    int
        Cells that got a site.
    """
    if not device.endswith("85k"):
        return 0
    cells = module["cells"]
    index = Index(module)
    lanes = _lanes(module, index)
    free = sum(cell["type"] == _MULTIPLIER for cell in cells.values()) - len(lanes)
    sites = _choose_sites(_sites(_MULTIPLIER_ROWS, _MULTIPLIER_SITES), len(lanes), free)
    if not lanes or not sites:
        return 0
    placed = _place_multipliers(lanes, sites)
    wanted = _block_ram_places(cells, index, placed)
    free = sum(cell["type"] == _BLOCK_RAM for cell in cells.values()) - len(wanted)
    sites = _choose_sites(_sites(_BLOCK_RAM_ROWS, _BLOCK_RAM_SITES), len(wanted), free)
    if sites:
        placed |= _assign(wanted, sites)
    for name, site in placed.items():
        cells[name]["attributes"]["BEL"] = site.name
    return len(placed)


def _sites(rows: Sequence[int], columns: Sequence[tuple[int, str]]) -> list[_Site]:
    return [
        _Site(group + offset, row, f"X{group + offset}/Y{row}/{bel}")
        for row in rows
        for group in _GROUPS
        for offset, bel in columns
    ]


def _choose_sites(sites: list[_Site], count: int, free: int) -> list[_Site]:
    """``count`` sites around the ``free`` ones in the middle; none if there are too few.

    Some of the sites that remain are left in the middle too.
    """
    remaining = len(sites) - count - free
    if remaining < 0:
        return []
    first = free + min(remaining // 2, _SPARE)
    return sorted(sites, key=lambda site: (site.distance(*_CENTRE), site))[first : first + count]


def _lanes(module: dict[str, Any], index: Index) -> dict[str, tuple[int, int]]:
    """Lane and engine row of each of the engine's multipliers."""
    result: dict[str, tuple[int, int]] = {}
    for net, value in module["netnames"].items():
        match = _PRODUCT.search(net)
        if match is None:
            continue
        for bit in value["bits"]:
            driver = index.drivers.get(bit)
            if driver is not None and module["cells"][driver[0]]["type"] == _MULTIPLIER:
                result[driver[0]] = (int(match[2]), int(match[1]))
    return result


def _place_multipliers(lanes: dict[str, tuple[int, int]], sites: list[_Site]) -> dict[str, _Site]:
    """Lanes from left to right, engine rows from the bottom up within a lane."""
    order = sorted(sites)
    rows = 1 + max(row for _lane, row in lanes.values())
    low, high = min(site.y for site in sites), max(site.y for site in sites)
    names = sorted(lanes, key=lambda name: lanes[name])
    by_lane = defaultdict(list)
    for name, site in zip(names, order, strict=True):
        by_lane[lanes[name][0]].append(site.x)
    wanted = {}
    for name in names:
        lane, row = lanes[name]
        columns = by_lane[lane]
        wanted[name] = (
            sum(columns) / len(columns),
            low + (high - low) * (row + 0.5) / rows,
        )
    return _assign(wanted, sites)


def _block_ram_places(
    cells: dict[str, Any], index: Index, placed: dict[str, _Site]
) -> dict[str, tuple[float, float]]:
    """Where each block RAM wants to be that feeds the engine: amid the multipliers it reaches."""
    wanted = {}
    for name, cell in cells.items():
        if cell["type"] == _BLOCK_RAM:
            reached = [placed[reader] for reader in _reach(cells, index, cell) & set(placed)]
            if reached:
                wanted[name] = (
                    sum(site.x for site in reached) / len(reached),
                    sum(site.y for site in reached) / len(reached),
                )
    return wanted


def _reach(cells: dict[str, Any], index: Index, start: Any) -> set[str]:
    """Multipliers that a cell's outputs reach through lookup tables and one register."""
    found: set[str] = set()
    seen: set[tuple[str, bool]] = set()
    front = [(start, False)]
    while front:
        cell, registered = front.pop()
        for name in _read_by(cell, index):
            kind = cells[name]["type"]
            step = (name, registered or kind == _REGISTER)
            if kind == _MULTIPLIER:
                found.add(name)
            elif step not in seen and (
                kind in _COMBINATIONAL or (kind == _REGISTER and not registered)
            ):
                seen.add(step)
                front.append((cells[name], step[1]))
    return found


def _read_by(cell: Any, index: Index) -> Iterator[str]:
    """Cells that read a cell's outputs."""
    for port, bits in cell["connections"].items():
        if cell["port_directions"][port] == "output":
            for bit in bits:
                for name, _port in index.readers.get(bit, ()):
                    yield name


def _assign(wanted: dict[str, tuple[float, float]], sites: list[_Site]) -> dict[str, _Site]:
    """A site for each cell: in order along the rows, then exchanged while that shortens ways."""
    names = sorted(wanted, key=lambda name: (wanted[name], name))
    chosen = sorted(sites)
    costs = [[site.distance(*wanted[name]) for site in chosen] for name in names]
    place = list(range(len(names)))
    improved = True
    while improved:
        improved = False
        for first in range(len(names)):
            for second in range(first + 1, len(names)):
                a, b = place[first], place[second]
                now = costs[first][a] + costs[second][b]
                if costs[first][b] + costs[second][a] < now - 1e-9:
                    place[first], place[second] = b, a
                    improved = True
    return {name: chosen[index] for name, index in zip(names, place, strict=True)}
