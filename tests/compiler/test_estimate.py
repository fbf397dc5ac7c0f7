# amaranth: UnusedElaboratable=no
import dataclasses

import pytest
import torch

from mxhw.compiler.estimate import estimate, fit
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import parse_format
from mxhw.models.bundled import load
from mxhw.models.llama import Llama, LlamaConfig, LlamaDecode

# What nextpnr counted for the routed design on an LFE5U-85F (4 rows, MXINT8).
MEASURED = {"lut": 28205, "ff": 16335, "dsp": 148, "block_ram": 199}
LARGE = {"multipliers": 1000, "luts": 1_000_000, "block_rams": 1000}


def lowered(weights="mxint8"):
    options = LoweringOptions(weight_format=parse_format(weights))
    return lower(LlamaDecode(load("llama")[0]), options), options


def test_resources_are_near_what_was_measured():
    figures = fit(*lowered(), **{**LARGE, "multipliers": 156})
    assert figures.binding.shape.rows == 4
    for name, measured in MEASURED.items():
        assert figures.resources[name] == pytest.approx(measured, rel=0.1), name


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


STORIES = LlamaConfig(
    vocabulary_size=512, dim=64, hidden=172, layers=5, heads=8, kv_heads=4, head_size=8, context=512
)
ULX3S = {"multipliers": 156, "luts": 83640, "block_rams": 208}


def test_words_behind_a_whole_depth_go_to_lookup_tables_where_block_rams_are_short():
    """A 260 k-parameter model with heads of 8 in MXINT8, on an LFE5U-85F."""
    torch.manual_seed(1)
    options = LoweringOptions()
    graph = lower(LlamaDecode(Llama(STORIES).eval()), options)
    whole = fit(graph, options, **ULX3S)
    assert whole.resources["block_ram"] > 208
    figures = fit(graph, options, **ULX3S, contexts=range(480, 0, -32))
    binding = figures.binding
    assert (binding.shape.context, binding.shape.rows) == (384, 4)
    assert (len(binding.words), binding.block_words) == (2086, 2048)
    assert "2086 weight words, 38 of them in lookup tables" in binding.describe()
    assert figures.resources["block_ram"] == 194
    # With block RAM to spare none is in lookup tables.
    large = fit(graph, options, **LARGE | {"multipliers": 156})
    assert large.binding.block_words is None
    # Sizes for another context are those of a model lowered for it.
    config = dataclasses.replace(STORIES, context=384)
    again = fit(lower(LlamaDecode(Llama(config).eval()), options), options, **ULX3S)
    assert again.resources == figures.resources
    assert again.binding.shape == binding.shape


def test_only_memory_is_short_of_a_model_that_is_too_large():
    graph, options = lowered()
    figures = fit(graph, options, multipliers=156, luts=83640, block_rams=10)
    assert figures.binding.shape.rows == 4


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


def test_biases_and_slots_of_heads_have_their_cost():
    """The units alone, as yosys maps them: 2,593 lookup tables and two block RAMs; 112."""
    torch.manual_seed(1)
    options = LoweringOptions()
    config = dataclasses.replace(STORIES, hidden=128, layers=2, context=64)
    plain, biased = (
        fit(lower(LlamaDecode(Llama(shape).eval()), options), options, **ULX3S)
        for shape in (config, dataclasses.replace(config, qkv_bias=True))
    )
    assert "bias" not in plain.units
    assert biased.units["bias"].block_ram == 2
    assert biased.units["bias"].lut == pytest.approx(2593, rel=0.01)
    one = dataclasses.replace(config, heads=2, kv_heads=1, head_size=32)
    whole = fit(lower(LlamaDecode(Llama(one).eval()), options), options, **ULX3S)
    slots = plain.units["queries"].lut - plain.units["attended"].lut
    assert slots == pytest.approx(112, rel=0.05)
    assert whole.units["queries"] == whole.units["attended"]
