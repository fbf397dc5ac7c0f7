"""Multipliers of an ECP5 netlist: factors at the upper end of their ports.

Synthesis puts a narrow signed factor at the lower end of an 18-bit port and connects its sign to
all bits above. Eight-bit factors then take 36 connections instead of 16, all of them into the few
tiles of a multiplier, whose wiring they fill. At the upper end the free bits below are constant
zeros, which the device makes without wires, and the product appears that much further up.
"""

from typing import Any

from mxhw.compiler.netlist.index import Index

__all__ = ["align_factors"]

_FACTOR_BITS = 18
_PRODUCT_BITS = 36
_CELL = "MULT18X18D"


def align_factors(module: dict[str, Any]) -> int:
    """Move the factors of all combinational multipliers up, and the products with them.

    A product keeps its value: bits ``p`` of it that are read stay within the 36 bits.

    Parameters
    ----------
    module : dict
        A module of a netlist as Yosys writes it with ``write_json``; changed in place.

    Returns
    -------
    int
        Connections saved.
    """
    index = Index(module)
    return sum(
        _align(name, cell, index)
        for name, cell in module["cells"].items()
        if cell["type"] == _CELL and _is_combinational(cell)
    )


def _is_combinational(cell: dict[str, Any]) -> bool:
    registers = any(name.startswith("REG_") for name in cell.get("parameters", {}))
    chained = any(
        bits != ["0"]
        for name, bits in cell["connections"].items()
        if not name.startswith(("A", "B", "P", "SIGNED"))
    )
    signs = all(cell["connections"].get(name) in (["0"], ["1"]) for name in ("SIGNEDA", "SIGNEDB"))
    return signs and not registers and not chained


def _align(name: str, cell: dict[str, Any], index: Index) -> int:
    connections = cell["connections"]
    product = [_bit(connections, f"P{place}") for place in range(_PRODUCT_BITS)]
    highest = max((place for place, bit in enumerate(product) if index.is_read(bit)), default=0)
    room = _PRODUCT_BITS - 1 - highest
    total = 0
    saved = 0
    for factor in ("A", "B"):
        bits = [_bit(connections, f"{factor}{place}", "0") for place in range(_FACTOR_BITS)]
        signed = connections[f"SIGNED{factor}"] == ["1"]
        shift = min(_FACTOR_BITS - _width(bits, signed=signed), room - total)
        moved = ["0"] * shift + bits[: _FACTOR_BITS - shift]
        for place, bit in enumerate(moved):
            index.connect(name, f"{factor}{place}", [bit])
        saved += sum(isinstance(bit, int) for bit in bits)
        saved -= sum(isinstance(bit, int) for bit in moved)
        total += shift
    for place in range(_PRODUCT_BITS):
        bit = product[place - total] if place >= total else None
        index.connect(name, f"P{place}", [] if bit is None else [bit], output=True)
    return saved


def _bit(connections: dict[str, list[Any]], name: str, open_bit: str | None = None) -> Any:
    bits = connections.get(name)
    return bits[0] if bits else open_bit


def _width(bits: list[Any], *, signed: bool) -> int:
    """Bits that hold the factor: no zeros above an unsigned one, one sign bit of a signed one."""
    width = len(bits)
    while width > 1 and bits[width - 1] == (bits[width - 2] if signed else "0"):
        width -= 1
    return width
