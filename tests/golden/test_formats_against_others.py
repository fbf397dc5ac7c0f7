"""The quantiser's choices: scale rules, non-finite values, and what other libraries compute."""

import math
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch

from mxhw.formats import SCALE_RULES, BlockFormat, ElementFormat, FixedFormat, parse_format
from mxhw.sw.golden import MXTensor, quantize
from mxhw.sw.golden.baseline import dequantize_minifloat, quantize_fixed, quantize_minifloat
from tests.golden.test_tensor import check_block

FLOATS = {
    "mxfp4_e2m1": ml_dtypes.float4_e2m1fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("name", FLOATS)
def test_element_casts_of_every_float16(name):
    """All finite float16 values, rounded to elements as ml_dtypes rounds them."""
    dtype = FLOATS[name]
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)].astype(np.float32)
    largest = float(ml_dtypes.finfo(dtype).max)
    codes = np.clip(x, -largest, largest).astype(dtype).view(np.uint8)
    result = quantize_minifloat(torch.from_numpy(x), parse_format(name).element)
    np.testing.assert_array_equal(result.numpy(), codes)


@pytest.mark.parametrize("name", FLOATS)
def test_every_code_is_its_own_rounding(name):
    element = parse_format(name).element
    values = element.value_table()
    codes = np.flatnonzero(np.isfinite(values))
    again = quantize_minifloat(torch.from_numpy(values[codes]), element)
    np.testing.assert_array_equal(again.numpy(), codes)
    assert torch.equal(
        dequantize_minifloat(again, element).double(), torch.from_numpy(values[codes])
    )


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("name", ["mxint8", "mxint3", *FLOATS, "block_e3m4"])
def test_scale_rules(name, rule):
    """Against exact rationals, with largest magnitudes right around each rule's limits."""
    format = parse_format(f"{name}_b8_{rule}")
    generator = torch.Generator().manual_seed(5)
    for step in range(24):
        x = torch.randn(8, generator=generator, dtype=torch.float64)
        # The largest magnitude is a neighbour of 1, of the largest element or of the next power.
        near = [1.0, 1.75, 1.9375, 1.96875, 1.984375, 1.99609375, 2.0][step % 7]
        x[step % 8] = (near + (step // 7 - 1) * 2.0**-40) * 4
        check_block(x, format)


def test_rceil_never_saturates():
    for name in ("mxfp4_rceil", "mxfp8_rceil", "mxint4_rceil"):
        format = parse_format(name)
        x = torch.randn(64, 32, generator=torch.Generator().manual_seed(6))
        result = quantize(x, format)
        step = torch.ldexp(torch.ones(64, 1), result.exponents())
        error = (result.dequantize() - x).abs()
        assert bool((error <= x.abs() * 2.0**-format.element.mantissa_bits + step).all())


def test_float64_is_rounded_once():
    """A value just above a tie, which float32 would put on it."""
    x = torch.zeros(32, dtype=torch.float64)
    x[0], x[1] = 1.0, 2.0**-7 + 2.0**-50
    assert quantize(x, BlockFormat.mxint(8)).elements.tolist()[:2] == [64, 1]


def test_non_finite_values_by_scale():
    x = torch.ones(3, 32)
    x[0, 3], x[2, 5] = math.nan, math.inf
    result = quantize(x, BlockFormat.mxint(8), non_finite="scale")
    assert result.scales.flatten().tolist() == [255, 127, 255]
    assert result.scales.dtype == torch.uint8
    assert not result.elements[[0, 2]].any()
    assert torch.isnan(result.dequantize()).all(1).tolist() == [True, False, True]
    assert result.is_nan().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("name", "codes"), [("mxfp8_e4m3", [0x7F, 0x7F, 0xFF]), ("mxfp8_e5m2", [0x7F, 0x7C, 0xFC])]
)
def test_non_finite_values_by_element(name, codes):
    x = torch.ones(2, 32)
    x[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    result = quantize(x, parse_format(name), non_finite="element")
    assert result.elements[0, :3].tolist() == codes
    assert torch.equal(result.dequantize()[0, 3:], torch.ones(29))
    assert result.is_nan().flatten().tolist() == [True, False]
    if name == "mxfp8_e5m2":
        assert result.dequantize()[0, 1:3].tolist() == [math.inf, -math.inf]
    else:
        assert torch.isnan(result.dequantize()[0, :3]).all()


def test_non_finite_values_are_refused_where_there_is_no_code():
    x = torch.full((32,), math.nan)
    with pytest.raises(ValueError, match="^Element format e2m1 does not have the special value"):
        quantize(x, parse_format("mxfp4"), non_finite="element")
    message = "^Treatment of non-finite values must be one of error, scale, element, not 'zero'$"
    with pytest.raises(ValueError, match=message):
        quantize(x, parse_format("mxfp4"), non_finite="zero")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis_comes_back(axis):
    x = torch.randn(5, 40, 7, generator=torch.Generator().manual_seed(7))
    result = quantize(x, BlockFormat.mxint(16, 8), axis=axis)
    assert result.dequantize().shape == x.shape
    assert bool(((result.dequantize() - x).abs() < 2.0**-12).all())


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("bits", [4, 8])
def test_fixed_point(bits, granularity):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(8))
    x[3] = 0
    result = quantize_fixed(x, FixedFormat(bits, granularity))
    assert result.scales.shape == ((6, 1) if granularity == "row" else ())
    assert int(result.elements.abs().max()) == result.format.max_code
    assert bool(((result.dequantize() - x).abs() <= result.scales / 2 * 1.00001).all())
    assert not result.elements[3].any()
    with pytest.raises(ValueError, match="^Tensor to quantise must be finite$"):
        quantize_fixed(torch.tensor([math.inf]), FixedFormat(bits, granularity))


def test_minifloats_must_be_floats():
    with pytest.raises(ValueError, match="^Format of a minifloat must be a float, not int8$"):
        quantize_minifloat(torch.zeros(1), BlockFormat.mxint(8).element)
    element = ElementFormat.minifloat(3, 4)
    assert quantize_minifloat(torch.tensor([1e9, -1e9]), element).tolist() == [0x7F, 0xFF]


def torchao_cast(x: torch.Tensor, name: str, rule: str) -> MXTensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    dtype = {
        "mxfp4_e2m1": torch.float4_e2m1fn_x2,
        "mxfp6_e2m3": "fp6_e2m3",
        "mxfp6_e3m2": "fp6_e3m2",
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
    }[name]
    scales, data = module.to_mx(x, dtype, 32, module.ScaleCalculationMode[rule.upper()])
    codes = data.view(torch.uint8).to(torch.int64)
    if name == "mxfp4_e2m1":
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    return MXTensor(codes, scales.view(torch.uint8), parse_format(f"{name}_{rule}"))


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("name", FLOATS)
def test_torchao_computes_the_same(name, rule):
    """Scales and codes of blocks of ordinary sizes; docs/formats.md lists the differences."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(512, 32, generator=generator)
    x = x * 2.0 ** torch.randint(-90, 90, (512, 1), generator=generator)
    x = x * 2.0 ** torch.randint(-9, 1, (512, 32), generator=generator)
    x[::7, :8] = 0
    other = torchao_cast(x, name, rule)
    ours = quantize(x, parse_format(f"{name}_{rule}"))
    assert torch.equal(ours.scales, other.scales)
    assert torch.equal(ours.elements, other.elements)
