# amaranth: UnusedElaboratable=no
"""Compare function tables and units: published, reproduced, optimal; integer against float.

``python sim/lut.py --json FILE`` fits every table (about two minutes) and synthesises the units
(some minutes more; ``--no-area`` leaves that out).
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Shape
from amaranth.lib.wiring import Component
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mxhw.arith.dot import queue_depth
from mxhw.arith.pipeline import StreamFifo
from mxhw.lut import LoadableFloatPwlUnit, LoadablePwlUnit, fit

NAMES = ("gelu", "hswish", "exp", "div", "rsqrt")

# Mean squared errors that others published. GQA-LUT and its NN-LUT: arXiv 2403.19591, table 2.
# LUT-APP (DATE 2026): its tables, with exact inputs and exact compare on the same grid.
PUBLISHED = {
    ("gelu", 8): {"NN-LUT": 1.3e-3, "GQA-LUT": 9.4e-5, "LUT-APP": 1.93e-5},
    ("hswish", 8): {"NN-LUT": 1.2e-3, "GQA-LUT": 2.9e-4},
    ("exp", 8): {"NN-LUT": 6.4e-4, "GQA-LUT": 1.2e-4, "LUT-APP": 1.5e-5},
    ("div", 8): {"NN-LUT": 2.7e-3, "GQA-LUT": 8.3e-4},
    ("rsqrt", 8): {"NN-LUT": 1.1e-2, "GQA-LUT": 1.7e-3},
    ("gelu", 16): {"LUT-APP": 4.5e-6},
    ("exp", 16): {"LUT-APP": 2.0e-6},
}

# Published area of the units with 8 entries in 28 nm, in square micrometres.
PUBLISHED_AREA = {"INT8": 961, "INT32": 5243, "FP32": 5135}

# Cells that nextpnr makes of a Yosys cell.
_COMB = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
_YOSYS = "from pyosys import libyosys as ys; import sys; ys.run_pass(sys.argv[1], ys.Design())"
_PREPARE = "hierarchy -top top\nproc\nflatten\nopt_clean -purge\n"
_TRANSISTORS_A_GATE = 4

_COLUMNS = {
    "NN-LUT": "NN-LUT published",
    "nn_lut": "NN-LUT here",
    "GQA-LUT": "GQA-LUT published",
    "genetic": "GQA-LUT here",
    "genetic_quantised": "genetic, quantised fitness",
    "optimal": "optimal, same storage",
    "best": "best exponents",
    "per_entry": "own exponents",
    "exact_compare": "own exponents, exact compare, free tails",
    "LUT-APP": "LUT-APP published",
}


def fits(name: str, entries: int, seeds: int) -> dict[str, float]:
    """Mean squared error of every method for one function."""
    start = time.process_time()
    optimal = fit(name, entries=entries)
    seconds = time.process_time() - start
    quantised = [
        fit(name, entries=entries, method="genetic", fitness="quantised", seed=seed)
        for seed in range(seeds)
    ]
    start = time.process_time()
    genetic = fit(name, entries=entries, method="genetic")
    genetic_seconds = time.process_time() - start
    own = {"entries": entries, "storage": "per-entry"}
    errors = {
        "nn_lut": fit(name, entries=entries, method="nn-lut"),
        "genetic": genetic,
        "optimal": optimal,
        "best": fit(name, entries=entries, storage="best"),
        "per_entry": fit(name, **own),
        "exact_compare": fit(name, **own, breakpoint_mode="ceil", tails="free"),
    }
    result = {key: table.mean_squared_error for key, table in errors.items()}
    result["genetic_quantised"] = statistics.median(t.mean_squared_error for t in quantised)
    result |= PUBLISHED.get((name, entries), {})
    return result | {"optimal_seconds": seconds, "genetic_seconds": genetic_seconds}


def error_table(rows: dict[tuple[str, int], dict[str, float]]) -> Table:
    """Errors, a column for each function and number of entries."""
    table = Table(title="Mean squared error, published storage unless said otherwise")
    table.add_column("method")
    for name, entries in rows:
        table.add_column(f"{name} {entries}", justify="right", no_wrap=True)
    for key, title in _COLUMNS.items():
        values = [row.get(key) for row in rows.values()]
        table.add_row(title, *("" if value is None else f"{value:.1e}" for value in values))
    for key, title in (("optimal_seconds", "optimal, s"), ("genetic_seconds", "GQA-LUT here, s")):
        table.add_row(title, *(f"{row[key]:.2f}" for row in rows.values()))
    return table


def _integer(bits: int) -> LoadablePwlUnit:
    """Codes, slopes and intercepts of one width, for inputs at the scale 2**-6."""
    return LoadablePwlUnit(code_bits=bits, slope_bits=bits, intercept_bits=bits, intercept_shift=6)


# 8 entries, loaded at run time, so that no constant is folded into the logic.
_UNITS: dict[str, Callable[[], Any]] = {
    "INT8": lambda: _integer(8),
    "INT16": lambda: _integer(16),
    "INT32": lambda: _integer(32),
    "FP32": LoadableFloatPwlUnit,
}


def _queue(unit: Component) -> StreamFifo:
    """The stream's queue at the end of a unit, which published units do not have."""
    shape = unit.o.payload.shape()
    return StreamFifo(shape=Shape.cast(shape), depth=queue_depth(unit.latency - 1))


def _run_yosys(unit: Elaboratable, commands: str, folder: Path) -> str:
    """Text of the last ``stat`` of a synthesis."""
    (folder / "unit.il").write_text(rtlil.convert(unit, emit_src=False))
    script = folder / "unit.ys"
    report = folder / "stat.txt"
    script.write_text(
        f"read_rtlil {folder}/unit.il\n{_PREPARE}{commands.replace('REPORT', str(report))}\n"
    )
    subprocess.run(
        [sys.executable, "-c", _YOSYS, f"script {script}"], check=True, stdout=subprocess.DEVNULL
    )
    return report.read_text()


def ecp5_cells(unit: Elaboratable, folder: Path, *, dsp: bool) -> dict[str, int]:
    """Packed lookup tables, flip-flops and multipliers of an ECP5."""
    options = "" if dsp else " -nodsp"
    text = _run_yosys(unit, f"synth_ecp5 -top top{options}\ntee -q -o REPORT stat -json", folder)
    cells = json.loads(text)["design"]["num_cells_by_type"]
    return {
        "comb": sum(count * cells.get(cell, 0) for cell, count in _COMB.items()),
        "ff": cells.get("TRELLIS_FF", 0),
        "dsp": cells.get("MULT18X18D", 0),
    }


def gates(unit: Elaboratable, folder: Path) -> int:
    """NAND equivalents: transistors of static CMOS gates and flip-flops, divided by four."""
    commands = (
        "synth -top top -flatten\ndfflegalize -cell $_DFF_P_ 01\nabc -g cmos3\nopt_clean\n"
        "tee -q -o REPORT stat -tech cmos"
    )
    text = _run_yosys(unit, commands, folder)
    found = re.search(r"Estimated number of transistors:\s+(\d+)(\+?)", text)
    if found is None or found[2]:
        raise RuntimeError(f"Yosys gave no number of transistors:\n{text[-2000:]}")
    return int(found[1]) // _TRANSISTORS_A_GATE


def areas(console: Console) -> dict[str, dict[str, int]]:
    """Cells and gates of every unit, each with what its stream queue takes."""
    result: dict[str, dict[str, int]] = {}
    for name, make in track(_UNITS.items(), "Synthesising", console=console):
        row: dict[str, int] = {}
        for prefix in ("", "queue_"):

            def part(make=make, whole=not prefix) -> Elaboratable:
                return make() if whole else _queue(make())

            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                row |= {f"{prefix}{k}": v for k, v in ecp5_cells(part(), folder, dsp=True).items()}
                logic = ecp5_cells(part(), folder, dsp=False)
                row[f"{prefix}comb_without_dsp"] = logic["comb"]
                row[f"{prefix}gates"] = gates(part(), folder)
        result[name] = row
    return result


def area_table(rows: dict[str, dict[str, int]]) -> Table:
    """Area of the units without their queues, and what the 8-bit unit saves."""
    table = Table(title="8 entries, loaded at run time, without the stream's queue")
    columns = {
        "comb": "ECP5 LUTs",
        "ff": "flip-flops",
        "dsp": "multipliers",
        "comb_without_dsp": "LUTs, no multiplier",
        "gates": "gates",
    }
    table.add_column("unit")
    for title in columns.values():
        table.add_column(title, justify="right")
    table.add_column("28 nm published, um2", justify="right")

    def net(name: str, key: str) -> int:
        return rows[name][key] - rows[name][f"queue_{key}"]

    for name in rows:
        published = PUBLISHED_AREA.get(name)
        values = [f"{net(name, key):,}" for key in columns]
        table.add_row(name, *values, "" if published is None else f"{published:,}")
    for name in ("INT32", "FP32"):
        saved = [
            f"{1 - net('INT8', key) / net(name, key):.1%}" if net(name, key) else ""
            for key in columns
        ]
        published = 1 - PUBLISHED_AREA["INT8"] / PUBLISHED_AREA[name]
        table.add_row(f"INT8 saves of {name}", *saved, f"{published:.1%}")
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
@click.option("--seeds", default=10, show_default=True, help="Seeds of the genetic method.")
@click.option("--area/--no-area", "with_area", default=True, help="Synthesise the units too.")
def main(json_file: Path | None, seeds: int, with_area: bool) -> None:
    """Print errors of tables and areas of units beside the published ones."""
    console, progress = Console(width=160), Console(stderr=True)
    keys = [(name, entries) for entries in (8, 16) for name in NAMES]
    fit("gelu")  # Compiles the kernels, which no time of a fit should hold.
    rows = {key: fits(*key, seeds) for key in track(keys, "Fitting", console=progress)}
    console.print(error_table(rows))
    content: dict[str, Any] = {
        "mean_squared_error": {f"{name} {entries}": row for (name, entries), row in rows.items()}
    }
    if with_area:
        content["area"] = areas(progress)
        console.print(area_table(content["area"]))
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
