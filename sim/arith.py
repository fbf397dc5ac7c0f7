"""Cost of the arithmetic units on an ECP5, each alone, beside public MX cores and fixed point.

Yosys counts cells; ``--route`` also places and routes each unit (LFE5U-85F, speed grade 6, no I/O
cells) for its packed cells and its clock. ``--check`` compares the cells with a baseline.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import click
from amaranth.hdl import Elaboratable
from rich.console import Console
from rich.progress import track
from rich.table import Table
from unit_cost import DEVICE, unit_cost

from mxhw.arith.accumulate import Accumulator
from mxhw.arith.dot_product import DotProduct
from mxhw.arith.fixed_dot import FixedDotProduct
from mxhw.arith.multiply import DspMultiplier, LutMultiplier, Multiplier, PackedPairMultiplier
from mxhw.arith.quantize import Quantizer
from mxhw.arith.systolic import SystolicArray
from mxhw.dataflow.engine import MatrixEngine
from mxhw.formats import FixedFormat, parse_format

BASELINE = Path(__file__).with_name("arith_baseline.json")
TOLERANCE = 0.03
"""Share by which cells may differ from the baseline; multipliers and memories must be equal."""
LANES = 32
TERMS = 16

PEERS = {
    "mxint8": (3411, 32, 37.8),
    "mxfp4": (1983, 32, 38.2),
    "mxfp6_e2m3": (3496, 32, 38.1),
    "mxfp6_e3m2": (3813, 32, 35.5),
    "mxfp8_e4m3": (7407, 32, 32.8),
}
"""COMB, MULT18X18D and MHz of public MX cores for FPGAs, flattened, with these tools, on this
device: a register, a combinational dot product of a block, a register; no sum across blocks."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A row of the table: a unit, the clock to aim for, and its products a cycle (or none).

    With ``absorb`` tables before its adders become part of them, as far as the cells allow and as
    in builds (:mod:`mxhw.compiler.netlist`).
    """

    make: Callable[[], Elaboratable]
    target_mhz: float = 140.0
    lanes: int = 0
    peer: str = ""
    absorb: bool = False


def _dot(x: str, w: str, multiplier: Multiplier | None = None, guard_bits: int = 8) -> DotProduct:
    return DotProduct(
        x_format=parse_format(x),
        w_format=parse_format(w),
        max_terms=TERMS,
        guard_bits=guard_bits,
        align_bits=3,
        multiplier=multiplier,
    )


def _fixed(bits: int, multiplier: Multiplier | None = None) -> FixedDotProduct:
    format = FixedFormat(bits)
    return FixedDotProduct(
        x_format=format, w_format=format, lanes=LANES, max_terms=TERMS, multiplier=multiplier
    )


def _quantizer(mantissa_bits: int, lanes: int, shared: bool, *formats: str) -> Quantizer:
    return Quantizer(
        mantissa_bits=mantissa_bits,
        lanes=lanes,
        formats=[parse_format(name) for name in formats],
        shared_exponent=shared,
    )


def _engine_row(stages: int) -> Unit:
    format = parse_format("mxint8")
    return Unit(
        lambda: MatrixEngine(
            x_format=format, w_format=format, rows=1, multiplier=DspMultiplier(stages)
        ),
        160.0,
        LANES,
    )


def _in_tables(name: str) -> Unit:
    return Unit(lambda: _dot(name, name, LutMultiplier()), 140.0, LANES)


UNITS: dict[str, Unit] = {
    "dot mxint8": Unit(lambda: _dot("mxint8", "mxint8"), 140.0, LANES, "mxint8", absorb=True),
    "dot mxfp4": Unit(
        lambda: _dot("mxfp4", "mxfp4", guard_bits=4), 260.0, LANES, "mxfp4", absorb=True
    ),
    "dot mxfp6_e2m3": Unit(
        lambda: _dot("mxfp6", "mxfp6", DspMultiplier(2)), 150.0, LANES, "mxfp6_e2m3", absorb=True
    ),
    "dot mxfp6_e3m2": Unit(
        lambda: _dot("mxfp6_e3m2", "mxfp6_e3m2", DspMultiplier(2)),
        150.0,
        LANES,
        "mxfp6_e3m2",
        absorb=True,
    ),
    "dot mxfp8_e4m3": Unit(
        lambda: _dot("mxfp8", "mxfp8", DspMultiplier(3)), 130.0, LANES, "mxfp8_e4m3"
    ),
    "dot mxint8 x mxint4, pairs": Unit(
        lambda: _dot("mxint8", "mxint4", PackedPairMultiplier(2)), 140.0, LANES, absorb=True
    ),
    "dot mxint8 x mxfp4": Unit(lambda: _dot("mxint8", "mxfp4"), 140.0, LANES, absorb=True),
    "dot int8 (fixed point)": Unit(lambda: _fixed(8), 140.0, LANES),
    "in tables: dot mxint8": _in_tables("mxint8"),
    "in tables: dot mxint7": _in_tables("mxint7"),
    "in tables: dot mxint8 x mxint6": Unit(
        lambda: _dot("mxint8", "mxint6", LutMultiplier()), 140.0, LANES
    ),
    "in tables: dot mxint6": _in_tables("mxint6"),
    "in tables: dot mxint5": _in_tables("mxint5"),
    "in tables: dot mxint4": _in_tables("mxint4"),
    "in tables: dot mxfp6_e2m3": _in_tables("mxfp6"),
    "in tables: dot int8 (fixed point)": Unit(lambda: _fixed(8, LutMultiplier()), 140.0, LANES),
    "in tables: dot int4 (fixed point)": Unit(lambda: _fixed(4, LutMultiplier()), 140.0, LANES),
    "systolic array 2 x 2 mxint8": Unit(
        lambda: SystolicArray(
            x_format=parse_format("mxint8"),
            w_format=parse_format("mxint8"),
            rows=2,
            columns=2,
            max_terms=TERMS,
            align_bits=3,
        ),
        140.0,
        4 * LANES,
    ),
    "engine row mxint8, 1 stage": _engine_row(1),
    "engine row mxint8, 2 stages": _engine_row(2),
    "engine row mxint8, 3 stages": _engine_row(3),
    "accumulator 21 bits": Unit(lambda: Accumulator(product_bits=21, max_terms=TERMS)),
    "accumulator 21 bits, aligned by 8": Unit(
        lambda: Accumulator(product_bits=21, max_terms=TERMS, align_bits=3)
    ),
    "quantizer 35 bits x4 -> 16/8": Unit(lambda: _quantizer(35, 4, False, "mxint16", "mxint8")),
    "quantizer 34 bits x4 -> 8 shared": Unit(lambda: _quantizer(34, 4, True, "mxint8")),
    "quantizer 34 bits x1 -> 8": Unit(lambda: _quantizer(34, 1, False, "mxint8")),
    "quantizer 34 bits x1 -> mxfp8": Unit(lambda: _quantizer(34, 1, False, "mxfp8")),
    "quantizer 34 bits x1 -> mxfp4": Unit(lambda: _quantizer(34, 1, False, "mxfp4")),
    "quantizer 34 bits x32 -> 8 shared": Unit(lambda: _quantizer(34, 32, True, "mxint8")),
}


def measure(unit: Unit, *, with_route: bool, seeds: int = 1) -> dict[str, float]:
    """Figures of a row; of several seeds the one with the highest clock."""
    if not with_route:
        return unit_cost(unit.make(), absorb=unit.absorb)
    runs = [
        unit_cost(unit.make(), target_mhz=unit.target_mhz, seed=seed, absorb=unit.absorb)
        for seed in range(1, seeds + 1)
    ]
    figures = max(runs, key=lambda run: run["mhz"])
    if unit.lanes:
        macs = unit.lanes * figures["mhz"] * 1e6
        figures["macs_per_second"] = round(macs)
        if not figures["dsp"]:
            figures["macs_per_second_per_lut"] = round(macs / figures["comb"])
    return figures


def compare(name: str, figures: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """What differs from the baseline by more than the tolerance, in sentences."""
    problems = []
    for key, expected in baseline.items():
        found = figures[key]
        allowed = TOLERANCE * expected if key in ("comb", "ff") else 0
        if abs(found - expected) > allowed:
            problems.append(f"{name}: {key} is {found:g}, {expected:g} in the baseline")
    return problems


def _table(results: dict[str, dict[str, float]], with_route: bool) -> Table:
    title = f"{DEVICE}, each unit alone" + ("" if with_route else " (synthesis only)")
    table = Table(title=title)
    table.add_column("unit")
    columns = ["comb", "ff", "dsp", "lut_ram"]
    if with_route:
        columns += ["mhz", "macs_per_second_per_lut"]
    for column in columns:
        table.add_column(column.replace("macs_per_second_per_lut", "MAC/s/LUT"), justify="right")
    table.add_column("public core: comb, dsp, MHz", justify="right")
    for name, figures in results.items():
        peer = PEERS.get(UNITS[name].peer)
        cells = (f"{figures[column]:g}" if column in figures else "" for column in columns)
        table.add_row(name, *cells, "{}, {}, {}".format(*peer) if peer else "")
    return table


@click.command()
@click.argument("pattern", default="")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
@click.option("--route", "with_route", is_flag=True, help="Place and route too.")
@click.option("--seeds", default=1, show_default=True, help="Placements to try; the best counts.")
@click.option("--check", is_flag=True, help="Compare with the baseline.")
@click.option("--update", is_flag=True, help="Write the baseline.")
def main(
    pattern: str, json_file: Path | None, with_route: bool, seeds: int, check: bool, update: bool
) -> None:
    """Print the cells and the clock of the units whose names match PATTERN."""
    chosen = {name: unit for name, unit in UNITS.items() if re.search(pattern, name)}
    results = {}
    for name, unit in track(chosen.items(), "Measuring", console=Console(stderr=True)):
        results[name] = measure(unit, with_route=with_route, seeds=seeds)
    Console().print(_table(results, with_route))
    if json_file is not None:
        peers = {
            name: dict(zip(("comb", "dsp", "mhz"), row, strict=True)) for name, row in PEERS.items()
        }
        document = {"device": DEVICE, "lanes": LANES, "units": results, "peers": peers}
        json_file.write_text(json.dumps(document, indent=2) + "\n")
    if update:
        known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        BASELINE.write_text(json.dumps(known | results, indent=2) + "\n")
    if check:
        baseline = json.loads(BASELINE.read_text())
        problems = [
            line
            for name, figures in results.items()
            for line in compare(name, figures, baseline[name])
        ]
        for line in problems:
            Console(stderr=True).print(line)
        if problems:
            raise click.exceptions.Exit(2)


if __name__ == "__main__":
    main()
