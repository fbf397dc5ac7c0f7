"""RMSNorm against float64: constants, the factor's relative error and the whole operator."""

import math

import pytest
import torch

from mxhw.formats import parse_format
from mxhw.lut.uniform import rsqrt_table
from mxhw.sw.golden import Wide, quantize
from mxhw.sw.golden.norm import NormConstants, rms_factor, rms_norm

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")

FACTOR_ERROR = 4.0e-4
"""Relative error of the factor: 3.4e-4 of the table, whose first segment is exact at 1 and so errs
twice as much, and half of 2**-15 for each of the two cuts to 16 bits."""


def reference(x, weight, epsilon):
    x = x.to(torch.float64)
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon)
    return y if weight is None else y * weight.to(torch.float64)


def exact(tensor):
    return tensor.dequantize().to(torch.float64)


@pytest.mark.parametrize("dim", [32, 64, 96, 128, 288, 512, 4096])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6, 1e-12, 0.5])
def test_constants_are_normalised(dim, epsilon):
    constants = NormConstants.of(dim, epsilon)
    assert 1 << 15 <= constants.epsilon_mantissa < 1 << 16
    assert 1 << 15 <= constants.inverse_mantissa < 1 << 16
    value = math.ldexp(constants.epsilon_mantissa, constants.epsilon_exponent)
    assert value == pytest.approx(dim * epsilon, rel=2**-16)
    inverse = math.ldexp(constants.inverse_mantissa, constants.inverse_exponent - 15)
    assert inverse == pytest.approx(1 / dim, rel=2**-16)


def test_power_of_two_dimension_is_exact():
    constants = NormConstants.of(128, 1e-5)
    assert (constants.inverse_mantissa, constants.inverse_exponent) == (1 << 15, -7)


@pytest.mark.parametrize("dim", [32, 96, 128, 288, 768])
def test_factor_has_small_relative_error(dim):
    generator = torch.Generator().manual_seed(dim)
    mantissa = torch.randint(1, 1 << 40, (20000,), generator=generator)
    mantissa = mantissa >> torch.randint(0, 40, (20000,), generator=generator)
    mantissa = mantissa.clamp(min=1)
    exponent = torch.randint(-60, 60, (20000,), generator=generator)
    total = Wide(mantissa, exponent)
    factor = rms_factor(total, NormConstants.of(dim, 1e-5), rsqrt_table()).to_float()
    error = factor * torch.sqrt(total.to_float() / dim) - 1
    assert float(error.abs().max()) < FACTOR_ERROR


def test_factor_uses_all_codes_of_both_octaves():
    mantissa = torch.arange(1 << 15, 1 << 16)
    for exponent in (0, 1):
        total = Wide(mantissa, torch.full_like(mantissa, exponent))
        factor = rms_factor(total, NormConstants.of(1 << 5, 1e-5), rsqrt_table())
        error = factor.to_float() * torch.sqrt(total.to_float() / 32) - 1
        assert float(error.abs().max()) < FACTOR_ERROR


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 300.0])
def test_operator_is_within_half_a_step(weighted, scale):
    generator = torch.Generator().manual_seed(5)
    dim = 128
    x = quantize(scale * torch.randn(40, dim, generator=generator), WIDE)
    weight = None
    if weighted:
        weight = quantize(1 + 0.3 * torch.randn(dim, generator=generator), WIDE)
    y = rms_norm(x, weight, 1e-5, dim, NARROW)
    want = reference(exact(x), None if weight is None else exact(weight), 1e-5)
    # Half a quantiser step (a whole one where the largest element saturates), the factor's error
    # and, with a weight, the floor of x * r at 2**-15 of the block's unit.
    step = torch.exp2(y.scales.to(torch.float64) - 127 - NARROW.element.fraction_bits)
    bound = (step * 0.51).repeat_interleave(32, -1) + FACTOR_ERROR * want.abs()
    saturated = (y.elements.abs() == NARROW.element.max_significand).to(torch.float64)
    bound = bound + saturated * step.repeat_interleave(32, -1) * 0.5
    assert bool(((exact(y) - want).abs() <= bound).all())


def test_zero_vector_gives_zero():
    x = quantize(torch.zeros(128), WIDE)
    y = rms_norm(x, None, 1e-5, 128, NARROW)
    assert not y.elements.any()
    assert not y.scales.any()


def test_one_large_block_does_not_lose_its_factor():
    x = torch.full((128,), 2.0**-20)
    x[:32] = 2.0**20
    y = rms_norm(quantize(x, WIDE), None, 1e-5, 128, NARROW)
    want = reference(x, None, 1e-5)
    assert exact(y)[:32].numpy() == pytest.approx(want[:32].numpy(), rel=1e-2)
    assert exact(y)[32:].numpy() == pytest.approx(want[32:].numpy(), rel=1e-2)


def test_sum_of_squares_floors_small_blocks_without_guard_bits():
    # Sixteen bits below the largest block a block's squares vanish: 32 exponents, 32 bits.
    x = torch.full((64,), 2.0**-24)
    x[:32] = 1.0
    small, none = quantize(x, WIDE), quantize(torch.cat([x[:32], torch.zeros(32)]), WIDE)
    left = rms_norm(small, None, 1e-12, 64, NARROW)
    right = rms_norm(none, None, 1e-12, 64, NARROW)
    assert torch.equal(left.elements[:32], right.elements[:32])
