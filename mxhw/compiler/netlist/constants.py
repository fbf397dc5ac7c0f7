"""Constant inputs of the lookup tables and carry cells of an ECP5 netlist.

An input that is left open reads as one, so a constant one costs nothing; a constant zero is wired
to a net of zeros that spans the device. The contents of a table can as well be made independent of
the input, which then needs no wire: thousands of connections of a design's adders are such zeros.
"""

from typing import Any

from mxhw.compiler.netlist.tables import INPUTS, SUFFIXES, contents_of, fix_inputs, set_contents

__all__ = ["absorb_zeros"]


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
        for suffix in SUFFIXES.get(cell["type"], ()):
            saved += _absorb(cell, suffix)
    return saved


def _absorb(cell: dict[str, Any], suffix: str) -> int:
    connections = cell["connections"]
    zeros = [
        place for place, name in enumerate(INPUTS) if connections.get(f"{name}{suffix}") == ["0"]
    ]
    if zeros:
        contents = fix_inputs(contents_of(cell, suffix), dict.fromkeys(zeros, 0))
        set_contents(cell, suffix, contents)
    for place in zeros:
        connections[f"{INPUTS[place]}{suffix}"] = ["1"]
    return len(zeros)
