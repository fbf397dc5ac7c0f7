"""What a netlist takes of a device: its cells by type, and the resources that they are."""

from collections import Counter
from typing import Any

from mxhw.boards.catalog import Resources

__all__ = ["count_cells", "resources_of_cells", "resources_of_utilisation"]


def count_cells(module: dict[str, Any]) -> dict[str, int]:
    """Return how many cells of each type a module of a netlist has."""
    counts = Counter(cell["type"] for cell in module["cells"].values())
    counts.pop("$scopeinfo", None)
    return dict(sorted(counts.items()))


def resources_of_cells(cells: dict[str, int]) -> Resources:
    """Return what the cells of a netlist take on an ECP5 or a 7-series device."""

    def count(*names: str) -> int:
        return sum(cells.get(name, 0) for name in names)

    if any(name in cells for name in ("FDRE", "FDSE", "FDCE", "FDPE")):
        # A block RAM is counted in units of 36 kbit, distributed RAM in lookup tables.
        return Resources(
            luts=count("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "SRL16E", "SRLC32E")
            + 4 * count("RAM32M", "RAM64M")
            + 2 * count("RAM64X1D", "RAM32X1D"),
            flip_flops=count("FDRE", "FDSE", "FDCE", "FDPE"),
            block_rams=count("RAMB36E1") + (count("RAMB18E1") + 1) // 2,
            multipliers=count("DSP48E1"),
        )
    # A carry cell takes two lookup tables; a distributed RAM four, and two for its write port.
    return Resources(
        luts=count("LUT4") + 2 * count("CCU2C") + 6 * count("TRELLIS_DPR16X4"),
        flip_flops=count("TRELLIS_FF"),
        block_rams=count("DP16KD", "PDPW16KD"),
        multipliers=count("MULT18X18D"),
    )


def resources_of_utilisation(utilisation: dict[str, tuple[int, int]]) -> Resources:
    """Return what a placed ECP5 design takes."""

    def used(name: str) -> int:
        return utilisation.get(name, (0, 0))[0]

    return Resources(
        luts=used("TRELLIS_COMB"),
        flip_flops=used("TRELLIS_FF"),
        block_rams=used("DP16KD"),
        multipliers=used("MULT18X18D"),
    )
