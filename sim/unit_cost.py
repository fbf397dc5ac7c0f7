"""What one unit takes on an ECP5, alone: cells by Yosys, packed cells and clock by nextpnr."""

import json
import tempfile
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

from mxhw.compiler._tools import ProgressParser, find_tool, run_tool
from mxhw.compiler.netlist.absorb import absorb_tables

__all__ = ["DEVICE", "cell_counts", "route", "synthesise", "unit_cost"]

DEVICE = "LFE5U-85F, speed grade 6"

# Cells that nextpnr makes of a Yosys cell, and those to enter and leave a carry chain.
_COMB = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
_COMB_OF_CHAIN = 4

_TARGETS = {
    "ecp5": "synth_ecp5 -top top",
    # No distributed memory: flip-flops or block RAM take its place.
    "ice40": "setattr -unset ram_style a:ram_style\nsynth_ice40 -dsp -top top",
    "gowin": "synth_gowin -top top",
    "xilinx": "synth_xilinx -family xc7 -flatten -noiopad -top top",
    "generic": "synth -flatten -top top\nabc -g AND,XOR,MUX",
}
"""Synthesis commands by family."""


def cell_counts(
    unit: Elaboratable, folder: Path, family: str = "ecp5", *, absorb: bool = False
) -> dict[str, int]:
    """Cells of the unit by type, and ``chains``; leaves ``unit.json`` in the folder.

    With ``absorb`` an ECP5 netlist loses the tables that the cells behind them can do without
    (:mod:`mxhw.compiler.netlist.absorb`).
    """
    (folder / "unit.il").write_text(rtlil.convert(unit, emit_src=False))
    commands = ["read_rtlil unit.il", _TARGETS[family], "opt_clean", "write_json unit.json"]
    (folder / "unit.ys").write_text("\n".join(commands) + "\n")
    tool = find_tool("yosys")
    run_tool(
        [*tool.command, "unit.ys"],
        tool=tool,
        step="synthesis",
        cwd=folder,
        log=folder / "synthesis.log",
        parser=ProgressParser("synthesis", None),
    )
    netlist = json.loads((folder / "unit.json").read_text())
    module = netlist["modules"]["top"]
    if absorb:
        absorb_tables(module)
        (folder / "unit.json").write_text(json.dumps(netlist))
    cells = module["cells"].values()
    counts: dict[str, int] = {"chains": 0}
    for cell in cells:
        counts[cell["type"]] = counts.get(cell["type"], 0) + 1
        if cell["type"] == "CCU2C" and isinstance(cell["connections"]["CIN"][0], str):
            counts["chains"] += 1
    return counts


def synthesise(unit: Elaboratable, folder: Path, *, absorb: bool = False) -> dict[str, int]:
    """COMB as nextpnr will pack them, FF, multipliers, block RAMs, cells of distributed RAM."""
    counts = cell_counts(unit, folder, absorb=absorb)
    packed = sum(weight * counts.get(cell, 0) for cell, weight in _COMB.items())
    return {
        "comb": packed + _COMB_OF_CHAIN * counts["chains"],
        "ff": counts.get("TRELLIS_FF", 0),
        "dsp": counts.get("MULT18X18D", 0),
        "block_ram": counts.get("DP16KD", 0),
        "lut_ram": counts.get("TRELLIS_DPR16X4", 0),
    }


def route(folder: Path, target_mhz: float, seed: int = 1) -> tuple[int, float]:
    """Packed COMB cells and the clock of a synthesised unit, without I/O cells."""
    tool = find_tool("nextpnr-ecp5")
    arguments = "--85k --speed 6 --package CABGA381 --out-of-context --timing-allow-fail"
    run_tool(
        [
            *tool.command,
            *arguments.split(),
            *("--freq", str(target_mhz), "--seed", str(seed)),
            *("--json", "unit.json", "--report", "report.json"),
        ],
        tool=tool,
        step="place and route",
        cwd=folder,
        log=folder / "route.log",
        parser=ProgressParser("place and route", None),
    )
    report = json.loads((folder / "report.json").read_text())
    clocks = [entry["achieved"] for entry in report["fmax"].values()]
    return report["utilization"]["TRELLIS_COMB"]["used"], min(clocks)


def unit_cost(
    unit: Elaboratable, *, target_mhz: float | None = None, seed: int = 1, absorb: bool = False
) -> dict[str, float]:
    """Figures of a unit; with a target clock it is also placed and routed."""
    with tempfile.TemporaryDirectory(prefix="mxhw-") as temporary:
        figures: dict[str, float] = dict(synthesise(unit, Path(temporary), absorb=absorb))
        if target_mhz is not None:
            comb, mhz = route(Path(temporary), target_mhz, seed)
            figures |= {"comb": comb, "mhz": round(mhz, 1)}
        return figures
