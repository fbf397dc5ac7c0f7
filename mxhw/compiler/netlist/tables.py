"""Contents of the lookup tables of an ECP5: those of LUT4, and one in each half of a carry cell."""

from collections.abc import Mapping
from typing import Any

__all__ = ["INPUTS", "SUFFIXES", "contents_of", "fix_inputs", "set_contents"]

INPUTS = "ABCD"
"""Inputs by place: the first is the lowest bit of the address."""

SUFFIXES = {"LUT4": ("",), "CCU2C": ("0", "1")}
"""Types of cells that have tables; what follows the names of each one's inputs and contents."""


def contents_of(cell: Mapping[str, Any], suffix: str = "") -> int:
    """Return the contents of a table of a cell, an integer of 16 bits."""
    return int(cell["parameters"][f"INIT{suffix}"], 2)


def set_contents(cell: Mapping[str, Any], suffix: str, contents: int) -> None:
    """Change the contents of a table of a cell."""
    cell["parameters"][f"INIT{suffix}"] = f"{contents:016b}"


def fix_inputs(contents: int, levels: Mapping[int, int]) -> int:
    """Return contents that ignore the inputs at some places, as if these had the given levels."""
    ignored = sum(1 << place for place in levels)
    fixed = sum(level << place for place, level in levels.items())
    return sum(
        (contents >> (address & ~ignored | fixed) & 1) << address
        for address in range(1 << len(INPUTS))
    )
