# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.arith.systolic import SystolicArray
from mxhw.formats import parse_format
from mxhw.sw.golden.dot import dot_product
from tests.arith.test_dot_product import random_vectors, tensor
from tests.support import check_stream, measure_latency_and_interval


def beat(format, block):
    codes, scale = block
    half = 1 << (format.element.bits - 1)
    signed = format.element.is_integer
    return {
        "elements": [c - 2 * half if signed and c >= half else c for c in codes],
        "scale": scale,
    }


def tiles(x_format, w_format, rows, columns, count, align_bits=0, most=4):
    """Transfers and sums of tiles; all vectors of a tile have one length."""
    rng = random.Random(1)
    transfers, expected = [], []
    for number in range(count):
        blocks = rng.randint(1, most)
        vectors = random_vectors(x_format, w_format, 200, blocks, seed=number)
        vectors = [vector for vector in vectors if len(vector) == blocks]
        xs = [[x for x, _ in vector] for vector in vectors[:rows]]
        ws = [[w for _, w in vector] for vector in vectors[rows : rows + columns]]
        for block in range(blocks):
            transfers.append(
                {
                    "x": [beat(x_format, x[block]) for x in xs],
                    "w": [beat(w_format, w[block]) for w in ws],
                    "first": block == 0,
                    "last": block == blocks - 1,
                }
            )
        sums = [
            dot_product(tensor(x_format, x), tensor(w_format, w), align_bits=align_bits)[0]
            for x in xs
            for w in ws
        ]
        expected.append(
            {
                "mantissas": [int(total.mantissa) for total in sums],
                "exponents": [int(total.exponent) for total in sums],
            }
        )
    return transfers, expected


@pytest.mark.parametrize(
    ("x_name", "w_name", "rows", "columns", "align_bits"),
    [
        ("mxint8_b8", "mxint4_b8", 2, 3, 0),
        ("mxfp4_b8", "mxfp4_b8", 3, 1, 3),
        ("mxint8_b8", "mxfp6_b8", 1, 2, 0),
    ],
)
def test_equals_golden(x_name, w_name, rows, columns, align_bits):
    formats = {"x_format": parse_format(x_name), "w_format": parse_format(w_name)}
    transfers, expected = tiles(*formats.values(), rows, columns, 12, align_bits)
    unit = SystolicArray(**formats, rows=rows, columns=columns, max_terms=4, align_bits=align_bits)
    assert unit.cost()["multipliers"] == (0 if "fp4" in x_name else 8 * rows * columns)
    check_stream(unit, {"i": transfers}, {"o": expected}, stalls=[(1.0, 1.0), (0.6, 0.5)])


def test_timing():
    format = parse_format("mxint4_b8")
    block = {"elements": [1] * 8, "scale": 127}
    transfer = {"x": [block] * 2, "w": [block] * 3, "first": 1, "last": 1}
    unit = SystolicArray(x_format=format, w_format=format, rows=2, columns=3, max_terms=2)
    timing = measure_latency_and_interval(unit, {"i": [transfer] * 40}, "o", 40, groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": 0}, ValueError, "Rows of an array must be at least 1, not 0"),
        ({"columns": 2.0}, TypeError, "Columns of an array must be an integer, not 2.0"),
        (
            {"w_format": parse_format("mxint4_b16")},
            ValueError,
            "Formats of a dot product must have one block size, not 8 and 16",
        ),
    ],
)
def test_errors(options, error, message):
    format = parse_format("mxint4_b8")
    base = {"x_format": format, "w_format": format, "rows": 2, "columns": 2, "max_terms": 2}
    with pytest.raises(error) as caught:
        SystolicArray(**(base | options))
    assert str(caught.value) == message
