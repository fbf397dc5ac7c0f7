# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.arith.fixed_dot import FixedDotProduct
from mxhw.arith.multiply import DspMultiplier, LutMultiplier
from mxhw.formats import FixedFormat, parse_format
from tests.support import check_stream, measure_latency_and_interval


def vectors(limits, count, lanes, max_terms):
    rng = random.Random(1)
    rows, expected = [], []
    for index in range(count):
        terms = rng.randint(1, max_terms) if index else max_terms
        total = 0
        for term in range(terms):
            codes = [
                [rng.choice((-limit, limit, rng.randint(-limit, limit))) for _ in range(lanes)]
                for limit in limits
            ]
            if not index:
                codes = [[-limit] * lanes for limit in limits]
            total += sum(a * b for a, b in zip(*codes, strict=True))
            rows.append(
                {"x": codes[0], "w": codes[1], "first": term == 0, "last": term == terms - 1}
            )
        expected.append(total)
    return rows, expected


@pytest.mark.parametrize("multiplier", [DspMultiplier(), LutMultiplier(2)])
@pytest.mark.parametrize("bits", [(8, 8), (8, 4)])
def test_exact_sums(bits, multiplier):
    formats = [FixedFormat(width) for width in bits]
    rows, expected = vectors([f.max_code for f in formats], 30, 4, 5)
    unit = FixedDotProduct(
        x_format=formats[0], w_format=formats[1], lanes=4, max_terms=5, multiplier=multiplier
    )
    assert unit.cost()["multipliers"] == 4 * multiplier.multipliers
    check_stream(unit, {"i": rows}, {"o": expected})


def test_timing():
    rows, expected = vectors([127, 127], 1, 8, 1)
    unit = FixedDotProduct(x_format=FixedFormat(8), w_format=FixedFormat(8), lanes=8, max_terms=1)
    timing = measure_latency_and_interval(unit, {"i": rows * 40}, "o", 40, groups=40)
    assert len(expected) == 1
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lanes": 12}, ValueError, "Lanes of a dot product must be a power of two, not 12"),
        ({"lanes": 8.0}, TypeError, "Lanes of a dot product must be an integer, not 8.0"),
        (
            {"max_terms": 0},
            ValueError,
            "Number of terms of a dot product must be at least 1, not 0",
        ),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error) as caught:
        FixedDotProduct(
            **({"x_format": FixedFormat(8), "w_format": FixedFormat(8), "max_terms": 2} | options)
        )
    assert str(caught.value) == message


def test_formats_must_be_fixed():
    with pytest.raises(TypeError, match="^Format of a fixed dot product must be fixed, not Block"):
        FixedDotProduct(x_format=parse_format("mxint8"), w_format=FixedFormat(8), max_terms=2)
