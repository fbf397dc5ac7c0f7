"""Lookup tables of an ECP5 netlist that the cells behind them can do without.

Half a carry cell has a table of four inputs, of which an adder that Yosys makes uses two. A table
before one of its operands, for instance one that inverts or clears it, fits into the others: it
costs nothing there, and its delay goes too. Flip-flops invert their reset themselves.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from mxhw.compiler.netlist.index import Index, Pin
from mxhw.compiler.netlist.tables import INPUTS, contents_of, fix_inputs, set_contents

__all__ = ["absorb_tables"]

_XOR, _XNOR = 0b0110, 0b1001
_GENERATE_A = 0b1010
"""First bits of the contents of a half that takes its carry from input A."""
_OPERANDS = {"A0", "B0", "A1", "B1"}
_INVERTER = 0b01
_ONE = "1"
"""What an open input reads."""

_Function: TypeAlias = tuple[int, list[Any]]
"""Contents of a table that depend on each of its inputs, and the nets of these from A on."""


def absorb_tables(module: dict[str, Any]) -> int:
    """Move lookup tables into the cells that they feed, where all of these can take them in.

    A half of a carry cell takes in any table of two inputs. The carry of a half is made from its
    table and from the table's first four bits, addressed by inputs A and B, so that one of three
    inputs must be idle (or invert, in a subtraction) while two of them are zero: a multiplexer, an
    AND-OR. A flip-flop takes in the inverter before its reset.

    Parameters
    ----------
    module : dict
        A module of a netlist as Yosys writes it with ``write_json``; changed in place.

    Returns
    -------
    int
        Tables saved.
    """
    cells = module["cells"]
    index = Index(module)
    waiting = deque(name for name, cell in cells.items() if _is_table(cell))
    saved = 0
    while waiting:
        name = waiting.popleft()
        if name not in cells:
            continue
        changes = _plan(cells, index, name)
        if not changes:
            continue
        sources = [bits[0] for port, bits in cells[name]["connections"].items() if port in INPUTS]
        for change in changes:
            change(index)
        index.remove(name)
        saved += 1
        # Other cells read these nets now: what drives them may have become one that fits.
        drivers = [index.drivers[source][0] for source in sources if source in index.drivers]
        waiting.extend(driver for driver in drivers if _is_table(cells[driver]))
    return saved


def _is_table(cell: dict[str, Any]) -> bool:
    return cell["type"] == "LUT4" and not int(cell.get("attributes", {}).get("keep", "0"), 2)


_Change: TypeAlias = Callable[[Index], None]


def _plan(cells: dict[str, Any], index: Index, name: str) -> list[_Change]:
    """What to do to the readers of a table so that they need it no more; nothing if one does."""
    net = cells[name]["connections"]["Z"][0]
    readers = index.readers.get(net, ())
    # Most tables feed others: the types of the readers are a cheap question, the function is not.
    if net in index.ports or not all(_has_room(cells[cell], port) for cell, port in readers):
        return []
    function = _function(cells[name])
    changes = []
    for pin in readers:
        take_in = _reset if cells[pin[0]]["type"] == "TRELLIS_FF" else _half
        change = take_in(cells[pin[0]], pin, net, function)
        if change is None:
            return []
        changes.append(change)
    return changes


def _has_room(cell: dict[str, Any], port: str) -> bool:
    if cell["type"] == "CCU2C":
        return port in _OPERANDS
    return (
        cell["type"] == "TRELLIS_FF" and port == "LSR" and cell["parameters"].get("LSRMUX") == "LSR"
    )


def _reset(cell: dict[str, Any], pin: Pin, _net: int, function: _Function) -> _Change | None:
    """Plan to invert the reset of a flip-flop."""
    contents, inputs = function
    if (contents, len(inputs)) != (_INVERTER, 1):
        return None

    def change(index: Index) -> None:
        cell["parameters"]["LSRMUX"] = "INV"
        index.connect(*pin, [inputs[0]])

    return change


def _half(cell: dict[str, Any], pin: Pin, net: int, function: _Function) -> _Change | None:
    """Plan to take a table into half a carry cell.

    The half is looked at as it is now: another table may have made the operands change places.
    """
    name, suffix = pin[0], pin[1][1]
    a, b, c, d = (_input(cell, f"{letter}{suffix}") for letter in INPUTS)
    contents = contents_of(cell, suffix)
    if not (isinstance(c, str) and isinstance(d, str)) or contents & 0xF != _GENERATE_A:
        return None
    propagate = fix_inputs(contents, {2: int(c == _ONE), 3: int(d == _ONE)}) & 0xF
    if propagate == _XOR and net == a:
        # The operands of an addition may change places.
        a, b = b, a
    # Both operands of one half cannot take it.
    if propagate not in (_XOR, _XNOR) or net != b or net == a:
        return None
    merged = _merge(function[0], len(function[1]), inverted=propagate == _XNOR)
    if merged is None:
        return None
    made, order = merged
    nets = [a, *(function[1][source] for source in order)]
    nets += [_ONE] * (len(INPUTS) - len(nets))

    def change(index: Index) -> None:
        set_contents(cell, suffix, made)
        for letter, bit in zip(INPUTS, nets, strict=True):
            index.connect(name, f"{letter}{suffix}", [bit])

    return change


def _input(cell: dict[str, Any], port: str) -> Any:
    return cell["connections"].get(port, [_ONE])[0]


def _function(cell: dict[str, Any]) -> _Function:
    nets = [_input(cell, letter) for letter in INPUTS]
    levels = tuple(int(net == _ONE) if isinstance(net, str) else None for net in nets)
    contents, places = _reduce(contents_of(cell), levels)
    return contents, [nets[place] for place in places]


@functools.cache
def _reduce(contents: int, levels: tuple[int | None, ...]) -> tuple[int, tuple[int, ...]]:
    """Contents without the inputs that are constant or ignored, and the places of the others."""
    constant = {place: level for place, level in enumerate(levels) if level is not None}
    contents = fix_inputs(contents, constant)
    places = tuple(
        place for place in range(len(INPUTS)) if fix_inputs(contents, {place: 0}) != contents
    )
    reduced = 0
    for row in range(1 << len(places)):
        address = sum((row >> index & 1) << place for index, place in enumerate(places))
        reduced |= (contents >> address & 1) << row
    return reduced, places


@functools.cache
def _merge(table: int, count: int, *, inverted: bool) -> tuple[int, tuple[int, ...]] | None:
    """Contents of a half that has a table before its second operand, or None.

    Returns
    -------
    tuple of (int, tuple of int)
        The contents, and which of the table's ``count`` inputs are at B, C and D.
    """
    if count > len(INPUTS) - 1:
        return None
    for order in itertools.permutations(range(count)):
        made = 0
        for address in range(1 << len(INPUTS)):
            operand, rest = address & 1, address >> 1
            row = sum((rest >> place & 1) << source for place, source in enumerate(order))
            value = operand ^ inverted ^ (table >> row & 1)
            if count < len(INPUTS) - 1 and not address >> 3:
                # D is open, so that these are read for the carry only.
                value = operand
            made |= value << address
        if made & 0xF == _GENERATE_A:
            return made, order
    return None
