# amaranth: UnusedElaboratable=no
"""The one-pass softmax against golden, and golden against float64."""

import random

import pytest
import torch

from mxhw.lut import OnlineSoftmax
from mxhw.sw.golden.reduced import online_softmax
from tests.support import check_stream, measure_latency_and_interval, pack, run_stream


def inputs_of(rows):
    return [
        {"score": score, "last": position == len(row) - 1}
        for row in rows
        for position, score in enumerate(row)
    ]


def golden(rows, index_bits=5):
    result = []
    for row in rows:
        online = online_softmax(torch.tensor(row), index_bits)
        columns = (online.mantissa, online.down, online.shift, online.maximum, online.total)
        names = ("mantissa", "down", "shift", "maximum", "total")
        for position, values in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            last = position == len(row) - 1
            result.append({**dict(zip(names, values, strict=True)), "last": last})
    return result


def rows_of(bits, seed):
    generator = random.Random(seed)
    top = (1 << (bits - 1)) - 1
    rows = [[0], [-top - 1], [top], [-top - 1, top], [top, -top - 1], [-1, 0, -1, 4095, 4096]]
    for _ in range(12):
        spread = 1 << generator.randrange(8, bits - 1)
        row = [generator.randint(-spread, spread) for _ in range(generator.randint(1, 30))]
        rows.append(sorted(row) if generator.random() < 0.3 else row)
    return rows


@pytest.mark.parametrize("bits", [14, 24, 32])
def test_hardware_is_golden(bits):
    rows = rows_of(bits, bits)
    unit = OnlineSoftmax(score_bits=bits)
    stalls = [(1.0, 1.0), (0.5, 1.0), (0.6, 0.5)]
    check_stream(unit, {"i": inputs_of(rows)}, {"o": golden(rows)}, stalls=stalls)


@pytest.mark.parametrize("index_bits", [3, 4])
def test_fewer_entries(index_bits):
    rows = rows_of(24, index_bits)
    unit = OnlineSoftmax(index_bits=index_bits)
    assert unit.index_bits == index_bits
    want = golden(rows, index_bits)
    check_stream(unit, {"i": inputs_of(rows)}, {"o": want}, stalls=[(0.6, 0.5)])


# Largest relative errors of numerators over their total, and 10 % more.
LIMITS = {3: 2.9e-3 * 1.1, 4: 9.6e-4 * 1.1, 5: 5.8e-4 * 1.1}


@pytest.mark.slow
def test_row_of_16384():
    generator = random.Random(16384)
    row = [round(generator.gauss(0, 3.6) * 4096) for _ in range(1 << 14)]
    want = golden([row])
    unit = OnlineSoftmax()
    got = run_stream(unit, {"i": inputs_of([row])}, {"o": len(row)}, engine="cxxrtl")["o"]
    assert got == [pack(unit.o.payload.shape(), payload) for payload in want]


def test_longest_row():
    row = [0] * 200
    unit = OnlineSoftmax(longest=200)
    check_stream(unit, {"i": inputs_of([row])}, {"o": golden([row])}, stalls=[(1, 1)])
    assert golden([row])[-1]["total"] == 200 << 31


@pytest.mark.parametrize("index_bits", LIMITS)
@pytest.mark.parametrize("length", [1, 2, 100, 16384])
def test_error_of_total_and_numerators(length, index_bits):
    generator = torch.Generator().manual_seed(length)
    scores = (torch.randn(8, length, generator=generator) * 2.5 * 1.4427 * 4096).round().long()
    scores[0] = scores[0].sort().values
    online = online_softmax(scores, index_bits)
    exact = torch.exp2(scores.double() / 4096)
    maximum = online.maximum[..., -1:].double()
    total = torch.ldexp(online.total[..., -1].double(), torch.tensor(-31)) * 2 ** maximum[..., 0]
    assert (total / exact.sum(-1) - 1).abs().max() < (1e-4 if index_bits == 5 else 7.1e-4)
    numerators = online.mantissa.double() * 2.0 ** (online.maximum - online.down - 15)
    probability = numerators / total[:, None]
    wanted = exact / exact.sum(-1, keepdim=True)
    large = wanted > 1e-4 * wanted.amax(-1, keepdim=True)
    assert (probability / wanted - 1)[large].abs().max() < LIMITS[index_bits]


def test_moving_sums_by_the_shifts_gives_the_total():
    # What consumes the numerators keeps sums of its own in the same way.
    scores = torch.tensor(rows_of(24, 7)[-1])
    online = online_softmax(scores)
    total = 0
    for mantissa, down, shift in zip(
        online.mantissa.tolist(), online.down.tolist(), online.shift.tolist(), strict=True
    ):
        total = (total >> shift) + ((mantissa << 16) >> down)
    assert total == online.total[-1]


def test_one_whole_score_has_the_total_one():
    assert online_softmax(torch.tensor([[-8192], [0], [4096]])).total.tolist() == [[1 << 31]] * 3


def test_timing_and_properties():
    unit = OnlineSoftmax()
    rows = [[n] for n in range(40)]
    timing = measure_latency_and_interval(unit, {"i": inputs_of(rows)}, "o", 40, groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval) == (7, 1)
    assert (unit.score_bits, unit.longest, unit.cost()["multipliers"]) == (24, 16384, 0)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"score_bits": 13},
            ValueError,
            "Score width of an online softmax must be between 14 and 32, not 13",
        ),
        (
            {"longest": 16385},
            ValueError,
            "Longest row of an online softmax must be between 1 and 16384, not 16385",
        ),
        (
            {"longest": 1.0},
            TypeError,
            "Longest row of an online softmax must be an integer, not 1.0",
        ),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind) as caught:
        OnlineSoftmax(**arguments)
    assert str(caught.value) == message
