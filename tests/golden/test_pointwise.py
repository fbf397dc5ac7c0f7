"""Residual addition, SiLU and gated SiLU against float64."""

import pytest
import torch

from mxhw.formats import parse_format
from mxhw.sw.golden import MXTensor, Wide, quantize
from mxhw.sw.golden.pointwise import add, silu, silu_wide, swiglu

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")
CODES = torch.arange(-(1 << 15) + 1, 1 << 15)

SILU_ERROR = 7.0e-4
"""Relative error of silu_wide where the exponent of two is not cut: three tables and two floors."""


def exact(tensor):
    return tensor.dequantize().to(torch.float64)


def step_of(tensor):
    unit = tensor.scales.to(torch.float64) - 127 - tensor.format.element.fraction_bits
    return torch.exp2(unit).repeat_interleave(tensor.format.block_size, -1)


@pytest.mark.parametrize("exponent", range(-20, -9))
def test_silu_core_every_code(exponent):
    x = Wide(CODES, torch.full_like(CODES, exponent))
    value = x.to_float()
    y = silu_wide(x)
    want = torch.nn.functional.silu(value)
    # The exponent of two has 12 fraction bits (a relative error of 2**-12 of the exponential), the
    # constant 14 (a relative error of 2**-16 of the exponent), and the result floors at e - 1.
    allowed = SILU_ERROR * want.abs() + torch.exp2(y.exponent.to(torch.float64))
    inside = value.abs() < 22
    assert bool(((y.to_float() - want).abs() <= allowed)[inside].all())
    assert int(y.mantissa.abs().max()) < 1 << 17


def test_silu_core_tails():
    x = Wide(torch.tensor([20000, -20000]), torch.tensor([0, 0]))
    y = silu_wide(x)
    assert y.to_float()[0] == 20000
    assert -1e-4 < float(y.to_float()[1]) < 0


@pytest.mark.parametrize("exponent", [-141, -100, -60, -40, 20, 60, 113])
def test_silu_core_extreme_exponents(exponent):
    y = silu_wide(Wide(CODES, torch.full_like(CODES, exponent)))
    value = CODES.to(torch.float64)
    if exponent < 0:
        # Linear: x / 2 exactly.
        want = torch.ldexp(value, torch.tensor(exponent - 1))
        assert torch.equal(y.to_float(), want)
    else:
        want = torch.ldexp(value, torch.tensor(exponent))
        positive = CODES >= 0
        assert torch.equal(y.to_float()[positive], want[positive])
        assert bool((y.to_float()[~positive] <= 0).all())


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_silu_quantised(scale):
    generator = torch.Generator().manual_seed(3)
    x = quantize(scale * torch.randn(50, 128, generator=generator), WIDE)
    y = silu(x, NARROW)
    want = torch.nn.functional.silu(exact(x))
    # A whole step: the largest element of a block may saturate.
    assert bool(((exact(y) - want).abs() <= step_of(y) + 1e-3 * want.abs()).all())


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_swiglu_quantised(scale):
    generator = torch.Generator().manual_seed(4)
    gate = quantize(scale * torch.randn(50, 128, generator=generator), WIDE)
    up = quantize(torch.randn(50, 128, generator=generator), WIDE)
    y = swiglu(gate, up, NARROW)
    want = torch.nn.functional.silu(exact(gate)) * exact(up)
    assert bool(((exact(y) - want).abs() <= step_of(y) + 1e-3 * want.abs()).all())


@pytest.mark.parametrize("format", ["mxint8", "mxint4", "mxfp8_e4m3", "mxfp6_e3m2"])
def test_swiglu_of_zero_blocks_is_zero(format):
    zero = quantize(torch.zeros(64), WIDE)
    up = quantize(torch.randn(64, generator=torch.Generator().manual_seed(0)), WIDE)
    for left, right in ((zero, up), (up, zero), (zero, zero)):
        y = swiglu(left, right, parse_format(format))
        assert not y.elements.any()
        assert not y.scales.any()


@pytest.mark.parametrize("shift", [0, 3, 12, 30])
def test_add_is_within_half_a_step(shift):
    generator = torch.Generator().manual_seed(shift)
    x = quantize(torch.randn(20, 128, generator=generator), WIDE)
    y = quantize(2.0**-shift * torch.randn(20, 128, generator=generator), WIDE)
    z = add(x, y, WIDE)
    want = exact(x) + exact(y)
    # The guard bits' floors cost less than 1/100 of a step; saturation costs up to half a step.
    assert bool(((exact(z) - want).abs() <= step_of(z) * 1.01).all())
    inside = z.elements.abs() < WIDE.element.max_significand
    assert bool(((exact(z) - want).abs() <= step_of(z) * 0.51)[inside].all())


def test_add_cancels_to_zero():
    x = quantize(torch.randn(64, generator=torch.Generator().manual_seed(1)), WIDE)
    z = add(x, MXTensor(-x.elements, x.scales, WIDE), WIDE)
    assert not z.elements.any()
    assert not z.scales.any()
