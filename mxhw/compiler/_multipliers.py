"""Multipliers of an ECP5 netlist: factors at the upper end of their ports.

Synthesis puts a narrow signed factor at the lower end of an 18-bit port and connects its sign to
all bits above. Eight-bit factors then take 36 connections instead of 16, all of them into the few
tiles of a multiplier, whose wiring they fill. At the upper end the free bits below are constant
zeros, which the device makes without wires, and the product appears that much further up.
"""

from typing import Any

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
    multipliers = [cell for cell in module["cells"].values() if cell["type"] == _CELL]
    used = _used_bits(module) if multipliers else set()
    return sum(_align(cell, used) for cell in multipliers if _is_combinational(cell))


def _is_combinational(cell: dict[str, Any]) -> bool:
    registers = any(name.startswith("REG_") for name in cell.get("parameters", {}))
    chained = any(
        bits != ["0"]
        for name, bits in cell["connections"].items()
        if not name.startswith(("A", "B", "P", "SIGNED"))
    )
    signs = all(cell["connections"].get(name) in (["0"], ["1"]) for name in ("SIGNEDA", "SIGNEDB"))
    return signs and not registers and not chained


def _used_bits(module: dict[str, Any]) -> set[int]:
    used: set[int] = set()
    for cell in module["cells"].values():
        directions = cell["port_directions"]
        for name, bits in cell["connections"].items():
            if directions[name] != "output":
                used.update(bit for bit in bits if isinstance(bit, int))
    for port in module["ports"].values():
        used.update(bit for bit in port["bits"] if isinstance(bit, int))
    return used


def _align(cell: dict[str, Any], used: set[int]) -> int:
    connections = cell["connections"]
    product = [_bit(connections, f"P{index}") for index in range(_PRODUCT_BITS)]
    highest = max((index for index, bit in enumerate(product) if bit in used), default=0)
    room = _PRODUCT_BITS - 1 - highest
    total = 0
    saved = 0
    for factor in ("A", "B"):
        bits = [_bit(connections, f"{factor}{index}", "0") for index in range(_FACTOR_BITS)]
        signed = connections[f"SIGNED{factor}"] == ["1"]
        shift = min(_FACTOR_BITS - _width(bits, signed=signed), room - total)
        moved = ["0"] * shift + bits[: _FACTOR_BITS - shift]
        for index, bit in enumerate(moved):
            connections[f"{factor}{index}"] = [bit]
            cell["port_directions"][f"{factor}{index}"] = "input"
        saved += sum(isinstance(bit, int) for bit in bits)
        saved -= sum(isinstance(bit, int) for bit in moved)
        total += shift
    for index in range(_PRODUCT_BITS):
        bit = product[index - total] if index >= total else None
        connections[f"P{index}"] = [] if bit is None else [bit]
        cell["port_directions"][f"P{index}"] = "output"
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
