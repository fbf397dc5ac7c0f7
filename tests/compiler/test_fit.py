"""Which binding a device gets."""
# amaranth: UnusedElaboratable=no

import dataclasses

import pytest
import torch

from mxhw.compiler.fit import fit
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import parse_format
from mxhw.models.bundled import load
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode

STORIES = LlamaConfig(
    vocabulary_size=512, dim=64, hidden=172, layers=5, heads=8, kv_heads=4, head_size=8, context=512
)
ULX3S = {"multipliers": 156, "luts": 83640, "block_rams": 208}
LARGE = {"multipliers": 1000, "luts": 1_000_000, "block_rams": 1000}

# What nextpnr counted for the routed design on an LFE5U-85F (4 rows, MXINT8).
MEASURED = {"lut": 30503, "ff": 18021, "dsp": 154, "block_ram": 199}


def lowered(weights="mxint8"):
    options = LoweringOptions(weight_format=parse_format(weights))
    return lower(LlamaDecode(load("llama")[0]), options), options


def test_resources_are_near_what_was_measured():
    figures = fit(*lowered(), **ULX3S)
    assert figures.binding.shape.rows == 4
    for name, measured in MEASURED.items():
        assert figures.resources[name] == pytest.approx(measured, rel=0.05), name


@pytest.mark.parametrize(
    ("multipliers", "luts", "widths"),
    [
        # All that pays within two fifths of the lookup tables.
        (156, 83640, (4, 4, 2)),
        # A second lane of the gated SiLU takes four multipliers, two of the attention output two.
        (151, 83640, (4, 4, 1)),
        (149, 83640, (4, 2, 1)),
        (148, 83640, (4, 2, 1)),
        (156, 70000, (2, 2, 1)),
        (156, 72000, (2, 4, 1)),
    ],
)
def test_units_get_wider_where_the_device_has_room(multipliers, luts, widths):
    figures = fit(*lowered(), multipliers=multipliers, luts=luts, block_rams=208)
    binding = figures.binding
    assert (binding.softmax_lanes, binding.attention_lanes, binding.gated_lanes) == widths
    needs = figures.resources
    assert needs["dsp"] <= multipliers
    assert widths == (2, 2, 1) or needs["lut"] <= 0.4 * luts


def test_a_larger_device_gets_more_rows():
    graph, options = lowered()
    wide = fit(graph, options, **LARGE)
    narrow = fit(graph, options, **LARGE | {"multipliers": 100})
    assert (wide.binding.shape.rows, narrow.binding.shape.rows) == (8, 2)
    assert wide.resources["dsp"] > narrow.resources["dsp"]
    assert wide.cycles_per_token(64) < narrow.cycles_per_token(64)


def test_the_narrowest_is_told_if_nothing_fits():
    graph, options = lowered()
    figures = fit(graph, options, multipliers=1, luts=1, block_rams=1)
    assert figures.binding.shape.rows == 2


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
