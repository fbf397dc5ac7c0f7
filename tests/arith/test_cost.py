# amaranth: UnusedElaboratable=no
"""Cells of the units against the committed baseline, and synthesis for other families."""

import json
from pathlib import Path

import arith
import pytest
import unit_cost

from mxhw.arith import Accumulator, DotProduct, LutMultiplier, Quantizer
from mxhw.formats import parse_format

BASELINE = json.loads(arith.BASELINE.read_text())


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
@pytest.mark.parametrize(
    "name", ["mxint8_b8", "mxfp4_b8", "mxfp8_b8", "accumulator", "quantizer", "float quantizer"]
)
def test_units_are_synthesised_for_other_families(family, name, tmp_path: Path):
    if name == "accumulator":
        unit = Accumulator(product_bits=12, max_terms=4)
    elif "quantizer" in name:
        format = parse_format("mxfp4_b8" if "float" in name else "mxint4_b8")
        unit = Quantizer(mantissa_bits=8, lanes=2, formats=format)
    else:
        format = parse_format(name)
        multiplier = LutMultiplier() if family == "generic" else None
        unit = DotProduct(x_format=format, w_format=format, max_terms=4, multiplier=multiplier)
    counts = unit_cost.cell_counts(unit, tmp_path, family)
    left = [cell for cell in counts if cell.startswith("$") and not cell.startswith("$_")]
    assert sum(counts.values()) > 100
    assert not [cell for cell in left if cell not in ("$scopeinfo", "$mem_v2")]
