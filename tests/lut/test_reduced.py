# amaranth: UnusedElaboratable=no
"""Range-reduced units: bit for bit for every code, and the stated relative errors."""

import math
import random

import pytest
import torch

from mxhw.lut import FixedSilu, Rotation, Sigmoid
from mxhw.lut.pwl import DSP, LUT
from mxhw.lut.uniform import exp2_table, reciprocal_table, rsqrt_table
from mxhw.sw.golden.reduced import rotation, sigmoid_fixed, silu_fixed
from tests.support import check_stream, measure_latency_and_interval, pack, run_stream

ENTRIES = {3: 8, 4: 16, 5: 32}
STALLS = [(1.0, 1.0), (0.6, 0.5)]
CODES = torch.arange(-(1 << 15), 1 << 15)


def rows_of(value):
    pairs = zip(value.mantissa.tolist(), value.exponent.tolist(), strict=True)
    return [{"mantissa": mantissa, "exponent": exponent} for mantissa, exponent in pairs]


def check_all(unit, inputs, expected):
    shape = unit.o.payload.shape()
    got = run_stream(unit, {"i": inputs}, {"o": len(inputs)}, engine="cxxrtl")["o"]
    assert got == [pack(shape, row) for row in expected]


def test_sigmoid_every_16_bit_code():
    check_all(Sigmoid(), CODES.tolist(), rows_of(sigmoid_fixed(CODES, 8)))


def test_silu_every_16_bit_code():
    unit = FixedSilu(input_frac=12, index_bits=3)
    check_all(unit, CODES.tolist(), rows_of(silu_fixed(CODES, 12, 3)))


@pytest.mark.parametrize("frac", [1, 15])
@pytest.mark.parametrize("index_bits", ENTRIES)
def test_other_shapes_under_stalls(frac, index_bits):
    codes = torch.tensor([0, 1, -1, *range(-2048, 2048, 97), 2047, -2048])
    options = {"input_bits": 12, "input_frac": frac, "index_bits": index_bits}
    for unit, function in ((Sigmoid(**options), sigmoid_fixed), (FixedSilu(**options), silu_fixed)):
        want = rows_of(function(codes, frac, index_bits))
        check_stream(unit, {"i": codes.tolist()}, {"o": want}, stalls=STALLS)


# Largest relative errors: what the range reductions reach, and 10 % more.
SIGMOID_LIMITS = {3: 2.6e-3 * 1.1, 4: 8.9e-4 * 1.1, 5: 5.9e-4 * 1.1}


@pytest.mark.parametrize("index_bits", ENTRIES)
def test_relative_error_in_both_tails(index_bits):
    x = CODES.double() / 256
    exact = torch.where(x >= 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x)))
    error = (sigmoid_fixed(CODES, 8, index_bits).to_float() / exact - 1).abs()
    assert 1e-5 < error.max() <= SIGMOID_LIMITS[index_bits]
    assert exact.min() < 2.0**-180
    chosen = CODES != 0
    silu = silu_fixed(CODES, 8, index_bits).to_float()
    error = (silu[chosen] / (x * exact)[chosen] - 1).abs()
    assert error.max() <= SIGMOID_LIMITS[index_bits]
    assert silu[CODES == 0] == 0


def test_exact_points():
    codes = torch.tensor([0, 32767])
    assert sigmoid_fixed(codes, 8).to_float().tolist() == [0.5, 1.0]
    for index_bits in ENTRIES:
        assert exp2_table(index_bits).evaluate(torch.tensor(0)) == 1 << 15
        assert reciprocal_table(index_bits).evaluate(torch.tensor(0)) == 1 << 15
        assert rsqrt_table(index_bits).evaluate(torch.tensor(0)) == 1 << 15


# exp2, reciprocal and inverse root of the same tables: 12-bit fractions and 15-bit mantissas.
TABLE_LIMITS = {
    exp2_table: {3: 7.1e-4, 4: 3.3e-4, 5: 2.1e-4},
    reciprocal_table: {3: 2.0e-3, 4: 6.5e-4, 5: 4.3e-4},
    rsqrt_table: {3: 2.6e-3, 4: 9.4e-4, 5: 4.1e-4},
}


@pytest.mark.parametrize("index_bits", ENTRIES)
@pytest.mark.parametrize("make", TABLE_LIMITS)
def test_relative_error_of_tables(make, index_bits):
    table = make(index_bits)
    codes = torch.arange(1 << table.input_bits)
    got = table.evaluate(codes).double() / 2**15
    if make is exp2_table:
        # The input is a fraction cut to 12 bits: compare with both ends of what was cut.
        low, high = 2.0 ** (codes / 4096), 2.0 ** ((codes + 1) / 4096)
        error = torch.maximum((got / low - 1).abs(), (got / high - 1).abs())
    else:
        rest = 1 + (codes & 0x7FFF) / 2**15
        exact = rest * torch.where(codes >> 15 > 0, 2.0, 1.0)
        error = (
            (got * exact - 1).abs() if make is reciprocal_table else (got * exact.sqrt() - 1).abs()
        )
    assert error.max() <= TABLE_LIMITS[make][index_bits] * 1.1


def angles(phases, index_bits):
    cosine, sine = rotation(torch.tensor(phases), index_bits)
    pairs = zip(cosine.tolist(), sine.tolist(), strict=True)
    return [{"cosine": cosine, "sine": sine} for cosine, sine in pairs]


def test_rotation_every_rounded_phase():
    generator = random.Random(0)
    phases = [(n << 16) + generator.getrandbits(16) for n in range(1 << 16)]
    check_all(Rotation(), phases, angles(phases, 5))


@pytest.mark.parametrize("multiplier", [DSP, LUT])
@pytest.mark.parametrize("index_bits", [3, 4])
def test_rotation_under_stalls(index_bits, multiplier):
    near = [(n << 30) + delta for n in range(4) for delta in (-40000, -1, 0, 1, 32767, 32768)]
    phases = [phase % (1 << 32) for phase in near] + list(range(0, 1 << 32, 0x3F17A31))
    unit = Rotation(index_bits=index_bits, multiplier=multiplier)
    check_stream(unit, {"i": phases}, {"o": angles(phases, index_bits)}, stalls=STALLS)


ROTATION_LIMITS = {3: 2.6e-3 * 1.1, 4: 7.1e-4 * 1.1, 5: 2.3e-4 * 1.1}


@pytest.mark.parametrize("index_bits", ENTRIES)
def test_error_of_rotations(index_bits):
    generator = torch.Generator().manual_seed(0)
    phase = torch.randint(0, 1 << 32, (100_000,), generator=generator)
    cosine, sine = rotation(phase, index_bits)
    angle = phase.double() * (2 * math.pi / 2**32)
    for got, exact in ((cosine, torch.cos(angle)), (sine, torch.sin(angle))):
        assert (got.double() / 2**15 - exact).abs().max() <= ROTATION_LIMITS[index_bits]


def test_rotation_of_quarter_turns_is_exact():
    cosine, sine = rotation(torch.arange(4) << 30)
    assert (cosine // 2**15).tolist() == [1, 0, -1, 0]
    assert (sine // 2**15).tolist() == [0, 1, 0, -1]
    assert ((cosine | sine) % 2**15 == 0).all()


@pytest.mark.parametrize(
    "make", [Sigmoid, FixedSilu, Rotation, lambda: Rotation(multiplier=LUT, index_bits=3)]
)
def test_timing(make):
    unit = make()
    timing = measure_latency_and_interval(unit, {"i": range(40)}, "o", 40, groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


def test_properties():
    unit = FixedSilu(input_bits=10, input_frac=4, index_bits=3)
    assert (unit.input_bits, unit.input_frac, unit.index_bits) == (10, 4, 3)
    assert (unit.latency, unit.multipliers) == (14, 4)
    assert (Sigmoid().latency, Sigmoid().multipliers) == (13, 3)
    assert (Rotation().latency, Rotation().multipliers, Rotation().index_bits) == (6, 2, 5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: Sigmoid(input_bits=17),
            ValueError,
            "Input width of a sigmoid must be between 4 and 16, not 17",
        ),
        (
            lambda: Sigmoid(input_frac="a"),
            TypeError,
            "Fraction bits of a sigmoid must be an integer, not 'a'",
        ),
        (
            lambda: Sigmoid(input_bits=16, input_frac=4),
            ValueError,
            "Whole bits of a sigmoid must be at most 11, not 12",
        ),
        (
            lambda: FixedSilu(index_bits=6),
            ValueError,
            "Index width of a SiLU must be between 3 and 5, not 6",
        ),
        (
            lambda: Rotation(index_bits=2),
            ValueError,
            "Index width of a rotation must be between 3 and 5, not 2",
        ),
        (
            lambda: Rotation(multiplier=1),
            TypeError,
            "Multiplier of a rotation must be a DspMultiplier or a LutMultiplier, not 1",
        ),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == message
