# amaranth: UnusedElaboratable=no
"""Compare function tables and units: published, reproduced, optimal; integer against float.

``python sim/lut.py --json FILE`` fits every table (about two minutes) and synthesises the units
(some minutes more; ``--no-area`` leaves that out).
"""

import functools
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
import torch
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Shape
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out, connect, flipped
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mxhw.arith.dot import queue_depth
from mxhw.arith.pipeline import OutputQueue
from mxhw.lut import FUNCTIONS, LoadableFloatPwlUnit, LoadablePwlUnit, fit
from mxhw.lut.choice import TABLES, largest_table_error, table_luts
from mxhw.lut.optimal import STORAGES
from mxhw.lut.pwl import DSP, LUT, UniformPwl
from mxhw.sw.golden.layer_norm import layer_norm_factor
from mxhw.sw.golden.reduced import online_softmax, rotation, sigmoid_fixed, silu_fixed

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

# Largest relative errors of the same range reductions in a model of their own, with exponents and
# mantissas cut to 12 bits and local slopes of 8 and bases of 12 bits; of a sine the absolute error.
EXPECTED = {
    "exp2": (7.1e-4, 3.3e-4, 2.1e-4),
    "reciprocal": (2.0e-3, 6.5e-4, 4.3e-4),
    "rsqrt": (2.6e-3, 9.4e-4, 4.1e-4),
    "sigmoid": (2.6e-3, 8.9e-4, 5.9e-4),
    "SiLU": (2.6e-3, 8.9e-4, 5.9e-4),
    "softmax": (2.9e-3, 9.6e-4, 5.8e-4),
    "layer norm": (2.6e-3, 9.4e-4, 4.1e-4),
    "sine": (2.5e-3, 7.1e-4, 2.3e-4),
}
_INDEX_BITS = (3, 4, 5)

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


def fit_seconds() -> dict[str, dict[str, dict[str, float]]]:
    """Processor time of the optimum by storage, entries and function."""

    def seconds(name: str, entries: int, storage: str) -> float:
        start = time.process_time()
        fit(name, entries=entries, storage=storage)
        return time.process_time() - start

    return {
        storage: {
            str(entries): {name: seconds(name, entries, storage) for name in FUNCTIONS}
            for entries in (8, 16, 32)
        }
        for storage in STORAGES
    }


def seconds_table(rows: dict[str, dict[str, dict[str, float]]]) -> Table:
    """The slowest function of every storage and number of entries."""
    table = Table(title=f"Slowest optimum of {len(FUNCTIONS)} functions, seconds of one core")
    table.add_column("storage")
    for entries in next(iter(rows.values())):
        table.add_column(f"{entries} entries", justify="right")
    for storage, row in rows.items():
        slowest = [max(times.items(), key=lambda item: item[1]) for times in row.values()]
        table.add_row(storage, *(f"{name} {value:.2f}" for name, value in slowest))
    return table


def _integer(bits: int) -> LoadablePwlUnit:
    """Codes, slopes and intercepts of one width, for inputs at the scale 2**-6."""
    return LoadablePwlUnit(code_bits=bits, slope_bits=bits, intercept_bits=bits, intercept_shift=6)


# 8 entries, loaded at run time, so that no constant is folded into the logic.
UNITS: dict[str, Callable[[], Any]] = {
    "INT8": lambda: _integer(8),
    "INT16": lambda: _integer(16),
    "INT32": lambda: _integer(32),
    "FP32": LoadableFloatPwlUnit,
}


class _Queue(Component):
    """The stream's queue at the end of a unit, which published units do not have.

    Reservations and pushes come from the unit, each in its cycle, so that they share no logic.
    """

    def __init__(self, unit: Component):
        self._depth = queue_depth(unit.latency - 1)
        shape = Shape.cast(unit.o.payload.shape())
        super().__init__(
            {
                "payload": In(shape),
                "push": In(1),
                "reserve": In(1),
                "free": Out(1),
                "o": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform):
        """The queue alone."""
        m = Module()
        shape = self.payload.shape()
        m.submodules.queue = queue = OutputQueue(shape=shape, depth=self._depth)
        m.d.comb += [
            queue.i.payload.eq(self.payload),
            queue.i.valid.eq(self.push),
            queue.reserve.eq(self.reserve),
            self.free.eq(queue.free),
        ]
        connect(m, queue.o, flipped(self.o))
        return m


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


def without_queue(make: Callable[[], Any], measure: Callable[[Any, Path], Any]) -> dict[str, int]:
    """A measure of a unit less that of its stream's queue."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = measure(make(), Path(scratch))
        queue = measure(_Queue(make()), Path(scratch))
    return {key: whole[key] - queue[key] for key in whole}


def _all_measures(unit: Elaboratable, folder: Path) -> dict[str, int]:
    """Cells with and without multipliers, and gates."""
    return {
        **ecp5_cells(unit, folder, dsp=True),
        "comb_without_dsp": ecp5_cells(unit, folder, dsp=False)["comb"],
        "gates": gates(unit, folder),
    }


def areas(console: Console) -> dict[str, dict[str, int]]:
    """Cells and gates of every unit without its stream's queue."""
    units = track(UNITS.items(), "Synthesising", console=console)
    return {name: without_queue(make, _all_measures) for name, make in units}


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
    for name in rows:
        published = PUBLISHED_AREA.get(name)
        values = [f"{rows[name][key]:,}" for key in columns]
        table.add_row(name, *values, "" if published is None else f"{published:,}")
    for name in ("INT32", "FP32"):
        saved = [f"{1 - rows['INT8'][key] / rows[name][key]:.1%}" for key in columns]
        published = 1 - PUBLISHED_AREA["INT8"] / PUBLISHED_AREA[name]
        table.add_row(f"INT8 saves of {name}", *saved, f"{published:.1%}")
    return table


def _sigmoid_error(index_bits: int, *, silu: bool) -> float:
    """Over all 16-bit codes with 8 fraction bits but 0."""
    codes = torch.arange(-(1 << 15), 1 << 15)
    codes = codes[codes != 0]
    x = codes.double() / 256
    exact = torch.where(x >= 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x)))
    value = (silu_fixed if silu else sigmoid_fixed)(codes, 8, index_bits).to_float()
    return float((value / (x * exact if silu else exact) - 1).abs().max())


def _softmax_error(index_bits: int) -> float:
    """Of probabilities above 1e-4 of the largest, in random rows of 1 to 16,384."""
    worst = 0.0
    for length in (1, 2, 100, 2048, 1 << 14):
        generator = torch.Generator().manual_seed(length)
        scores = torch.randn(8, length, generator=generator) * 2.5 * 1.4427 * 4096
        online = online_softmax(scores.round().long(), index_bits)
        exact = torch.softmax(scores.round().double() / 4096 * 0.6931471805599453, -1)
        places = online.maximum[..., -1:] - online.maximum + online.down
        mantissa = torch.ldexp(online.mantissa.double(), -15 - places)
        total = torch.ldexp(online.total[..., -1:].double(), torch.tensor(-31))
        large = exact > 1e-4 * exact.amax(-1, keepdim=True)
        worst = max(worst, float((mantissa / total / exact - 1)[large].abs().max()))
    return worst


def _norm_error(index_bits: int) -> float:
    """Of the factor of a layer norm, random vectors."""
    generator = torch.Generator().manual_seed(1)
    # Spreads of a factor of 16, so that every mantissa occurs.
    spread = 500 * torch.exp2(4 * torch.rand(4000, 1, generator=generator))
    codes = (torch.randn(4000, 64, generator=generator) * spread).round().long()
    codes = codes.clamp(-(1 << 15), (1 << 15) - 1)
    sums = codes.sum(-1), (codes**2).sum(-1), torch.full((4000,), -12)
    factor = layer_norm_factor(
        *sums, code_bits=16, dim=64, epsilon=1e-5, index_bits=index_bits
    ).to_float()
    variance = (codes.double() / 4096).var(-1, correction=0)
    return float((factor * (variance + 1e-5).sqrt() - 1).abs().max())


def _sine_error(index_bits: int) -> float:
    phase = torch.arange(1 << 16) << 16
    _, sine = rotation(phase, index_bits)
    exact = torch.sin(phase.double() / 2**31 * torch.pi)
    return float((sine.double() / 2**15 - exact).abs().max())


def reduced_errors() -> dict[str, list[float]]:
    """Largest error of every range-reduced function with 8, 16 and 32 entries."""
    measures: dict[str, Callable[[int], float]] = {
        **{name: functools.partial(largest_table_error, name) for name in TABLES},
        "sigmoid": functools.partial(_sigmoid_error, silu=False),
        "SiLU": functools.partial(_sigmoid_error, silu=True),
        "softmax": _softmax_error,
        "layer norm": _norm_error,
        "sine": _sine_error,
    }
    return {name: [measure(bits) for bits in _INDEX_BITS] for name, measure in measures.items()}


def _by_entries(title: str, rows: dict[str, list], beside: str, other: dict[str, Any]) -> Table:
    """A row a function: figures of 8, 16 and 32 entries, each with another one beside it."""
    table = Table(title=title)
    table.add_column("function")
    for bits in _INDEX_BITS:
        table.add_column(f"{1 << bits} entries", justify="right")
        table.add_column(beside, justify="right", style="dim")
    for name, figures in rows.items():
        pairs = zip(figures, other[name], strict=True)
        values = [value for pair in pairs for value in pair]
        table.add_row(name, *(f"{v:.1e}" if isinstance(v, float) else str(v) for v in values))
    return table


def reduced_table(rows: dict[str, list[float]]) -> Table:
    """Measured errors, and what was expected of them."""
    title = "Largest relative error (sine: absolute) of range-reduced functions"
    return _by_entries(title, rows, "expected", EXPECTED)


def table_areas(console: Console) -> dict[str, list[int]]:
    """Lookup tables of an ECP5 that a uniform table takes with its product, without the queue."""

    def luts(name: str, bits: int) -> int:
        strategy = LUT if name == "exp2" else DSP
        make = functools.partial(UniformPwl, table=TABLES[name](bits), multiplier=strategy)
        return without_queue(make, functools.partial(ecp5_cells, dsp=True))["comb"]

    names = track(TABLES, "Synthesising tables", console=console)
    return {name: [luts(name, bits) for bits in _INDEX_BITS] for name in names}


def table_area_table(rows: dict[str, list[int]]) -> Table:
    """Measured lookup tables, and what the compiler reckons with."""
    title = "ECP5 LUTs of a uniform table; the product of exp2 is in LUTs"
    estimates = {name: [table_luts(name, bits) for bits in _INDEX_BITS] for name in rows}
    return _by_entries(title, rows, "in estimates", estimates)


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
    seconds = fit_seconds()
    console.print(seconds_table(seconds))
    reduced = reduced_errors()
    console.print(reduced_table(reduced))
    content: dict[str, Any] = {
        "mean_squared_error": {f"{name} {entries}": row for (name, entries), row in rows.items()},
        "optimal_seconds": seconds,
        "range_reduced_error": reduced,
    }
    if with_area:
        content["area"] = areas(progress)
        console.print(area_table(content["area"]))
        content["table_luts"] = table_areas(progress)
        console.print(table_area_table(content["table_luts"]))
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
