# amaranth: UnusedElaboratable=no
import pytest

from mxhw.compiler.estimate import estimate, fit
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import parse_format
from mxhw.models.bundled import load
from mxhw.models.llama import LlamaDecode

# What nextpnr counted for the routed design on an LFE5U-85F (4 rows, MXINT8).
MEASURED = {"lut": 28157, "ff": 15545, "dsp": 149, "block_ram": 200}
LARGE = {"multipliers": 1000, "luts": 1_000_000, "block_rams": 1000}


def lowered(weights="mxint8"):
    options = LoweringOptions(weight_format=parse_format(weights))
    return lower(LlamaDecode(load("llama")[0]), options), options


def test_resources_are_near_what_was_measured():
    figures = fit(*lowered(), **{**LARGE, "multipliers": 156})
    assert figures.binding.shape.rows == 4
    for name, measured in MEASURED.items():
        assert figures.resources[name] == pytest.approx(measured, rel=0.2), name


def test_a_larger_device_gets_more_rows():
    graph, options = lowered()
    wide = fit(graph, options, **LARGE)
    narrow = fit(graph, options, **{**LARGE, "multipliers": 100})
    assert (wide.binding.shape.rows, narrow.binding.shape.rows) == (8, 2)
    assert wide.resources["dsp"] > narrow.resources["dsp"]
    assert wide.cycles_per_token(64) < narrow.cycles_per_token(64)


def test_the_narrowest_is_told_if_nothing_fits():
    graph, options = lowered()
    figures = fit(graph, options, multipliers=1, luts=1, block_rams=1)
    assert figures.binding.shape.rows == 2


def test_narrow_weights_take_fewer_block_rams():
    wide = fit(*lowered(), **LARGE)
    narrow = fit(*lowered("mxfp4"), **LARGE)
    assert narrow.units["weights"].block_ram < 0.6 * wide.units["weights"].block_ram


def test_utilisation_is_useful_work_over_what_was_possible():
    figures = fit(*lowered(), **LARGE)
    binding = figures.binding
    share = figures.multiplier_utilisation(64, cycles=5000)
    assert share == binding.useful_macs(64) / (binding.multipliers * 5000)
    assert estimate(binding).resources == figures.resources
