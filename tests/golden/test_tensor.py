"""The quantiser against an independent model in exact rational arithmetic."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxhw.formats import SCALE_BIAS, BlockFormat, parse_format
from mxhw.sw.golden import MXTensor, Wide, quantize, quantize_wide, widen

NAMES = [
    "mxint2",
    "mxint3",
    "mxint4",
    "mxint6",
    "mxint8",
    "mxint16",
    "mxint24",
    "mxfp4",
    "mxfp6_e2m3",
    "mxfp6_e3m2",
    "mxfp8_e4m3",
    "mxfp8_e5m2",
]
SMALL_BLOCK = 8

torch.set_num_threads(1)


def floor_log2(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def grid(format: BlockFormat) -> list[Fraction]:
    """Values that an element can be given, ascending: all, or those next to 0 and the limits."""
    element = format.element
    unit = Fraction(2) ** -element.fraction_bits
    if element.bits > 8:
        top = element.max_significand
        codes = [*range(-top, 20 - top), *range(-20, 21), *range(top - 20, top + 1)]
    else:
        codes = sorted(
            c for c in set(element.decode_table().tolist()) if abs(c) <= element.max_significand
        )
    return [code * unit for code in codes]


def nearest_even(value: Fraction, format: BlockFormat) -> Fraction:
    """Round to the element's grid: its quantum is that of the value's own binade."""
    element = format.element
    if element.is_integer:
        quantum = Fraction(2) ** -element.fraction_bits
    else:
        exponent = floor_log2(abs(value)) if value else element.min_exponent
        quantum = Fraction(2) ** (max(exponent, element.min_exponent) - element.mantissa_bits)
    largest = element.max_significand * Fraction(2) ** -element.fraction_bits
    # round() of a Fraction rounds ties to even.
    return max(-largest, min(largest, round(value / quantum) * quantum))


def reference_block(values: list[Fraction], format: BlockFormat) -> tuple[int, list[Fraction]]:
    """Scale byte and element values of one block."""
    element = format.element
    largest = max(abs(value) for value in values)
    if not largest:
        return 0, [Fraction(0)] * len(values)
    exponent = floor_log2(largest) - element.max_exponent
    if format.scale_rule == "even":
        bits = element.fraction_bits if element.is_integer else element.mantissa_bits
        half = Fraction(2) ** (floor_log2(largest) - bits - 1)
        exponent = floor_log2(largest + half) - element.max_exponent
    elif format.scale_rule == "rceil":
        limit = element.max_significand * Fraction(2) ** -element.fraction_bits
        exponent += largest > limit * Fraction(2) ** exponent
    exponent = max(-127, min(127, exponent))
    scale = Fraction(2) ** exponent
    return exponent + SCALE_BIAS, [nearest_even(value / scale, format) for value in values]


def element_values(x: MXTensor) -> list[Fraction]:
    unit = Fraction(2) ** -x.format.element.fraction_bits
    return [int(value) * unit for value in x.significands().flatten()]


def check_block(x: torch.Tensor, format: BlockFormat) -> None:
    result = quantize(x, format)
    scale, values = reference_block([Fraction(float(value)) for value in x], format)
    assert int(result.scales[0]) == scale
    assert element_values(result) == values


@pytest.mark.parametrize("name", NAMES)
def test_random_blocks_of_every_size_of_number(name):
    format = parse_format(f"{name}_b{SMALL_BLOCK}")
    generator = torch.Generator().manual_seed(1)
    for spread in (0, 3, 12, 40):
        for _ in range(6):
            exponents = torch.randint(-spread, spread + 1, (SMALL_BLOCK,), generator=generator)
            check_block(torch.randn(SMALL_BLOCK, generator=generator) * 2.0**exponents, format)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=SMALL_BLOCK,
        max_size=SMALL_BLOCK,
    )
)
def test_any_finite_block(name, values):
    check_block(torch.tensor(values), parse_format(f"{name}_b{SMALL_BLOCK}"))


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_grid_and_halfway_between(name):
    """Ties go to the even code; what lies on the grid stays."""
    format = parse_format(f"{name}_b{SMALL_BLOCK}")
    points = grid(format)
    middles = [(a + b) / 2 for a, b in zip(points, points[1:], strict=False)]
    # An element of the largest binade fixes the scale at 1.
    anchor = Fraction(2) ** format.element.max_exponent
    values = [float(v) for v in [*points, *middles]]
    rest = -len(values) % (SMALL_BLOCK - 1)
    rows = torch.tensor(values + [0.0] * rest, dtype=torch.float64).view(-1, SMALL_BLOCK - 1)
    rows = torch.cat([torch.full((len(rows), 1), float(anchor), dtype=torch.float64), rows], 1)
    result = quantize(rows, format)
    assert set(result.scales.flatten().tolist()) == {SCALE_BIAS}
    expected = [nearest_even(Fraction(float(v)), format) for v in rows.flatten()]
    assert element_values(result) == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mxfp4", ml_dtypes.float4_e2m1fn),
        ("mxfp6_e2m3", ml_dtypes.float6_e2m3fn),
        ("mxfp6_e3m2", ml_dtypes.float6_e3m2fn),
        ("mxfp8_e4m3", ml_dtypes.float8_e4m3fn),
        ("mxfp8_e5m2", ml_dtypes.float8_e5m2),
    ],
)
def test_float_codes_are_those_of_another_implementation(name, dtype):
    format = parse_format(name)
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    result = quantize(x, format)
    scaled = (x.double() * 2.0 ** (SCALE_BIAS - result.scales.long())).numpy()
    largest = float(ml_dtypes.finfo(dtype).max)
    codes = np.clip(scaled, -largest, largest).astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(result.elements.numpy(), codes)


@pytest.mark.parametrize("name", NAMES)
def test_quantising_again_changes_nothing(name):
    format = parse_format(name)
    once = quantize(torch.randn(5, 64, generator=torch.Generator().manual_seed(3)), format)
    again = quantize_wide(widen(once), format)
    assert torch.equal(again.dequantize(), once.dequantize())


def test_zero_blocks_have_scale_byte_zero():
    result = quantize(torch.zeros(2, 64), BlockFormat.mxint(8))
    assert not result.scales.any()
    assert not result.elements.any()


def test_integers_saturate_symmetrically():
    format = BlockFormat.mxint(8, SMALL_BLOCK)
    x = torch.tensor([1.9999, -1.9999, 1.0, -1.0, 0, 0, 0, 0])
    assert quantize(x, format).elements.tolist() == [127, -127, 64, -64, 0, 0, 0, 0]


def test_scale_is_clamped_to_its_byte():
    format = BlockFormat.mxfp("e5m2", SMALL_BLOCK)
    huge = Wide(torch.full((SMALL_BLOCK,), 3), torch.full((SMALL_BLOCK,), 150))
    tiny = Wide(torch.full((SMALL_BLOCK,), 3), torch.full((SMALL_BLOCK,), -400))
    assert quantize_wide(huge, format).scales.tolist() == [254]
    assert element_values(quantize_wide(huge, format)) == [Fraction(57344)] * SMALL_BLOCK
    assert quantize_wide(huge, BlockFormat.mxint(8, SMALL_BLOCK)).elements.tolist() == [127] * 8
    farther = Wide(torch.full((SMALL_BLOCK,), -3), torch.full((SMALL_BLOCK,), 900))
    for name in NAMES:
        other = parse_format(f"{name}_b{SMALL_BLOCK}")
        largest = other.element.max_significand * Fraction(2) ** -other.element.fraction_bits
        assert element_values(quantize_wide(farther, other)) == [-largest] * SMALL_BLOCK
    assert quantize_wide(tiny, format).scales.tolist() == [0]
    assert element_values(quantize_wide(tiny, format)) == [0] * SMALL_BLOCK


def test_a_negative_float_that_rounds_to_zero_keeps_its_sign():
    x = torch.zeros(SMALL_BLOCK)
    x[0], x[1], x[2] = 4.0, -1e-3, 1e-3
    assert quantize(x, BlockFormat.mxfp("e2m1", SMALL_BLOCK)).elements.tolist()[:3] == [6, 8, 0]


def test_axis_and_padding():
    format = BlockFormat.mxint(8)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(4))
    result = quantize(x, format, axis=0)
    assert result.elements.shape == (3, 64)
    assert result.scales.shape == (3, 2)
    assert result.blocks == 2
    assert not result.elements[:, 40:].any()
    expected = quantize(torch.nn.functional.pad(x.T, (0, 24)), format)
    assert torch.equal(result.elements, expected.elements)
    row = result[1]
    assert torch.equal(row.dequantize(), result.dequantize()[:, 1])
    assert result.dequantize().shape == x.shape


def test_dequantised_values_are_exact():
    format = BlockFormat.mxint(24, SMALL_BLOCK)
    x = torch.tensor([2.0**23 - 1, 1.0, -3.0, 0.5, 2.0**-1, 7.0, 0.0, 12345.0])
    assert torch.equal(quantize(x, format).dequantize(), x.round())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(bad):
    x = torch.zeros(32)
    x[5] = bad
    with pytest.raises(ValueError, match="^Tensor to quantise must be finite$"):
        quantize(x, BlockFormat.mxint(8))
