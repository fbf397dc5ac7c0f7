# amaranth: UnusedElaboratable=no
import random

import pytest
import torch
from amaranth.back import rtlil

from mxhw.arith.quantize import Quantizer
from mxhw.formats import parse_format
from mxhw.sw.golden import Wide, quantize_wide
from tests.support import check_stream, measure_latency_and_interval

# The golden model's int64 overflows for elements this much beyond the largest scale.
_HIGHEST = 127 + 62 - 24


def random_block(rng, kind, bits, size, shared):
    """Mantissas and exponents of one block: random ones and those that are hard to round."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    width = rng.randint(1, bits - 1)
    mantissas = [rng.randint(-(1 << width), (1 << width) - 1) for _ in range(size)]
    base = rng.choice((0, -100, -127 - bits // 2, -140, -400, 100, 128 - bits, 127))
    base = min(base, _HIGHEST - bits - 12)
    exponents = [base] * size if shared else [base + rng.randint(-12, 12) for _ in range(size)]
    match kind % 10:
        case 1:
            mantissas = [0] * size
        case 2:
            mantissas = [0] * size
            mantissas[rng.randrange(size)] = rng.choice((low, high, 1, -1))
        case 3:
            mantissas = [rng.choice((low, high)) for _ in range(size)]
        case 4:
            mantissas = [rng.choice((-1, 1)) << rng.randint(0, bits - 2) for _ in range(size)]
        case 5:
            # The most negative element decides the scale: a power of two.
            mantissas = [rng.randint(-1, 1) for _ in range(size)]
            mantissas[rng.randrange(size)] = -1 << width
        case 6:
            mantissas = [rng.randint(-1, 1) for _ in range(size)]
        case 7:
            # Ties, and values just above them.
            step = max(bits - 5, 0)
            mantissas = [
                rng.choice((-1, 1)) * (((rng.randint(0, 7) << step) + rng.randint(0, 1)) & high)
                for _ in range(size)
            ]
        case 8 if not shared:
            exponents = [rng.randint(-400, _HIGHEST - bits) for _ in range(size)]
    return mantissas, exponents


def payloads(blocks, formats, lanes, shared):
    """Input and output payloads; the formats take turns."""
    rows, expected = [], []
    for number, (mantissas, exponents) in enumerate(blocks):
        select = number % len(formats)
        wide = Wide(torch.tensor(mantissas), torch.tensor(exponents))
        result = quantize_wide(wide, formats[select])
        for start in range(0, len(mantissas), lanes):
            part = slice(start, start + lanes)
            beat = {"mantissas": mantissas[part]}
            if shared:
                beat["exponent"] = exponents[0]
            else:
                beat["exponents"] = exponents[part]
            rows.append({"beat": beat, "select": select} if len(formats) > 1 else beat)
            expected.append(
                {"elements": result.elements[part].tolist(), "scale": int(result.scales[0])}
            )
    return rows, expected


def case(bits, lanes, names, shared, count):
    formats = [parse_format(name) for name in names]
    rng = random.Random(bits * lanes)
    size = formats[0].block_size
    blocks = [random_block(rng, kind, bits, size, shared) for kind in range(count)]
    rows, expected = payloads(blocks, formats, lanes, shared)

    def make():
        return Quantizer(mantissa_bits=bits, lanes=lanes, formats=formats, shared_exponent=shared)

    return make, rows, expected


CASES = [
    (20, 4, ("mxint16_b8", "mxint8_b8"), False),
    (20, 4, ("mxint16_b8", "mxint8_b8"), True),
    (18, 1, ("mxint8_b8",), False),
    (17, 2, ("mxint8_b16",), False),
    (17, 2, ("mxint8_b16",), True),
    (9, 8, ("mxint2_b8", "mxint4_b8", "mxint6_b8"), False),
    (2, 8, ("mxint24_b8",), True),
    (12, 16, ("mxint8_b16",), False),
]


@pytest.mark.parametrize(("bits", "lanes", "names", "shared"), CASES)
def test_equals_golden(bits, lanes, names, shared):
    make, rows, expected = case(bits, lanes, names, shared, 40)
    stalls = [(1, 1), (0.6, 0.6)]
    check_stream(make(), {"i": rows}, {"o": expected}, stalls=stalls)


@pytest.mark.parametrize(
    ("bits", "lanes", "names", "shared"),
    [
        (35, 4, ("mxint16", "mxint8"), False),
        (34, 4, ("mxint8",), True),
        (34, 1, ("mxint8",), False),
        (26, 4, ("mxint16",), True),
        (48, 8, ("mxint24",), False),
        (33, 32, ("mxint8",), True),
    ],
)
@pytest.mark.slow
def test_large_instances_equal_golden(bits, lanes, names, shared):
    make, rows, expected = case(bits, lanes, names, shared, 400)
    check_stream(make(), {"i": rows}, {"o": expected}, engine="cxxrtl")


ANY_CASES = [
    (10, 8, ("mxfp4_e2m1_b8",), False),
    (12, 4, ("mxfp6_e2m3_b8_even",), False),
    (12, 8, ("mxfp6_e3m2_b8_rceil",), True),
    (14, 8, ("mxfp8_e4m3_b8",), True),
    (20, 2, ("mxfp8_e5m2_b8_even",), False),
    (9, 8, ("mxint8_b8_rceil",), True),
]


@pytest.mark.parametrize(("bits", "lanes", "names", "shared"), ANY_CASES)
def test_floats_and_rules_equal_golden(bits, lanes, names, shared):
    make, rows, expected = case(bits, lanes, names, shared, 20)
    check_stream(make(), {"i": rows}, {"o": expected}, stalls=[(0.8, 0.8)])


ELEMENTS = ("mxint8", "mxint4", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["", "_even", "_rceil"])
@pytest.mark.parametrize("element", ELEMENTS)
def test_all_formats_and_rules(element, rule):
    for bits, shared in ((2, False), (5, True), (23, False)):
        make, rows, expected = case(bits, 8, (f"{element}_b16{rule}",), shared, 60)
        check_stream(make(), {"i": rows}, {"o": expected}, stalls=[(1, 1), (0.7, 0.6)])


@pytest.mark.parametrize(
    "name",
    [
        "mxint4_b8",
        "mxfp4_b8",
        pytest.param("mxfp4_b8_rceil", marks=pytest.mark.slow),
        pytest.param("mxfp6_e2m3_b8_even", marks=pytest.mark.slow),
        pytest.param("mxfp6_e3m2_b8", marks=pytest.mark.slow),
        pytest.param("mxfp8_e4m3_b8_even", marks=pytest.mark.slow),
        pytest.param("mxfp8_e5m2_b8_rceil", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_all_mantissas_of_a_small_width(name, shared):
    # One lane sets the scale, the others sweep every value.
    format = parse_format(name)
    blocks = []
    for top in (1, 7, 12, 13, 127, -128):
        for start in range(-128, 128, 7):
            values = [min(start + step, 127) for step in range(7)]
            blocks.append(([top, *values], [3] * 8))
    rows, expected = payloads(blocks, [format], 8, shared)
    unit = Quantizer(mantissa_bits=8, lanes=8, formats=format, shared_exponent=shared)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1, 1)])


@pytest.mark.parametrize(
    ("name", "lanes", "shared"),
    [
        *(("mxint8", lanes, shared) for lanes in (1, 2, 4, 8, 32) for shared in (False, True)),
        *(("mxfp4", lanes, False) for lanes in (1, 4, 32)),
    ],
)
def test_timing(name, lanes, shared):
    make, rows, expected = case(10, lanes, (name,), shared, 6)
    unit = make()
    timing = measure_latency_and_interval(make(), {"i": rows}, "o", len(expected), groups=6)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    assert unit.interval == 32 // lanes


def test_properties_and_cost():
    formats = parse_format("mxint8"), parse_format("mxint16")
    unit = Quantizer(mantissa_bits=35, lanes=4, formats=formats)
    assert (unit.mantissa_bits, unit.lanes, unit.formats) == (35, 4, formats)
    assert (unit.format, unit.shared_exponent) == (formats[1], False)
    assert unit.cost() == {"multipliers": 0, "memory_bits": 16 * 4 * (35 + 13)}
    assert "cell $mul" not in rtlil.convert(unit)
    # A magnitude, its sign, highest bit and exponent, and whether it is zero.
    unit = Quantizer(mantissa_bits=35, lanes=4, formats=parse_format("mxfp4"))
    assert unit.cost() == {"multipliers": 0, "memory_bits": 16 * 4 * (35 + 1 + 6 + 13 + 1)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"mantissa_bits": 49},
            ValueError,
            "Mantissa width must be between 2 and 48, not 49",
        ),
        (
            {"mantissa_bits": "8"},
            TypeError,
            "Mantissa width must be an integer, not '8'",
        ),
        (
            {"lanes": 3},
            ValueError,
            "Lanes of a beat must divide the block size (32), not 3",
        ),
        (
            {"formats": ()},
            ValueError,
            "Quantizer must have at least one format",
        ),
        (
            {"formats": ("mxint8",)},
            TypeError,
            "Format of a quantizer must be a BlockFormat, not 'mxint8'",
        ),
        (
            {"formats": (parse_format("mxint8"), parse_format("mxfp4"))},
            ValueError,
            "Formats of a quantizer must have integer elements and the scale rule floor if there "
            "are several, not mxfp4_e2m1",
        ),
        (
            {"formats": (parse_format("mxint8"), parse_format("mxint8_b16"))},
            ValueError,
            "Formats of a quantizer must have one block size, not 32 and 16",
        ),
    ],
)
def test_errors(options, error, message):
    valid = {"mantissa_bits": 20, "lanes": 4, "formats": parse_format("mxint8")}
    with pytest.raises(error) as caught:
        Quantizer(**(valid | options))
    assert str(caught.value) == message
