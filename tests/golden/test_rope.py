"""Rotary embedding against float64, with stated error bounds."""

import math

import pytest
import torch

from mxhw.formats import parse_format
from mxhw.sw.golden import quantize
from mxhw.sw.golden.rope import ROPE_FRACTION_BITS, rope, rope_tables

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")


def exact(tensor):
    return tensor.dequantize().to(torch.float64)


def reference(x, position, head_size, theta):
    """The rotation of complex pairs, in float64."""
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = position.to(torch.float64).unsqueeze(-1) * frequency
    turn = torch.polar(torch.ones_like(angle), angle).unsqueeze(-2)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, head_size // 2, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-3)


@pytest.mark.parametrize(("head_size", "theta"), [(32, 10000.0), (64, 500000.0)])
def test_tables_are_the_nearest_integers(head_size, theta):
    cosine, sine = rope_tables(64, head_size, theta)
    for position in (0, 1, 17, 63):
        for pair in range(head_size // 2):
            angle = position * theta ** (-2 * pair / head_size)
            scale = 1 << ROPE_FRACTION_BITS
            assert abs(int(cosine[position, pair]) - scale * math.cos(angle)) < 0.5 + 1e-9
            assert abs(int(sine[position, pair]) - scale * math.sin(angle)) < 0.5 + 1e-9


def test_position_zero_changes_only_the_format():
    x = quantize(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), NARROW)
    y = rope(x, torch.tensor([0, 0]), 4, 32, 10000.0, NARROW)
    assert torch.equal(y.elements, x.elements)
    assert torch.equal(y.scales, x.scales)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("format", [NARROW, WIDE])
@pytest.mark.parametrize("head_size", [32, 64])
def test_rotation_is_within_half_a_step(scale, format, head_size):
    generator = torch.Generator().manual_seed(1)
    position = torch.tensor([0, 1, 31, 200, 255])
    x = quantize(scale * torch.randn(5, 3 * head_size, generator=generator), WIDE)
    y = rope(x, position, 256, head_size, 10000.0, format)
    want = reference(exact(x), position, head_size, 10000.0)
    step = torch.exp2(y.exponents().to(torch.float64)).repeat_interleave(32, -1)
    # Half a quantiser step (one where the largest element saturates), and half a unit of the
    # table for each of the two terms.
    saturated = y.elements.abs() == format.element.max_significand
    pairs = exact(x).unflatten(-1, (-1, 2)).abs().sum(-1).repeat_interleave(2, -1)
    bound = step * torch.where(saturated, 1.0, 0.5) + pairs * 2.0 ** -(ROPE_FRACTION_BITS + 1)
    assert bool(((exact(y) - want).abs() <= bound * (1 + 1e-9)).all())


def test_scores_depend_on_the_distance():
    # The dot product of two rotated vectors is that of their distance, up to the formats' errors.
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 32, generator=generator)
    first = torch.tensor([10, 100, 200])
    rotated = [
        exact(rope(quantize(x.expand(3, 32), WIDE), first + shift, 256, 32, 10000.0, WIDE))
        for x, shift in ((q, 5), (k, 0))
    ]
    dots = (rotated[0] * rotated[1]).sum(-1)
    assert dots.tolist() == pytest.approx([float(dots[0])] * 3, abs=2e-3)
