"""Attention against float64: base-2 exponential, softmax and the whole operator."""

import math

import pytest
import torch

from mxhw.formats import parse_format
from mxhw.lut.uniform import reciprocal_table
from mxhw.sw.golden import quantize
from mxhw.sw.golden.attention import exp2_fixed, scores, softmax, values

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")

EXP2_ERROR = 6.0e-5
"""Relative error of the table of ``2**F``, rounding to 15 fraction bits included."""

RECIPROCAL_ERROR = 2.3e-4
"""Relative error of the table of ``1 / m``, rounding to 15 fraction bits included."""


def exact(tensor):
    return tensor.dequantize().to(torch.float64)


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_exp2_of_every_fraction():
    fraction = torch.arange(1 << 12)
    for whole in (0, -1, -31):
        mantissa, exponent = exp2_fixed(fraction + (whole << 12))
        assert bool((exponent == whole).all())
        assert int(mantissa.min()) == 1 << 15
        assert int(mantissa.max()) < 1 << 16
        error = mantissa / (2.0**15 * torch.exp2(fraction.to(torch.float64) / 4096)) - 1
        assert float(error.abs().max()) < EXP2_ERROR


def test_reciprocal_of_every_mantissa():
    code = torch.arange(1 << 15)
    factor = reciprocal_table().evaluate(code)
    assert int(factor.max()) == int(factor[0]) == 1 << 15
    error = factor * 2.0**-15 * (1 + code * 2.0**-15) - 1
    assert float(error.abs().max()) < RECIPROCAL_ERROR


def softmax_of(fixed, scales=None, visible=None, format=NARROW):
    if visible is None:
        visible = torch.ones_like(fixed, dtype=torch.bool)
    if scales is None:
        scales = torch.full_like(fixed, 127)
    return softmax(fixed, visible, scales, format)


def test_single_position_is_one():
    result = softmax_of(torch.tensor([-12345]))
    assert int(result.total) == 1 << 31
    assert exact(result.numerators).tolist() == [1.0] + [0.0] * 31


@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_softmax_against_float(spread):
    positions = 100
    logits = spread * randn(8, positions, seed=1).to(torch.float64)
    fixed = torch.round(logits * 4096).to(torch.int64)
    result = softmax_of(fixed)
    power = torch.exp2((fixed - fixed.amax(-1, keepdim=True)) / 4096)
    # The total drops less than 2**-31 of each position and whole positions below that.
    total = result.total * 2.0**-31
    assert bool(((total / power.sum(-1) - 1).abs() < EXP2_ERROR + positions * 2.0**-31).all())
    got = exact(result.numerators)[:, :positions]
    step = torch.exp2(result.numerators.exponents().to(torch.float64)).repeat_interleave(32, -1)
    step = step[:, :positions]
    saturated = result.numerators.elements[:, :positions] == NARROW.element.max_significand
    bound = step * torch.where(saturated, 1.0, 0.5) + EXP2_ERROR * power + 2.0**-31
    assert bool(((got - power).abs() <= bound).all())


def test_value_scales_move_numerators_and_not_the_total():
    fixed = torch.round(randn(64, seed=2) * 4096).to(torch.int64)
    plain = softmax_of(fixed, format=WIDE)
    scales = torch.full_like(fixed, 127)
    scales[32:] = 120
    scaled = softmax_of(fixed, scales, format=WIDE)
    assert int(plain.total) == int(scaled.total)
    assert torch.equal(plain.numerators.elements, scaled.numerators.elements)
    assert (plain.numerators.scales - scaled.numerators.scales).tolist() == [0, 7]


def test_invisible_positions_are_zero():
    fixed = torch.tensor([5000, 0, 1 << 22, -3])
    visible = torch.tensor([True, True, False, True])
    result = softmax_of(fixed, visible=visible)
    alone = softmax_of(torch.tensor([5000, 0, -3]))
    assert int(result.total) == int(alone.total)
    assert int(result.numerators.elements[2]) == 0


def test_far_positions_are_cut():
    fixed = torch.tensor([0, -31 << 12, (-31 << 12) - 1])
    assert int(softmax_of(fixed).total) == (1 << 31) + 1


def reference(q, k, v):
    """Softmax of base-2 logits in float64."""
    power = torch.exp2(q @ k.T)
    return (power / power.sum(-1, keepdim=True)) @ v


@pytest.mark.parametrize("positions", [1, 4, 32, 33, 200])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_attention_against_float(positions, sharpness):
    # The query carries log2(e) / sqrt(head_size), as the compiler folds it in.
    factor = sharpness * math.log2(math.e) / math.sqrt(32)
    query = quantize(factor * randn(6, 32, seed=3), NARROW)
    keys = quantize(randn(positions, 32, seed=4), NARROW)
    cached = quantize(randn(positions, 32, seed=5), NARROW)
    fixed = scores(query, keys)
    probabilities = softmax_of(fixed, cached.scales.squeeze(-1).expand_as(fixed))
    got = exact(values(probabilities, cached.elements, NARROW, WIDE))
    want = reference(exact(query), exact(keys), exact(cached))
    # What an 8-bit number cannot avoid: a numerator is off by half a step of its block's largest
    # one (1/128, or 1/64 where that saturates), and so is the result. Scores are cut at 2**-12.
    largest = exact(cached).abs().max()
    error = (got - want).abs().max() / largest
    assert float(error) < 2.0**-6
    assert float((got - want).square().mean().sqrt() / want.square().mean().sqrt()) < 0.02


def test_constant_values_come_out_again():
    # A weighted mean of equal vectors is that vector, whatever the probabilities.
    query, keys = quantize(randn(4, 32, seed=6), NARROW), quantize(randn(70, 32, seed=7), NARROW)
    cached = quantize(randn(1, 32, seed=8).expand(70, 32), NARROW)
    fixed = scores(query, keys)
    probabilities = softmax_of(fixed, cached.scales.squeeze(-1).expand_as(fixed), format=WIDE)
    got = exact(values(probabilities, cached.elements, NARROW, WIDE))
    step = 2.0 ** (int(cached.scales.max()) - 127 - 6)
    assert float((got - exact(cached)[:1]).abs().max()) <= step
