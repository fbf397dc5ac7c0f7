# amaranth: UnusedElaboratable=no
"""Cells of the units against the committed baseline, and synthesis for other families."""

import json
from pathlib import Path

import arith
import pytest
import unit_cost

from mxhw.dataflow.engine import MatrixEngine
from tests.arith.units import SMALL, UNITS

BASELINE = json.loads(arith.BASELINE.read_text())


def engine():
    """A small matrix-vector engine."""
    return MatrixEngine(
        x_format=SMALL, w_format=SMALL, rows=2, slots=2, max_blocks=2, groups_bits=4, x_lanes=4
    )


def test_the_baseline_has_every_unit():
    assert set(BASELINE) == set(arith.UNITS)


def test_differences_are_reported():
    baseline = {"comb": 1000, "ff": 200, "dsp": 32}
    assert not arith.compare("unit", {"comb": 1029, "ff": 195, "dsp": 32}, baseline)
    assert arith.compare("unit", {"comb": 1031, "ff": 200, "dsp": 33}, baseline) == [
        "unit: comb is 1031, 1000 in the baseline",
        "unit: dsp is 33, 32 in the baseline",
    ]


@pytest.mark.synth
@pytest.mark.parametrize("name", list(arith.UNITS))
def test_cells_are_those_of_the_baseline(name):
    figures = arith.measure(arith.UNITS[name], with_route=False)
    assert not arith.compare(name, figures, BASELINE[name])


@pytest.mark.synth
@pytest.mark.parametrize("family", ["ecp5", "ice40", "gowin", "xilinx", "generic"])
@pytest.mark.parametrize("name", [*UNITS, "matrix engine"])
def test_units_are_synthesised_for_every_family(family, name, tmp_path: Path):
    unit = engine() if name == "matrix engine" else UNITS[name]()
    counts = unit_cost.cell_counts(unit, tmp_path, family)
    left = [cell for cell in counts if cell.startswith("$") and not cell.startswith("$_")]
    assert sum(counts.values()) > (20 if name == "fifo" else 100)
    assert not [cell for cell in left if cell not in ("$scopeinfo", "$mem_v2")]
