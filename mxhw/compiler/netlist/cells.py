"""Cells of a flat netlist by the unit that they belong to.

Synthesis works on the flattened design, so that logic is shared and moved across units; what is
left of the hierarchy are names. A cell that kept its name belongs to the unit of that name, another
one to the unit whose net it drives. One that drives only nets without a name belongs to the unit to
which most of its readers belong, or else most of the cells that it reads.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mxhw.compiler.netlist.index import Index

__all__ = ["OTHER", "UnitOf", "assign_cells", "count_by_unit"]

OTHER = "other"
"""What nothing tells the place of."""

UnitOf: TypeAlias = Callable[[Sequence[str]], str | None]
"""Maps the hierarchy of a name to the name of a unit, or to None."""

_ROUNDS = 40


def _path(name: str) -> list[str]:
    """Hierarchy in a name, also in one that flattening has made; else the name alone."""
    if name.startswith("$") and not name.startswith("$flatten"):
        return [name]
    return re.sub(r"[\\$]", "", name.removeprefix("$flatten")).split(".")


def _net_bits(module: Mapping[str, Any]) -> dict[int, list[str]]:
    """The hierarchical name of every bit that has one; the deepest of several."""
    names: dict[int, list[str]] = {}
    for name, net in module["netnames"].items():
        path = _path(name)
        for bit in net["bits"]:
            if isinstance(bit, int) and len(path) > len(names.get(bit, ())):
                names[bit] = path
    return names


def _most(votes: Iterable[str | None]) -> str | None:
    counts = Counter(vote for vote in votes if vote is not None)
    return max(counts, key=lambda unit: (counts[unit], unit)) if counts else None


def _spread(units: dict[str, str | None], neighbours: Mapping[str, set[str]]) -> bool:
    """Give cells without a unit that of most neighbours; whether any got one."""
    found = {
        cell: unit
        for cell, known in units.items()
        if known is None
        and (unit := _most(units[other] for other in sorted(neighbours[cell]))) is not None
    }
    units.update(found)
    return bool(found)


def assign_cells(module: Mapping[str, Any], unit_of: UnitOf) -> dict[str, str]:
    """The unit of every cell of a flat netlist, :data:`OTHER` for the few that nothing tells.

    Parameters
    ----------
    module : mapping
        The top module of a JSON netlist of Yosys.
    unit_of : callable
    """
    names = _net_bits(module)
    index = Index(module)
    driven: dict[str, list[str | None]] = defaultdict(list)
    sinks: dict[str, set[str]] = defaultdict(set)
    sources: dict[str, set[str]] = defaultdict(set)
    for bit, (driver, _output) in index.drivers.items():
        driven[driver].append(unit_of(names[bit]) if bit in names else None)
        for reader, _input in index.readers.get(bit, ()):
            sinks[driver].add(reader)
            sources[reader].add(driver)
    units = {
        name: unit_of(_path(name)) or _most(driven[name])
        for name, cell in module["cells"].items()
        if cell["type"] != "$scopeinfo"
    }
    for neighbours in (sinks, sources):
        for _ in range(_ROUNDS):
            if not _spread(units, neighbours):
                break
    return {name: unit or OTHER for name, unit in units.items()}


def count_by_unit(module: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Count assigned cells by unit and type."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, unit in units.items():
        counts[unit][module["cells"][name]["type"]] += 1
    return {unit: dict(sorted(cells.items())) for unit, cells in sorted(counts.items())}
