"""Constant inputs of the lookup tables and carry cells of an ECP5 netlist.

An input that is left open reads as one, so a constant one costs nothing; a constant zero is wired
to a net of zeros that spans the device. The contents of a table can as well be made independent of
the input, which then needs no wire: thousands of connections of a design's adders are such zeros.
"""

from typing import Any

__all__ = ["absorb_zeros"]

_INPUTS = "ABCD"
_TABLES = {"LUT4": (("INIT", ""),), "CCU2C": (("INIT0", "0"), ("INIT1", "1"))}
"""Parameters that hold a table's contents, and the suffix of the names of its inputs."""


def absorb_zeros(module: dict[str, Any]) -> int:
    """Turn constant zeros at lookup tables and carry cells into ones that the table ignores.

    The carry of a CCU2C is made from its table and from the table's first four bits, addressed by
    inputs A and B; both keep their values.

    Parameters
    ----------
    module : dict
        A module of a netlist as Yosys writes it with ``write_json``; changed in place.

    Returns
    -------
    int
        Connections saved.
    """
    saved = 0
    for cell in module["cells"].values():
        for parameter, suffix in _TABLES.get(cell["type"], ()):
            saved += _absorb(cell, parameter, suffix)
    return saved


def _absorb(cell: dict[str, Any], parameter: str, suffix: str) -> int:
    connections = cell["connections"]
    zeros = [
        position
        for position, name in enumerate(_INPUTS)
        if connections.get(f"{name}{suffix}") == ["0"]
    ]
    if not zeros:
        return 0
    contents = int(cell["parameters"][parameter], 2)
    ignored = sum(1 << position for position in zeros)
    made = 0
    for address in range(1 << len(_INPUTS)):
        made |= (contents >> (address & ~ignored) & 1) << address
    cell["parameters"][parameter] = f"{made:016b}"
    for position in zeros:
        connections[f"{_INPUTS[position]}{suffix}"] = ["1"]
    return len(zeros)
