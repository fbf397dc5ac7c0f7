"""Lookup tables of an ECP5 netlist that the cells behind them can do without.

Half a carry cell has a table of four inputs, of which an adder that Yosys makes uses two. A table
before one of its operands, for instance one that inverts or clears it, fits into the others: it
costs nothing there, and its delay goes too. Flip-flops invert their reset themselves.
"""

import itertools
from collections.abc import Sequence
from typing import Any

__all__ = ["absorb_inverters", "absorb_tables"]

_INPUTS = "ABCD"
_XOR, _XNOR = 0b0110, 0b1001
_GENERATE_A = 0b1010
"""First bits of the contents of a half that takes its carry from input A."""
_ONE = "1"

_Half = tuple[str, str]
"""Name of a carry cell, and the suffix of one of its halves."""


def absorb_tables(module: dict[str, Any]) -> int:
    """Move lookup tables into the carry cells that they feed, where nothing else reads them.

    Tables of two inputs always fit. The carry of a half is made from its table and from the table's
    first four bits, addressed by inputs A and B, so that one of three inputs must be idle (or
    invert, in a subtraction) while two of them are zero: a multiplexer, an AND-OR.

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
    tables = {cell["connections"]["Z"][0]: name for name, cell in cells.items() if _is_table(cell)}
    readers = _readers(module, tables)
    saved = 0
    for net, name in tables.items():
        sinks = readers.get(net)
        if not sinks:
            continue
        function = _function(cells[name])
        made = [_absorbed(cells[cell], suffix, net, function) for cell, suffix in sinks]
        # Both operands of one half cannot take it.
        if None in made or len(set(sinks)) < len(sinks):
            continue
        for (cell, suffix), half in zip(sinks, made, strict=True):
            contents, connections = half or (0, {})
            cells[cell]["parameters"][f"INIT{suffix}"] = f"{contents:016b}"
            cells[cell]["connections"].update(connections)
        del cells[name]
        saved += 1
    return saved


def absorb_inverters(module: dict[str, Any]) -> int:
    """Leave the inversion of a reset to the flip-flops, where nothing else reads the inverter.

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
    inverters = {}
    for name, cell in cells.items():
        if _is_table(cell):
            contents, inputs = _function(cell)
            if (contents, len(inputs)) == (0b01, 1):
                inverters[cell["connections"]["Z"][0]] = (name, inputs[0])
    flip_flops: dict[Any, list[dict[str, Any]]] = {net: [] for net in inverters}
    others = {bit for port in module["ports"].values() for bit in port["bits"]}
    for cell in cells.values():
        for port, bits in cell["connections"].items():
            if cell["type"] == "LUT4" and port == "Z":
                continue
            plain = cell["type"] == "TRELLIS_FF" and cell["parameters"].get("LSRMUX") == "LSR"
            for bit in bits:
                if bit in inverters and plain and port == "LSR":
                    flip_flops[bit].append(cell)
                else:
                    others.add(bit)
    saved = 0
    for net, (name, source) in inverters.items():
        if net in others or not flip_flops[net]:
            continue
        for cell in flip_flops[net]:
            cell["parameters"]["LSRMUX"] = "INV"
            cell["connections"]["LSR"] = [source]
        del cells[name]
        saved += 1
    return saved


def _is_table(cell: dict[str, Any]) -> bool:
    return cell["type"] == "LUT4" and not int(cell.get("attributes", {}).get("keep", "0"), 2)


def _readers(module: dict[str, Any], nets: dict[Any, str]) -> dict[Any, list[_Half]]:
    """Halves of carry cells that read a net, of those nets that nothing else reads."""
    readers: dict[Any, list[_Half]] = {}
    others = {bit for port in module["ports"].values() for bit in port["bits"]}
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            if cell["type"] == "LUT4" and port == "Z":
                continue
            for bit in bits:
                if bit not in nets:
                    continue
                if cell["type"] == "CCU2C" and port[0] in "AB":
                    readers.setdefault(bit, []).append((name, port[1]))
                else:
                    others.add(bit)
    return {net: halves for net, halves in readers.items() if net not in others}


def _bit(contents: int, *levels: int) -> int:
    return contents >> sum(level << place for place, level in enumerate(levels)) & 1


def _function(table: dict[str, Any]) -> tuple[int, list[Any]]:
    """Contents of a table without the inputs that are constant or ignored, and the others' nets."""
    contents = int(table["parameters"]["INIT"], 2)
    inputs = [table["connections"].get(name, [_ONE])[0] for name in _INPUTS]
    while True:
        for place, net in enumerate(inputs):
            rows = list(itertools.product((0, 1), repeat=len(inputs)))
            fixed = int(net == _ONE) if isinstance(net, str) else 0
            kept = [_bit(contents, *row) for row in _rows_of(rows, place, fixed)]
            other = [_bit(contents, *row) for row in _rows_of(rows, place, 1 - fixed)]
            if isinstance(net, str) or kept == other:
                contents = sum(value << index for index, value in enumerate(kept))
                inputs = inputs[:place] + inputs[place + 1 :]
                break
        else:
            return contents, inputs


def _rows_of(rows: Sequence[tuple[int, ...]], place: int, level: int) -> list[tuple[int, ...]]:
    """Rows with a level at a place, ordered by the others, the first input fastest."""
    return sorted((row for row in rows if row[place] == level), key=lambda row: row[::-1])


def _absorbed(
    cell: dict[str, Any], suffix: str, net: Any, function: tuple[int, list[Any]]
) -> tuple[int, dict[str, list[Any]]] | None:
    """Contents and connections of a half that has taken in a table, or None."""
    connections = cell["connections"]
    a, b, c, d = (connections.get(f"{name}{suffix}", [_ONE])[0] for name in _INPUTS)
    contents = int(cell["parameters"][f"INIT{suffix}"], 2)
    if not (isinstance(c, str) and isinstance(d, str)) or contents & 0xF != _GENERATE_A:
        return None
    fixed = int(c == _ONE), int(d == _ONE)
    propagate = sum(_bit(contents, row & 1, row >> 1, *fixed) << row for row in range(1 << 2))
    if propagate == _XOR and net == a:
        # The operands of an addition may change places.
        a, b = b, a
    if propagate not in (_XOR, _XNOR) or net != b or net == a:
        return None
    inverted = int(propagate == _XNOR)
    table, inputs = function
    if len(inputs) > len(_INPUTS) - 1:
        return None
    for order in itertools.permutations(range(len(inputs))):
        made = 0
        for row in itertools.product((0, 1), repeat=len(_INPUTS)):
            levels = [0] * len(inputs)
            for place, source in enumerate(order):
                levels[source] = row[1 + place]
            value = row[0] ^ inverted ^ _bit(table, *levels)
            if len(inputs) < len(_INPUTS) - 1 and not row[3]:
                value = row[0]
            made |= value << sum(level << place for place, level in enumerate(row))
        if made & 0xF == _GENERATE_A:
            nets = [a, *(inputs[source] for source in order)]
            nets += [_ONE] * (len(_INPUTS) - len(nets))
            return made, {f"{name}{suffix}": [bit] for name, bit in zip(_INPUTS, nets, strict=True)}
    return None
