# amaranth: UnusedElaboratable=no
"""The float32 unit against golden, and golden against float32 arithmetic."""

import random

import numpy as np
import pytest
import torch

from mxhw.lut import FloatPwlUnit, LoadableFloatPwlUnit, fit
from mxhw.lut.pwl import LUT
from mxhw.lut.table import PwlTable
from mxhw.sw.golden.pwl import FloatWords, float_pwl_values
from tests.support import check_stream, measure_latency_and_interval, run_stream

GELU = fit("gelu")
EXP = fit("exp", entries=16, storage="per-entry")

# Slopes and intercepts whose products and sums leave the range of float32 on both sides.
WIDE = PwlTable(
    function="wide",
    range=(-1.0, 1.0),
    scales=(0,),
    breakpoint_mode="round",
    breakpoints=(-100, -3, -1, 0, 1, 5, 1 << 40),
    breakpoint_frac=4,
    slopes=(-127, 3, 127, -1, 77, 127, 127, -99),
    slope_frac=(-62, 62, 10, 60, 62, 61, -60, -62),
    intercepts=(5, 0, -1, 1, 0, -77, 3, 127),
    intercept_frac=(-50, 0, 62, 62, 0, 62, -62, -62),
    bits=8,
    mean_squared_error=0.0,
)


def patterns(count, seed=0):
    """Specials, powers of two and their neighbours, random patterns, random numbers near 1."""
    generator = random.Random(seed)
    rows = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFF800001, 1, 0x80000001, 0x7FFFFF]
    for exponent in range(0, 255, 3):
        near = exponent << 23
        rows += [near, near | 1, near | 0x7FFFFF, near | 1 << 31]
    rows += [generator.getrandbits(32) for _ in range(count)]
    values = np.array([generator.uniform(-9, 9) for _ in range(count)], dtype=np.float32)
    rows += values.view(np.uint32).tolist()
    return rows


def test_golden_is_float32_arithmetic():
    words = FloatWords.of(GELU)
    x = np.random.default_rng(0).uniform(-10, 10, 20_000).astype(np.float32)
    got = float_pwl_values(words, torch.tensor(x.view(np.uint32).astype(np.int64)))
    segment = np.searchsorted(np.array(words.breakpoints), x, side="right")
    slope = np.array(words.slopes, dtype=np.float32)[segment]
    intercept = np.array(words.intercepts, dtype=np.float32)[segment]
    want = slope * x + intercept
    assert want.dtype == np.float32
    assert (got.numpy() == (want + np.float32(0)).view(np.uint32)).all()


def test_golden_specials():
    words = FloatWords.of(GELU)
    bits = torch.tensor([0x7F800000, 0xFF800000, 0x7F800001, 0, 1 << 31, 1, 0x80000001])
    want = [0x7F800000, 0, 0x7FC00000, 0, 0, 0, 0]
    assert float_pwl_values(words, bits).tolist() == want


@pytest.mark.parametrize("table", [EXP, WIDE], ids=["exp", "wide"])
def test_hardware_is_golden(table):
    rows = patterns(3000)
    unit = FloatPwlUnit(table=table)
    want = float_pwl_values(unit.words, torch.tensor(rows)).tolist()
    got = run_stream(unit, {"i": rows}, {"o": len(rows)}, engine="cxxrtl")["o"]
    wrong = [(hex(x), hex(a), hex(b)) for x, a, b in zip(rows, got, want, strict=True) if a != b]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("entries", [8, 32])
def test_loaded_table_under_stalls(entries):
    table = fit("gelu", entries=entries)
    unit = LoadableFloatPwlUnit(entries=entries, multiplier=LUT)
    words = FloatWords.of(table)
    rows = patterns(30)
    want = float_pwl_values(words, torch.tensor(rows)).tolist()
    streams = {"i": rows, "i_table": unit.table_words(words)}
    check_stream(unit, streams, {"o": want}, stalls=[(1, 1), (0.6, 0.5)])


def test_timing():
    unit = FloatPwlUnit(table=GELU)
    timing = measure_latency_and_interval(unit, {"i": patterns(0)[:50]}, "o", 50, groups=50)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    assert (unit.latency, unit.entries) == (13, 8)


def test_errors():
    with pytest.raises(TypeError, match=r"^Table of a piecewise-linear unit must be a PwlTable"):
        FloatPwlUnit(table=3)
    message = r"^Entries of a piecewise-linear unit must be 8, 16 or 32, not 5$"
    with pytest.raises(ValueError, match=message):
        LoadableFloatPwlUnit(entries=5)
    with pytest.raises(ValueError, match=r"^Table to load must have 16 entries, not 8$"):
        LoadableFloatPwlUnit(entries=16).table_words(FloatWords.of(GELU))
    with pytest.raises(TypeError, match="must be a DspMultiplier or a LutMultiplier, not 2$"):
        LoadableFloatPwlUnit(multiplier=2)
