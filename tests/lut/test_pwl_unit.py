# amaranth: UnusedElaboratable=no
"""The piecewise-linear unit against golden, for every code of up to 16 bits."""

import random

import pytest
import torch
from amaranth.utils import bits_for

from mxhw.cosim.engine import make_engine
from mxhw.lut import FUNCTIONS, LoadablePwlUnit, PwlUnit, fit
from mxhw.lut.metric import table_values
from mxhw.lut.pwl import DSP, LUT
from mxhw.lut.table import PwlTable
from mxhw.sw.golden.pwl import PwlWords, pwl_values
from tests.support import check_stream, measure_latency_and_interval, pack, run_stream, unpack

STALLS = [(1.0, 1.0), (0.6, 0.5)]
GELU = fit("gelu")
CEIL = fit("exp", entries=16, storage="per-entry", breakpoint_mode="ceil")


def every_code(bits):
    return torch.arange(-(1 << (bits - 1)), 1 << (bits - 1))


def outputs(unit, inputs, **options):
    got = run_stream(unit, {"i": inputs}, {"o": len(inputs)}, **options)["o"]
    return [unpack(unit.o.payload.shape(), bits) for bits in got]


@pytest.mark.parametrize(
    ("name", "entries", "storage", "scale"),
    [
        ("gelu", 8, "published", 4),
        ("gelu", 16, "per-entry", 5),
        ("hswish", 8, "published", 0),
        ("exp", 8, "published", 4),
        ("div", 32, "per-entry", 5),
        ("rsqrt", 16, "published", 5),
        ("tanh", 16, "best", 6),
    ],
)
def test_every_8_bit_code(name, entries, storage, scale):
    table = fit(name, entries=entries, storage=storage if storage != "best" else "published")
    unit = PwlUnit(table=table, scale=scale)
    codes = every_code(8)
    want = pwl_values(unit.words, codes)
    assert outputs(unit, codes.tolist()) == want.tolist()
    exact = table_values(table, codes.numpy(), scale)
    assert (torch.ldexp(want.double(), torch.tensor(-unit.output_frac)).numpy() == exact).all()


@pytest.mark.parametrize("entries", [8, 32])
def test_every_16_bit_code(entries):
    table = fit("gelu", entries=entries, bits=10, scales=(0, 5), tails="free")
    unit = PwlUnit(table=table, code_bits=16, scale=5)
    codes = every_code(16)
    want = pwl_values(unit.words, codes).tolist()
    assert outputs(unit, codes.tolist(), engine="cxxrtl") == want


def test_corners_of_32_bits():
    table = fit("tanh", entries=16, bits=12, scales=(0, 4))
    words = PwlWords.of(table, code_bits=32, scale=4)
    generator = random.Random(0)
    edges = [point + delta for point in words.breakpoints for delta in (-1, 0, 1)]
    edges += [-(1 << 31), (1 << 31) - 1, 0, 1, -1]
    codes = edges + [generator.getrandbits(32) - (1 << 31) for _ in range(500)]
    unit = PwlUnit(table=table, code_bits=32, scale=4)
    assert outputs(unit, codes) == pwl_values(words, torch.tensor(codes)).tolist()


def test_every_code_at_every_scale():
    unit = PwlUnit(table=CEIL)
    rows = [(code, shift) for shift in range(7) for code in range(-128, 128)]
    inputs = [{"code": code, "shift": shift} for code, shift in rows]
    codes, shifts = torch.tensor(rows).T
    want = pwl_values(unit.words, codes, shifts)
    assert outputs(unit, inputs) == want.tolist()
    for shift in range(7):
        chosen = shifts == shift
        exact = table_values(CEIL, codes[chosen].numpy(), 6 - shift)
        got = torch.ldexp(want[chosen].double(), torch.tensor(-unit.output_frac))
        assert (got.numpy() == exact).all()


@pytest.mark.parametrize("multiplier", [DSP, LUT])
def test_under_stalls(multiplier):
    unit = PwlUnit(table=GELU, scale=5, multiplier=multiplier)
    codes = every_code(8)[::3]
    want = pwl_values(unit.words, codes).tolist()
    check_stream(unit, {"i": codes.tolist()}, {"o": want})


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if f.left and f.right])
def test_tails_of_codes_far_away(name):
    table = fit(name, scales=(0, 2))
    function = FUNCTIONS[name]
    unit = PwlUnit(table=table, code_bits=16, scale=2)
    codes = [-32768, -5000, 5000, 32767]
    for got, code in zip(outputs(unit, codes), codes, strict=True):
        slope, intercept = function.left if code < 0 else function.right
        assert got / 2**unit.output_frac == slope * code / 4 + intercept


@pytest.mark.parametrize(("entries", "shift"), [(8, 0), (16, 6), (32, 0)])
def test_loadable_table(entries, shift):
    table = fit("gelu", entries=entries, breakpoint_mode="ceil")
    words = PwlWords.of(table, code_bits=8, scale=None if shift else 5)
    unit = LoadablePwlUnit(entries=entries, most_shift=shift, most_product_shift=2)
    codes = every_code(8)[::2]
    if shift:
        places = torch.arange(len(codes)) % 7
        inputs = [
            {"code": code, "shift": place}
            for code, place in zip(codes.tolist(), places.tolist(), strict=True)
        ]
        want = pwl_values(words, codes, places)
    else:
        inputs, want = codes.tolist(), pwl_values(words, codes)
    streams = {"i": inputs, "i_table": unit.table_words(words)}
    check_stream(unit, streams, {"o": want.tolist()}, stalls=STALLS)


@pytest.mark.parametrize("points", [(128,) * 7, (-300, -128, 0, 127, 128, 200, 300)])
def test_entries_that_no_code_reaches(points):
    # Breakpoints at and beyond the largest code, which has no place in 8 bits.
    table = PwlTable(
        function="steps",
        range=(-128.0, 127.0),
        scales=(0,),
        breakpoint_mode="ceil",
        breakpoints=points,
        breakpoint_frac=0,
        slopes=(3, -5, 7, -11, 13, -17, 19, -23),
        slope_frac=0,
        intercepts=tuple(range(8)),
        intercept_frac=0,
        bits=8,
        mean_squared_error=0.0,
    )
    codes = every_code(8)
    exact = table_values(table, codes.numpy(), 0).astype(int).tolist()
    words = PwlWords.of(table, code_bits=8, scale=0)
    assert max(words.breakpoints) == 127
    assert pwl_values(words, codes).tolist() == exact
    assert outputs(PwlUnit(table=table, scale=0), codes.tolist()) == exact
    unit = LoadablePwlUnit()
    streams = {"i": codes.tolist(), "i_table": unit.table_words(words)}
    check_stream(unit, streams, {"o": exact}, stalls=STALLS[:1])


@pytest.mark.parametrize("shift", [0, 3])
def test_extremes_fit_the_output(shift):
    unit = LoadablePwlUnit(intercept_bits=8, intercept_shift=6, most_shift=shift)
    extremes = [
        (slope * code << shift) + (intercept << 6)
        for code in (-128, 127)
        for slope in (-128, 127)
        for intercept in (-128, 127)
    ]
    width = unit.o.payload.shape().width
    assert max(bits_for(value, True) for value in extremes) == width


@pytest.mark.slow
@pytest.mark.parametrize("entries", [8, 16, 32])
def test_loadable_table_and_every_16_bit_code(entries):
    table = fit("tanh", entries=entries, bits=10, scales=(0, 5), tails="free")
    words = PwlWords.of(table, code_bits=16, scale=5)
    unit = LoadablePwlUnit(code_bits=16, slope_bits=10, intercept_bits=20, entries=entries)
    codes = every_code(16)
    streams = {"i": codes.tolist(), "i_table": unit.table_words(words)}
    got = run_stream(unit, streams, {"o": len(codes)}, engine="cxxrtl")["o"]
    shape = unit.o.payload.shape()
    assert [unpack(shape, bits) for bits in got] == pwl_values(words, codes).tolist()


def test_short_intercepts():
    words = PwlWords.of(GELU, code_bits=8, scale=6)
    unit = LoadablePwlUnit(intercept_bits=8, intercept_shift=6)
    codes = every_code(8)[::5]
    streams = {"i": codes.tolist(), "i_table": unit.table_words(words)}
    check_stream(unit, streams, {"o": pwl_values(words, codes).tolist()}, stalls=STALLS)


def test_second_table_serves_the_codes_after_it():
    tables = [PwlWords.of(fit(name), code_bits=8, scale=5) for name in ("gelu", "hswish")]
    unit = LoadablePwlUnit()
    codes = every_code(8).tolist()
    shape = unit.o.payload.shape()
    with make_engine(unit, "pysim") as sim:
        for words in tables:
            rows = [pack(unit.word_shape, row) for row in unit.table_words(words)]
            sim.put("i_table", rows)
            sim.run(3)
            sim.put("i", [code & 0xFF for code in codes])
            sim.collect("o", len(codes))
            sim.run_until(timeout_cycles=5000)
            got = [unpack(shape, bits) for bits in sim.take("o", len(codes))]
            assert got == pwl_values(words, torch.tensor(codes)).tolist()


def test_table_between_codes_in_flight():
    # Codes are in the pipeline when the second table comes; they keep the first one.
    first, second = (PwlWords.of(fit(name), code_bits=8, scale=5) for name in ("gelu", "hswish"))
    unit = LoadablePwlUnit()
    codes = list(range(-60, 60))
    with make_engine(unit, "pysim") as sim:
        sim.put("i_table", [pack(unit.word_shape, row) for row in unit.table_words(first)])
        sim.put("i", [code & 0xFF for code in codes])
        sim.collect("o", len(codes))
        sim.run(30)
        taken = len(sim.transfer_cycles("i"))
        assert 5 < taken < len(codes)
        sim.put("i_table", [pack(unit.word_shape, row) for row in unit.table_words(second)])
        sim.run_until(timeout_cycles=5000)
        got = [unpack(unit.o.payload.shape(), bits) for bits in sim.take("o", len(codes))]
    before = pwl_values(first, torch.tensor(codes)).tolist()
    after = pwl_values(second, torch.tensor(codes)).tolist()
    matches = [n for n in range(taken, taken + 3) if got == before[:n] + after[n:]]
    assert matches


@pytest.mark.parametrize(
    "make",
    [
        lambda: PwlUnit(table=GELU, scale=3),
        lambda: PwlUnit(table=CEIL, multiplier=LUT),
        lambda: PwlUnit(table=GELU, code_bits=32, scale=3),
    ],
)
def test_timing(make):
    unit = make()
    inputs = [{"code": n, "shift": 0} if unit.table is CEIL else n for n in range(50)]
    timing = measure_latency_and_interval(unit, {"i": inputs}, "o", 50, groups=50)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


def test_properties():
    unit = PwlUnit(table=GELU, scale=3)
    assert (unit.entries, unit.code_bits, unit.output_frac) == (8, 8, 9)
    assert unit.table is GELU
    assert unit.latency == 8
    assert unit.o.payload.shape().width == 14
    assert unit.cost() == {"multipliers": 1, "memory_bits": 16 * 14, "block_rams": 0}
    assert PwlUnit(table=GELU, scale=3, multiplier=LUT).cost()["multipliers"] == 0


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: PwlUnit(table=3),
            TypeError,
            "Table of a piecewise-linear unit must be a PwlTable, not 3",
        ),
        (
            lambda: PwlUnit(table=fit("gelu", entries=4), scale=3),
            ValueError,
            "Entries of a piecewise-linear unit must be 8, 16 or 32, not 4",
        ),
        (
            lambda: PwlUnit(table=GELU, code_bits=12, scale=3),
            ValueError,
            "Code width of a piecewise-linear unit must be 8, 16 or 32, not 12",
        ),
        (
            lambda: PwlUnit(table=GELU, code_bits="8", scale=3),
            TypeError,
            "Code width of a piecewise-linear unit must be an integer, not '8'",
        ),
        (
            lambda: PwlUnit(table=GELU),
            ValueError,
            "Table of 'gelu' rounds its breakpoints for each scale; a unit for all scales needs "
            "the breakpoint mode ceil",
        ),
        (
            lambda: PwlUnit(table=GELU, scale=7),
            ValueError,
            "Scale of a unit must be one of 0, 1, 2, 3, 4, 5, 6, not 7",
        ),
        (
            lambda: PwlUnit(table=GELU, scale=3, multiplier="x"),
            TypeError,
            "Multiplier of a piecewise-linear unit must be a DspMultiplier or a LutMultiplier, "
            "not 'x'",
        ),
        (
            lambda: LoadablePwlUnit(most_shift=16),
            ValueError,
            "Largest shift of a piecewise-linear unit must be between 0 and 15, not 16",
        ),
        (
            lambda: LoadablePwlUnit(slope_bits=8.0),
            TypeError,
            "Slope width of a piecewise-linear unit must be an integer, not 8.0",
        ),
        (
            lambda: LoadablePwlUnit(entries=16).table_words(
                PwlWords.of(GELU, code_bits=8, scale=3)
            ),
            ValueError,
            "Table to load must have 16 entries for codes of 8 bits, not 8 for 8",
        ),
        (
            lambda: LoadablePwlUnit(intercept_shift=6).table_words(
                PwlWords.of(GELU, code_bits=8, scale=5)
            ),
            ValueError,
            "Intercepts of the table to load must be multiples of 2**6",
        ),
        (
            lambda: LoadablePwlUnit(slope_bits=4).table_words(
                PwlWords.of(GELU, code_bits=8, scale=3)
            ),
            ValueError,
            "Slope 16 of the table to load does not fit 4 bits",
        ),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == message
