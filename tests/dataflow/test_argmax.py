# amaranth: UnusedElaboratable=no
import random

import pytest
import torch

from mxhw.dataflow.argmax import ArgMax
from mxhw.sw.golden.linear import argmax
from tests.support import check_stream, measure_latency_and_interval

LOWEST, HIGHEST = -(1 << 23), (1 << 23) - 1


def beats(vector, lanes):
    """Beats of a vector; what follows its end is the largest number, to be ignored."""
    padded = vector + [HIGHEST] * (-len(vector) % lanes)
    return [padded[start : start + lanes] for start in range(0, len(padded), lanes)]


def check(vectors, lanes, **options):
    check_stream(
        ArgMax(length=len(vectors[0]), lanes=lanes),
        {"i": [beat for vector in vectors for beat in beats(vector, lanes)]},
        {"o": argmax(torch.tensor(vectors)).tolist()},
        **options,
    )


def test_random():
    rng = random.Random(0)
    check([[rng.randrange(LOWEST, HIGHEST + 1) for _ in range(32)] for _ in range(20)], 4)


@pytest.mark.parametrize(
    ("length", "lanes"), [(1, 1), (1, 4), (5, 4), (7, 4), (8, 4), (9, 8), (6, 2), (3, 1)]
)
def test_ties(length, lanes):
    # Few values, so that the first of equals decides, in a beat and between beats.
    rng = random.Random(length)
    vectors = [[rng.choice((LOWEST, -1, 0, 1)) for _ in range(length)] for _ in range(30)]
    vectors += [[LOWEST] * length, [HIGHEST] * length]
    check(vectors, lanes, stalls=[(1.0, 1.0), (0.7, 0.5)])


def test_every_place():
    check([[1 if index == place else 0 for index in range(12)] for place in range(12)], 4)


@pytest.mark.parametrize("lanes", [1, 4])
def test_timing(lanes):
    unit = ArgMax(length=16, lanes=lanes)
    inputs = {"i": beats([3] * 16, lanes) * 4}
    timing = measure_latency_and_interval(unit, inputs, "o", 4, groups=4)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    assert unit.latency == {1: 1, 4: 3}[lanes]
    assert unit.cost()["multipliers"] == 0


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"length": 0}, ValueError, "^Length of a vector must be at least 1, not 0$"),
        ({"length": 1.0}, TypeError, r"^Length of a vector must be an integer, not 1\.0$"),
        ({"length": 8, "lanes": 3}, ValueError, "^Number of lanes must be a power of two, not 3$"),
        (
            {"length": 8, "lanes": None},
            TypeError,
            "^Number of lanes must be an integer, not None$",
        ),
    ],
)
def test_errors(parameters, error, message):
    with pytest.raises(error, match=message):
        ArgMax(**parameters)
