import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mxhw.errors import UserError
from mxhw.formats import BlockFormat, ElementFormat, FixedFormat, list_formats, parse_format

FLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("name", FLOATS)
def test_float_codes_mean_what_the_specification_says(name):
    element = BlockFormat.mxfp(name).element
    codes = np.arange(1 << element.bits, dtype=np.uint8)
    expected = codes.view(FLOATS[name]).astype(np.float64)
    values = element.decode_table() * 2.0**-element.fraction_bits
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(values[finite], expected[finite])
    assert not element.decode_table()[~finite].any()


@pytest.mark.parametrize("name", FLOATS)
def test_values_of_all_codes_with_nan_and_infinities(name):
    element = BlockFormat.mxfp(name).element
    codes = np.arange(1 << element.bits, dtype=np.uint8)
    expected = codes.view(FLOATS[name]).astype(np.float64)
    np.testing.assert_array_equal(element.value_table(), expected)
    assert element.has_nan == bool(np.isnan(expected).any())
    assert element.has_infinity == bool(np.isinf(expected).any())


def test_codes_of_special_values():
    e4m3, e5m2 = BlockFormat.mxfp("e4m3").element, BlockFormat.mxfp("e5m2").element
    assert (e4m3.code_of(np.nan), e5m2.code_of(np.nan)) == (0x7F, 0x7F)
    assert (e5m2.code_of(np.inf), e5m2.code_of(-np.inf)) == (0x7C, 0xFC)
    for element, value in ((e4m3, np.inf), (BlockFormat.mxint(8).element, np.nan), (e4m3, 1.0)):
        message = f"^Element format {element.name} does not have the special value {value}$"
        with pytest.raises(ValueError, match=message):
            element.code_of(value)


def test_minifloats_of_the_specification_s_widths():
    """Without special codes E2M3, E3M2 and E2M1 are the specification's own."""
    for name in ("e2m3", "e3m2", "e2m1"):
        element = ElementFormat.minifloat(int(name[1]), int(name[3]))
        assert element == BlockFormat.mxfp(name).element
    assert ElementFormat.minifloat(4, 3).max_significand == 480 << 9
    table = ElementFormat.minifloat(3, 4).value_table()
    assert len(set(table.tolist())) == 255
    assert np.isfinite(table).all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((0, 3), "Exponent width of a minifloat must be between 1 and 5, not 0"),
        ((3, 11), "Mantissa width of a minifloat must be between 0 and 10, not 11"),
    ],
)
def test_widths_of_minifloats(widths, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ElementFormat.minifloat(*widths)
    with pytest.raises(TypeError, match=r"^Mantissa width of a minifloat must be an integer"):
        ElementFormat.minifloat(3, 3.0)


def test_fixed_formats():
    assert FixedFormat(8).name == "int8_tensor"
    assert (FixedFormat(4, "row").name, FixedFormat(4).max_code) == ("int4_row", 7)
    with pytest.raises(ValueError, match=r"^Width of fixed point must be between 2 and 16, not 1$"):
        FixedFormat(1)
    with pytest.raises(TypeError, match=r"^Width of fixed point must be an integer, not 8\.0$"):
        FixedFormat(8.0)
    message = r"^Granularity of fixed point must be tensor or row, not 'block'$"
    with pytest.raises(ValueError, match=message):
        FixedFormat(8, "block")


def test_scale_rules_are_checked():
    message = r"^Scale rule must be one of floor, even, rceil, not 'ceil'$"
    with pytest.raises(ValueError, match=message):
        BlockFormat(BlockFormat.mxint(8).element, 32, "ceil")


@pytest.mark.parametrize("name", FLOATS)
def test_float_parameters(name):
    element = BlockFormat.mxfp(name).element
    limits = ml_dtypes.finfo(FLOATS[name])
    assert element.max_significand * 2.0**-element.fraction_bits == float(limits.max)
    assert 2.0**element.min_exponent == float(limits.smallest_normal)
    assert 2.0**element.max_exponent <= float(limits.max) < 2.0 ** (element.max_exponent + 1)
    table = element.decode_table()
    assert np.abs(table).max() == element.max_significand
    assert np.abs(table).max() < 1 << (element.significand_bits - 1)


@pytest.mark.parametrize("bits", range(2, 13))
def test_integer_codes_are_twos_complement(bits):
    element = BlockFormat.mxint(bits).element
    table = element.decode_table()
    half = 1 << (bits - 1)
    np.testing.assert_array_equal(table, [*range(half), *range(-half, 0)])
    assert element.max_significand == half - 1
    assert element.fraction_bits == bits - 2
    assert element.max_exponent == 0
    assert element.significand_bits == bits


def test_ocp_mxint8_is_the_specification_s():
    element = BlockFormat.mxint(8).element
    assert element == ElementFormat("int8", 8, 0, 0, 127)
    assert element.decode_table()[0x40] * 2.0**-element.fraction_bits == 1.0


@pytest.mark.parametrize(
    ("name", "bits"), [("mxint8", 264), ("mxfp4", 136), ("mxfp6", 200), ("mxint4_b16", 72)]
)
def test_block_bits(name, bits):
    assert parse_format(name).block_bits == bits


@pytest.mark.parametrize("name", list_formats())
def test_names_of_listed_formats_are_read_back(name):
    assert parse_format(name).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mxfp4", "mxfp4_e2m1"),
        ("mxfp6", "mxfp6_e2m3"),
        ("mxfp8", "mxfp8_e4m3"),
        (" MXFP6-E3M2 ", "mxfp6_e3m2"),
        ("mxint24", "mxint24"),
        ("mxint4_b16", "mxint4_b16"),
        ("mxint8_b32", "mxint8"),
        ("mxfp4_floor", "mxfp4_e2m1"),
        ("mxfp4_b16_rceil", "mxfp4_e2m1_b16_rceil"),
        ("mxint6_even", "mxint6_even"),
        ("block_e3m4", "block_e3m4"),
        ("block_e4m3_b64", "block_e4m3_b64"),
    ],
)
def test_other_spellings(text, name):
    assert parse_format(text).name == name


@pytest.mark.parametrize(
    "text",
    ["", "int8", "mxint", "mxint1", "mxint25", "mxfp5", "mxfp8_e2m1", "mxint8_b7", "mxfp4e2m1"],
)
def test_unknown_names_are_refused(text):
    expected = (
        f"Format {text!r} does not exist; choose one of mxint8, mxint6, mxint5, mxint4, "
        f"mxfp8_e4m3, mxfp8_e5m2, mxfp6_e2m3, mxfp6_e3m2, mxfp4_e2m1 (MXINT of 2 to 24 bits, "
        f"and _b8 to _b128 for another block size)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        parse_format(text)


@pytest.mark.parametrize("size", [0, 4, 12, 33, 256])
def test_block_sizes_are_powers_of_two(size):
    with pytest.raises(
        ValueError,
        match=f"^Block size must be a power of two between 8 and 128, not {size}$",
    ):
        BlockFormat.mxint(8, size)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"^Block size must be an integer, not 32\.0$"):
        BlockFormat.mxint(8, 32.0)
    with pytest.raises(TypeError, match=r"^Element width must be an integer, not '8'$"):
        BlockFormat.mxint("8")
    with pytest.raises(
        ValueError,
        match=r"^Element format must be one of e4m3, e5m2, e2m3, e3m2, e2m1, not 'e1m2'$",
    ):
        BlockFormat.mxfp("e1m2")


def test_the_documented_table_is_right():
    page = Path(__file__).parents[1] / "docs" / "reference" / "formats.md"
    rows = re.findall(r"^\| `(mx\w+)` \|(.*)\|$", page.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 8
    for name, row in rows:
        format = parse_format(name)
        element = format.element
        assert [cell.strip() for cell in row.split("|")][1:] == [
            str(element.bits),
            f"{element.max_significand * 2.0**-element.fraction_bits:.10g}",
            str(element.fraction_bits),
            str(element.significand_bits),
            str(format.block_bits),
        ], name
