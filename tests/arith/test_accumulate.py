# amaranth: UnusedElaboratable=no
import random

import pytest
import torch
from amaranth.back import rtlil
from hypothesis import given, settings
from hypothesis import strategies as st

from mxhw.arith.accumulate import Accumulator
from mxhw.sw.golden.integer import accumulate
from tests.support import check_stream, measure_latency_and_interval

BITS = 9


def payloads(sums, align_bits=0):
    """Input and output payloads of sums, each a list of (product, exponent)."""
    rows, expected = [], []
    for terms in sums:
        for index, (product, exponent) in enumerate(terms):
            rows.append(
                {
                    "product": product,
                    "exponent": exponent,
                    "first": index == 0,
                    "last": index == len(terms) - 1,
                }
            )
        products, exponents = torch.tensor(terms).T
        mantissa, exponent = accumulate(products, exponents, guard_bits=8, align_bits=align_bits)
        expected.append({"mantissa": int(mantissa), "exponent": int(exponent)})
    return rows, expected


def random_sums(count, bits, max_terms):
    rng = random.Random(count)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    sums = [
        [(high, 5)] * max_terms,
        [(low, -5)] * max_terms,
        [(low, 0), (high, 0), (1, 0)][:max_terms],
        [(high, -2000), (low, 2000), (1, -2000)][:max_terms],
        [(1, 2000 - index) for index in range(max_terms)],
        [(-1, index) for index in range(max_terms)],
    ]
    while len(sums) < count:
        spread = rng.choice((0, 1, 6, 20, 200))
        base = rng.randrange(-300, 300)
        sums.append(
            [
                (rng.choice((low, high, 0, rng.randint(low, high))), base + rng.randint(0, spread))
                for _ in range(rng.randint(1, max_terms))
            ]
        )
    return sums


@pytest.mark.parametrize(
    ("bits", "max_terms", "align_bits"),
    [(BITS, 8, 0), (21, 5, 0), (16, 1, 0), (BITS, 8, 3), (21, 5, 2), (14, 7, 4)],
)
def test_equals_golden(bits, max_terms, align_bits):
    rows, expected = payloads(random_sums(50, bits, max_terms), align_bits)
    unit = Accumulator(product_bits=bits, max_terms=max_terms, align_bits=align_bits)
    check_stream(unit, {"i": rows}, {"o": expected})


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-256, 255), st.integers(-30, 30)), min_size=1, max_size=8),
        min_size=1,
        max_size=8,
    )
)
def test_equals_golden_on_any_sums(sums):
    rows, expected = payloads(sums)
    unit = Accumulator(product_bits=BITS, max_terms=8)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(0.7, 0.6)])


@pytest.mark.parametrize("terms", [1, 2, 6])
def test_timing(terms):
    rows, expected = payloads([[(3, 1)] * terms] * 40)
    unit = Accumulator(product_bits=BITS, max_terms=8)
    timing = measure_latency_and_interval(unit, {"i": rows}, "o", len(expected), groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval * terms)


def test_properties():
    unit = Accumulator(product_bits=21, max_terms=6, guard_bits=4)
    assert (unit.product_bits, unit.max_terms, unit.guard_bits) == (21, 6, 4)
    assert unit.mantissa_bits == 28
    assert unit.cost()["multipliers"] == 0
    assert rtlil.convert(unit)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"product_bits": 1, "max_terms": 2},
            ValueError,
            "Product width of an accumulator must be at least 2, not 1",
        ),
        (
            {"product_bits": 8.0, "max_terms": 2},
            TypeError,
            "Product width of an accumulator must be an integer, not 8.0",
        ),
        (
            {"product_bits": 8, "max_terms": 0},
            ValueError,
            "Number of terms of an accumulator must be at least 1, not 0",
        ),
        (
            {"product_bits": 8, "max_terms": 2, "guard_bits": -1},
            ValueError,
            "Number of guard bits of an accumulator must be at least 0, not -1",
        ),
        (
            {"product_bits": 8, "max_terms": 2, "align_bits": 5},
            ValueError,
            "Number of alignment bits of an accumulator must be at most 4, not 5",
        ),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error) as caught:
        Accumulator(**options)
    assert str(caught.value) == message
