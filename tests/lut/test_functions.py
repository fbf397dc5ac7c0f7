# amaranth: UnusedElaboratable=no
"""Power of two, reciprocal and reciprocal root against the golden model."""

import random

import pytest
import torch

from mxhw.lut.exp2 import Exp2
from mxhw.lut.reciprocal import Reciprocal
from mxhw.lut.rsqrt import Rsqrt
from mxhw.lut.uniform import rsqrt_table
from mxhw.sw.golden import Wide
from mxhw.sw.golden.attention import exp2_fixed, reciprocal
from mxhw.sw.golden.norm import NormConstants, rms_factor
from tests.support import check_stream, measure_latency_and_interval, pack, run_stream

BOTH = [(1.0, 1.0), (0.6, 0.5)]


def check_all(unit, inputs, expected):
    """Every output of a long run, without stalls."""
    shape = unit.o.payload.shape()
    got = run_stream(unit, {"i": inputs}, {"o": len(inputs)}, engine="cxxrtl")
    assert got["o"] == [pack(shape, row) for row in expected]


def payloads(mantissa, exponent):
    pairs = zip(mantissa.tolist(), exponent.tolist(), strict=True)
    return [{"mantissa": m, "exponent": e} for m, e in pairs]


def golden_exp2(codes, index_bits=5):
    return payloads(*exp2_fixed(torch.tensor(codes), index_bits))


def golden_reciprocal(totals, index_bits=5):
    # Golden takes the totals of a softmax, with 31 fraction bits.
    result = reciprocal(torch.tensor(totals), index_bits)
    return payloads(result.mantissa, result.exponent - 31)


def golden_root(rows, constants, index_bits=5):
    total = Wide(torch.tensor([m for m, _ in rows]), torch.tensor([e for _, e in rows]))
    factor = rms_factor(total, constants, rsqrt_table(index_bits))
    return payloads(factor.mantissa, factor.exponent)


def random_totals(bits, count):
    generator = random.Random(bits)
    totals = [generator.getrandbits(bits) >> generator.randrange(bits) for _ in range(count)]
    edges = [1 << n for n in range(bits)] + [(2 << n) - 1 for n in range(bits)]
    return edges + [max(1, total) for total in totals]


SLOW = pytest.mark.slow
ENTRIES = pytest.mark.parametrize(
    "index_bits", [pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW), 5]
)


@ENTRIES
def test_exp2_every_code(index_bits):
    codes = list(range(-(1 << 15), 1 << 15))
    unit = Exp2(input_bits=16, index_bits=index_bits)
    check_all(unit, codes, golden_exp2(codes, index_bits))


def test_exp2_under_stalls():
    codes = [-1, 0, 1, -4096, 4095, -(1 << 17), (1 << 17) - 1, *range(-100000, 100000, 777)]
    check_stream(Exp2(input_bits=18), {"i": codes}, {"o": golden_exp2(codes)}, stalls=BOTH)


@ENTRIES
def test_reciprocal_every_code(index_bits):
    totals = list(range(1, 1 << 16))
    unit = Reciprocal(input_bits=16, index_bits=index_bits)
    check_all(unit, totals, golden_reciprocal(totals, index_bits))


@pytest.mark.parametrize("bits", [2, 8, 17, 40, 48])
def test_reciprocal_widths_under_stalls(bits):
    totals = random_totals(bits, 100)
    unit = Reciprocal(input_bits=bits)
    check_stream(unit, {"i": totals}, {"o": golden_reciprocal(totals)}, stalls=BOTH)


@ENTRIES
def test_rsqrt_every_normalised_mantissa(index_bits):
    constants = NormConstants.of(32, 1e-5)
    rows = [(m, e) for e in (-7, -8) for m in range(1 << 15, 1 << 16)]
    unit = Rsqrt(input_bits=16, inverse_exponent=constants.inverse_exponent, index_bits=index_bits)
    inputs = [{"mantissa": m, "exponent": e} for m, e in rows]
    check_all(unit, inputs, golden_root(rows, constants, index_bits))


@pytest.mark.parametrize(("bits", "dim"), [(16, 96), (40, 128), (41, 288), (48, 4096)])
def test_rsqrt_widths_under_stalls(bits, dim):
    constants = NormConstants.of(dim, 1e-5)
    generator = random.Random(dim)
    rows = [(total, generator.randrange(-400, 400)) for total in random_totals(bits, 100)]
    unit = Rsqrt(
        input_bits=bits,
        inverse_mantissa=constants.inverse_mantissa,
        inverse_exponent=constants.inverse_exponent,
    )
    inputs = [{"mantissa": m, "exponent": e} for m, e in rows]
    check_stream(unit, {"i": inputs}, {"o": golden_root(rows, constants)}, stalls=BOTH)


UNITS = [
    lambda: Exp2(input_bits=18),
    lambda: Reciprocal(input_bits=40),
    lambda: Rsqrt(input_bits=40),
    lambda: Rsqrt(input_bits=40, inverse_mantissa=43691, inverse_exponent=-7),
]


@pytest.mark.parametrize("make", UNITS)
def test_timing(make):
    unit = make()
    rows = [{"mantissa": n, "exponent": 0} for n in range(1, 41)]
    inputs = rows if isinstance(unit, Rsqrt) else range(1, 41)
    timing = measure_latency_and_interval(unit, {"i": list(inputs)}, "o", 40, groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


def test_properties():
    assert Exp2(input_bits=18).cost()["multipliers"] == 0
    assert Reciprocal(input_bits=40).cost()["multipliers"] == 1
    assert Reciprocal(input_bits=40).input_bits == 40
    assert Exp2(input_bits=18).input_bits == 18
    unit = Rsqrt(input_bits=30, inverse_mantissa=43691, inverse_exponent=-7)
    assert (unit.input_bits, unit.inverse_mantissa, unit.inverse_exponent) == (30, 43691, -7)
    for small in (Exp2(input_bits=18, index_bits=3), Reciprocal(input_bits=9, index_bits=3)):
        assert small.index_bits == 3
    assert unit.index_bits == 5
    assert unit.cost()["multipliers"] == 2


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: Exp2(input_bits="a"),
            TypeError,
            "Input width of a power must be an integer, not 'a'",
        ),
        (
            lambda: Exp2(input_bits=12),
            ValueError,
            "Input width of a power must be between 13 and 32, not 12",
        ),
        (
            lambda: Exp2(input_bits=18, index_bits=6),
            ValueError,
            "Index width of a power must be between 3 and 5, not 6",
        ),
        (
            lambda: Rsqrt(input_bits=18, index_bits=4.0),
            TypeError,
            "Index width of a root must be an integer, not 4.0",
        ),
        (
            lambda: Reciprocal(input_bits=1.5),
            TypeError,
            "Input width of a reciprocal must be an integer, not 1.5",
        ),
        (
            lambda: Reciprocal(input_bits=65),
            ValueError,
            "Input width of a reciprocal must be between 2 and 64, not 65",
        ),
        (
            lambda: Rsqrt(input_bits=1),
            ValueError,
            "Input width of a root must be between 2 and 64, not 1",
        ),
        (
            lambda: Rsqrt(input_bits=8, inverse_mantissa=1.0),
            TypeError,
            "Inverse mantissa of a root must be an integer, not 1.0",
        ),
        (
            lambda: Rsqrt(input_bits=8, inverse_mantissa=65536),
            ValueError,
            "Inverse mantissa of a root must be between 32768 and 65535, not 65536",
        ),
        (
            lambda: Rsqrt(input_bits=8, inverse_exponent=65),
            ValueError,
            "Inverse exponent of a root must be between -64 and 64, not 65",
        ),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == message
