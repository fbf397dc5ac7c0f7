# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.back import rtlil

from mxhw.arith.dot import BlockDot
from mxhw.arith.multiply import LutMultiplier
from mxhw.formats import parse_format
from tests.support import check_stream, measure_latency_and_interval

NAMES = [
    ("mxint8_b8", "mxint8_b8"),
    ("mxfp4_b8", "mxint8_b8"),
    ("mxfp6_b16", "mxfp6_e3m2_b16"),
    ("mxint16_b8", "mxint4_b8"),
]


def random_pairs(x_format, w_format, count):
    """Payloads, and the products that the formats' tables give."""
    rng = random.Random(count)
    rows, expected = [], []
    for index in range(count):
        row = {}
        for key, format in (("x", x_format), ("w", w_format)):
            table = format.element.decode_table()
            codes = [rng.randrange(len(table)) for _ in range(format.block_size)]
            extreme = {0: int(table.argmin()), 1: int(table.argmax()), 2: 0}.get(index)
            if extreme is not None:
                codes = [extreme] * format.block_size
            scale = rng.choice((0, 254, rng.randrange(255)))
            row[key] = (codes, scale, table[codes])
        product = int((row["x"][2] * row["w"][2]).sum())
        exponent = sum(
            row[key][1] - 127 - format.element.fraction_bits
            for key, format in (("x", x_format), ("w", w_format))
        )
        signed_codes = {}
        for key, format in (("x", x_format), ("w", w_format)):
            codes, scale, values = row[key]
            elements = values.tolist() if format.element.is_integer else codes
            signed_codes[key] = {"elements": elements, "scale": scale}
        rows.append(signed_codes)
        expected.append({"product": product, "exponent": exponent})
    return rows, expected


@pytest.mark.parametrize(("x_name", "w_name"), NAMES)
def test_equals_the_sum_of_products(x_name, w_name):
    formats = parse_format(x_name), parse_format(w_name)
    rows, expected = random_pairs(*formats, 40)
    check_stream(BlockDot(x_format=formats[0], w_format=formats[1]), {"i": rows}, {"o": expected})


@pytest.mark.parametrize("name", ["mxint8_b8", "mxint8"])
def test_timing_and_cost(name):
    format = parse_format(name)
    unit = BlockDot(x_format=format, w_format=format)
    rows, expected = random_pairs(format, format, 40)
    timing = measure_latency_and_interval(unit, {"i": rows}, "o", len(expected), groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    assert unit.latency == 3 + format.block_size.bit_length() - 1
    cost = unit.cost()
    assert cost["multipliers"] == format.block_size
    assert (
        rtlil.convert(BlockDot(x_format=format, w_format=format)).count("cell $mul")
        == (cost["multipliers"])
    )


def test_products_in_lookup_tables():
    format = parse_format("mxfp4_b8")
    rows, expected = random_pairs(format, format, 30)
    unit = BlockDot(x_format=format, w_format=format, multiplier=LutMultiplier())
    assert unit.cost()["multipliers"] == 0
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(0.8, 0.8)])


def test_properties():
    x, w = parse_format("mxint8"), parse_format("mxint4")
    unit = BlockDot(x_format=x, w_format=w)
    assert (unit.x_format, unit.w_format, unit.product_bits) == (x, w, 17)


def test_block_sizes_must_be_equal():
    message = r"^Formats of a dot product must have one block size, not 32 and 16$"
    with pytest.raises(ValueError, match=message):
        BlockDot(x_format=parse_format("mxint8"), w_format=parse_format("mxint8_b16"))


def test_wide_significands_are_refused():
    with pytest.raises(ValueError, match=r"^Significands must have at most 18 bits, not 19 "):
        BlockDot(x_format=parse_format("mxfp8"), w_format=parse_format("mxfp8"))
