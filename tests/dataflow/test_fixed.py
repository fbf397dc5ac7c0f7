# amaranth: UnusedElaboratable=no
import random

import pytest
import torch

from mxhw.dataflow.fixed import FixedBeat, ToFixed
from mxhw.sw.golden.linear import to_fixed
from mxhw.sw.golden.tensor import Wide
from tests.support import check_stream, measure_latency_and_interval


def golden(mantissa, exponent):
    return to_fixed(Wide(torch.tensor(mantissa), torch.tensor(exponent))).tolist()


def check(values, mantissa_bits, lanes, **options):
    values = values + [(0, 0)] * (-len(values) % lanes)
    mantissas, exponents = (list(column) for column in zip(*values, strict=True))
    results = golden(mantissas, exponents)
    spans = [slice(start, start + lanes) for start in range(0, len(values), lanes)]
    check_stream(
        ToFixed(mantissa_bits=mantissa_bits, lanes=lanes),
        {"i": [{"mantissas": mantissas[s], "exponents": exponents[s]} for s in spans]},
        {"o": [results[s] for s in spans]},
        **options,
    )


def corners(bits):
    top = 1 << (bits - 1)
    mantissas = sorted({0, 1, -1, 2, -2, 3, -3, top - 1, -top, top // 2, -top // 2 - 1, top // 3})
    exponents = [-2048, -100, -65, -56, -55, -54, 6, 7, 8, 9, 10, 12, 20, 100, 2047]
    fit = [value for value in mantissas if -top <= value < top]
    return [(value, power) for value in fit for power in exponents]


def test_corners():
    check(corners(35), 35, 4, stalls=[(1.0, 1.0)])


def test_every_shift():
    rng = random.Random(1)
    values = []
    for exponent in range(-60, 14):
        for length in (1, 12, 16, 20, 23, 24, 25, 30, 34):
            value = rng.randrange(1 << (length - 1), 1 << length)
            values.append((rng.choice((value, -value, -(1 << length))), exponent))
    check(values, 35, 4, stalls=[(1.0, 1.0)])


def test_stalls():
    rng = random.Random(2)
    check([(rng.randrange(-(1 << 34), 1 << 34), rng.randrange(-40, 5)) for _ in range(64)], 35, 4)


@pytest.mark.parametrize(("bits", "lanes"), [(2, 1), (17, 2), (44, 3)])
def test_widths(bits, lanes):
    check(corners(bits), bits, lanes, stalls=[(0.7, 0.7)])


def test_timing():
    unit = ToFixed()
    beat = {"mantissas": [1, 2, 3, 4], "exponents": [0, 0, 0, 0]}
    timing = measure_latency_and_interval(unit, {"i": [beat] * 8}, "o", 8, groups=8)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval) == (4, 1)
    assert unit.cost()["multipliers"] == 0
    assert FixedBeat(lanes=4).size == 96


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (
            {"mantissa_bits": 45},
            ValueError,
            "^Width of a mantissa must be between 2 and 44, not 45$",
        ),
        (
            {"mantissa_bits": 3.0},
            TypeError,
            r"^Width of a mantissa must be an integer, not 3\.0$",
        ),
        ({"lanes": 0}, ValueError, "^Number of lanes must be at least 1, not 0$"),
        ({"lanes": "4"}, TypeError, "^Number of lanes must be an integer, not '4'$"),
    ],
)
def test_errors(parameters, error, message):
    with pytest.raises(error, match=message):
        ToFixed(**parameters)
