"""Matrix products, fixed point and arg-max against float64, with stated error bounds."""

import pytest
import torch

from mxhw.formats import parse_format
from mxhw.sw.golden import MXTensor, Wide, quantize
from mxhw.sw.golden.linear import (
    ACCUMULATOR_GUARD_BITS,
    FIXED_FRACTION_BITS,
    argmax,
    embedding,
    linear,
    logits,
    matrix_vector,
    to_fixed,
)

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")
FORMATS = ["mxint8", "mxint4", "mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp4"]


def exact(tensor):
    significands = tensor.significands().to(torch.float64)
    return torch.ldexp(significands, tensor.exponents().unsqueeze(-1)).flatten(-2)


def randn(*shape, seed=0, spread=0):
    """Normal numbers; with a spread, each block has a scale of its own within 2**+-spread."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    blocks = torch.randint(-spread, spread + 1, (*shape[:-1], shape[-1] // 32), generator=generator)
    return x * torch.exp2(blocks.to(torch.float64)).repeat_interleave(32, -1)


def test_one_block_is_exact():
    x, w = quantize(randn(3, 32), NARROW), quantize(randn(5, 32, seed=1), NARROW)
    result = matrix_vector(x, w)
    assert torch.equal(result.to_float(), exact(x) @ exact(w).T)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("spread", [0, 6, 40])
def test_product_loses_guard_bits_only(name, spread):
    # Every step floors the accumulator and the term at the largest exponent so far, 8 bits below
    # it: at most two units a block after the first, never upwards. E5M2's dots of 2**37 units
    # times the guard bits stay within int64.
    format = parse_format(name)
    x = quantize(randn(4, 256, spread=spread), NARROW)
    w = quantize(randn(16, 256, seed=2, spread=spread), format)
    result = matrix_vector(x, w)
    largest = (x.exponents().unsqueeze(-2) + w.exponents()).amax(-1)
    assert torch.equal(result.exponent, largest - ACCUMULATOR_GUARD_BITS)
    low = exact(x) @ exact(w).T - result.to_float()
    unit = torch.exp2(result.exponent.to(torch.float64))
    blocks = x.blocks
    # float64 itself rounds the reference where the blocks lie far apart.
    slack = (exact(x).abs() @ exact(w).abs().T) * 2.0**-50
    assert bool((low >= -slack).all())
    assert bool((low <= unit * 2 * (blocks - 1) + slack).all())


@pytest.mark.parametrize("dim", [64, 160, 512])
def test_linear_is_within_half_a_step(dim):
    x, w = quantize(randn(6, dim), NARROW), quantize(randn(64, dim, seed=3) * 0.1, NARROW)
    y = linear(x, w, WIDE)
    want = exact(x) @ exact(w).T
    step = torch.exp2(y.exponents().to(torch.float64)).repeat_interleave(32, -1)
    unit = torch.exp2(matrix_vector(x, w).exponent.to(torch.float64))
    # Half a quantiser step (one where the largest element saturates), and the guard bits.
    saturated = y.elements.abs() == WIDE.element.max_significand
    bound = step * torch.where(saturated, 1.0, 0.5) + unit * 2 * (dim // 32 - 1)
    assert bool(((exact(y) - want).abs() <= bound).all())


def test_fixed_point_floors_and_saturates():
    generator = torch.Generator().manual_seed(4)
    mantissa = torch.randint(-(1 << 34), 1 << 34, (20000,), generator=generator)
    exponent = torch.randint(-70, 8, (20000,), generator=generator)
    fixed = to_fixed(Wide(mantissa, exponent))
    value = torch.ldexp(mantissa.to(torch.float64), exponent + FIXED_FRACTION_BITS)
    want = torch.floor(value).clamp(-(1 << 23), (1 << 23) - 1)
    assert torch.equal(fixed.to(torch.float64), want)


def test_fixed_point_limits_the_power():
    # Above 2**20 the power stays: only numbers that saturate anyway at 12 bits are affected.
    value = Wide(torch.tensor([1, 1, -1, 8, 0]), torch.tensor([8, 100, 100, 100, 2000]))
    assert to_fixed(value).tolist() == [1 << 20, 1 << 20, -(1 << 20), (1 << 23) - 1, 0]


def test_logits_are_within_a_step():
    x, w = quantize(randn(5, 64), NARROW), quantize(randn(128, 64, seed=5), NARROW)
    got = logits(x, w).to(torch.float64) * 2.0**-FIXED_FRACTION_BITS
    low = exact(x) @ exact(w).T - got
    unit = torch.exp2(matrix_vector(x, w).exponent.to(torch.float64))
    assert bool((low >= 0).all())
    assert bool((low < 2.0**-FIXED_FRACTION_BITS + 2 * unit).all())


def test_argmax_takes_the_first_of_equals():
    generator = torch.Generator().manual_seed(6)
    values = torch.randint(-3, 4, (200, 33), generator=generator)
    result = argmax(values)
    for row, index in zip(values.tolist(), result.tolist(), strict=True):
        assert index == row.index(max(row))
    lowest = torch.full((4,), -(1 << 23))
    assert int(argmax(lowest)) == 0


@pytest.mark.parametrize("name", FORMATS)
def test_embedding_is_exact_in_the_wide_format(name):
    table = quantize(randn(10, 64), parse_format(name))
    rows = torch.tensor([3, 3, 0, 9])
    result = embedding(table, rows, parse_format("mxint24"))
    if name != "mxfp8_e5m2":
        assert torch.equal(exact(result), exact(table)[rows])
    assert isinstance(result, MXTensor)
    step = torch.exp2(result.exponents().to(torch.float64)).repeat_interleave(32, -1)
    assert bool(((exact(result) - exact(table)[rows]).abs() <= step / 2).all())
