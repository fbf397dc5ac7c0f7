"""Predicted resources of a binding."""
# amaranth: UnusedElaboratable=no

import dataclasses

import pytest
import torch

from mxhw.compiler.binder import bind
from mxhw.compiler.estimate import estimate
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import parse_format
from mxhw.models.bundled import load
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode


def bound(model=None, weights="mxint8", **changes):
    options = LoweringOptions(weight_format=parse_format(weights))
    graph = lower(LlamaDecode(model or load("llama")[0]), options)
    return dataclasses.replace(bind(graph, options, rows=4), **changes)


def test_narrow_weights_take_fewer_block_rams():
    wide, narrow = estimate(bound()), estimate(bound(weights="mxfp4"))
    assert narrow.units["weights"].block_ram < 0.6 * wide.units["weights"].block_ram


def test_utilisation_is_useful_work_over_what_was_possible():
    figures = estimate(bound())
    share = figures.multiplier_utilisation(64, cycles=5000)
    assert share == figures.binding.useful_macs(64) / (figures.binding.multipliers * 5000)


@pytest.mark.parametrize(
    ("softmax", "attention", "gated", "measured"),
    [
        (2, 2, 1, {"softmax": (2329, 1302), "attention": (1383, 565), "gated": (2099, 1300)}),
        (4, 4, 2, {"softmax": (3523, 2023), "attention": (1724, 683), "gated": (3318, 2224)}),
        (1, 1, 4, {"softmax": (1647, 952), "attention": (1157, 510), "gated": (5571, 4050)}),
    ],
)
def test_units_of_any_width_cost_what_was_measured(softmax, attention, gated, measured):
    """The units alone, as yosys maps them to an ECP5: lookup tables and flip-flops."""
    figures = estimate(bound(softmax_lanes=softmax, attention_lanes=attention, gated_lanes=gated))
    for name, (luts, flip_flops) in measured.items():
        assert figures.units[name].lut == pytest.approx(luts, rel=0.03), name
        assert figures.units[name].ff == pytest.approx(flip_flops, rel=0.03), name


def test_biases_and_slots_of_heads_have_their_cost():
    """The units alone, as yosys maps them: 2,593 lookup tables and two block RAMs; 112."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocabulary_size=512,
        dim=64,
        hidden=128,
        layers=2,
        heads=8,
        kv_heads=4,
        head_size=8,
        context=64,
    )
    one = dataclasses.replace(config, heads=2, kv_heads=1, head_size=32)
    plain, biased, whole = (
        estimate(bound(Llama(shape).eval()))
        for shape in (config, dataclasses.replace(config, qkv_bias=True), one)
    )
    assert "bias" not in plain.units
    assert biased.units["bias"].block_ram == 2
    assert biased.units["bias"].lut == pytest.approx(2593, rel=0.01)
    slots = plain.units["queries"].lut - plain.units["attended"].lut
    assert slots == pytest.approx(112, rel=0.05)
    assert whole.units["queries"] == whole.units["attended"]
