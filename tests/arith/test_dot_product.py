# amaranth: UnusedElaboratable=no
"""The fused dot product against golden and against exact integers, in all formats."""

import random

import pytest
import torch

from mxhw.arith.dot_product import DotProduct
from mxhw.arith.multiply import DspMultiplier, LutMultiplier, PackedPairMultiplier
from mxhw.formats import parse_format
from mxhw.sw.golden import MXTensor
from mxhw.sw.golden.dot import dot_product
from tests.support import check_stream, measure_latency_and_interval

PAIRS = [
    ("mxint8_b8", "mxint8_b8"),
    ("mxint8_b16", "mxint4_b16"),
    ("mxfp4_b8", "mxfp4_b8"),
    ("mxfp4_b8", "mxint8_b8"),
    ("mxfp6_e2m3_b8", "mxfp6_e2m3_b8"),
    ("mxfp6_e3m2_b8", "mxfp6_e3m2_b8"),
    ("mxfp6_e2m3_b8", "mxfp6_e3m2_b8"),
    ("mxfp8_e4m3_b8", "mxfp8_e4m3_b8"),
    ("mxfp8_e5m2_b8", "mxfp8_e4m3_b8"),
    ("mxfp8_e5m2_b8", "mxfp8_e5m2_b8"),
    ("mxfp8_e4m3_b8", "mxint8_b8"),
    ("mxint5_b8", "mxfp8_e5m2_b8"),
    ("mxfp8_e4m3_b8", "mxfp4_b8"),
    ("block_e3m4_b8", "block_e2m1_b8"),
]


def random_vectors(x_format, w_format, count, max_terms, seed=0, full_range=False):
    """Vectors of blocks: random, all-maximum, cancelling, one huge element, zeros, end scales."""
    rng = random.Random(seed)
    vectors = []
    for index in range(count):
        blocks = rng.randint(1, max_terms)
        kind = index % 8
        vector = []
        for _ in range(blocks):
            pair = []
            for format in (x_format, w_format):
                bits, size = format.element.bits, format.block_size
                codes = [rng.randrange(1 << bits) for _ in range(size)]
                if format.element.is_integer and not full_range:
                    half = 1 << (bits - 1)
                    codes = [half - 1 if code == half else code for code in codes]
                table = format.element.spelled_table()
                largest, least = int(table.argmax()), int(table.argmin())
                if format.element.is_integer and not full_range:
                    least += 1
                if kind == 1:
                    codes = [largest] * size
                elif kind == 2:
                    codes = [least] * size
                elif kind == 3:
                    codes = [largest, least] * (size // 2)
                elif kind == 4:
                    codes = [0] * size
                    codes[rng.randrange(size)] = largest
                elif kind == 5 and rng.random() < 0.5:
                    codes = [0] * size
                spread = rng.choice((0, 2, 12, 120))
                scale = 127 + rng.randint(-spread, spread)
                if kind == 6:
                    scale = rng.choice((0, 254))
                pair.append((codes, scale))
            vector.append(pair)
        vectors.append(vector)
    return vectors


def tensor(format, blocks):
    codes = torch.tensor([code for codes, _ in blocks for code in codes])
    if format.element.is_integer:
        half = 1 << (format.element.bits - 1)
        codes = torch.where(codes >= half, codes - 2 * half, codes)
    return MXTensor(codes, torch.tensor([scale for _, scale in blocks]), format)


def exact(x_format, w_format, vector, guard_bits=8, align_bits=0):
    """The contract in Python's integers, one pair of blocks after the other."""
    total, reached = 0, None
    for (x, x_scale), (w, w_scale) in vector:
        tables = [f.element.spelled_table().tolist() for f in (x_format, w_format)]
        product = sum(tables[0][a] * tables[1][b] for a, b in zip(x, w, strict=True))
        scale = x_scale + w_scale
        aligned = scale >> align_bits << align_bits
        term = product << (guard_bits + scale - aligned)
        if reached is None or aligned > reached:
            total = 0 if reached is None else total >> (aligned - reached)
            reached = aligned
        total += term >> (reached - aligned)
    fractions = x_format.element.fraction_bits + w_format.element.fraction_bits
    return total, reached - 254 - fractions - guard_bits


def payloads(x_format, w_format, vectors, **options):
    rows, expected = [], []
    nan = options.pop("nan", False)
    for vector in vectors:
        for index, (x, w) in enumerate(vector):
            row = {"first": index == 0, "last": index == len(vector) - 1}
            for key, format, (codes, scale) in (("x", x_format, x), ("w", w_format, w)):
                signed = format.element.is_integer
                half = 1 << (format.element.bits - 1)
                codes = [c - 2 * half if signed and c >= half else c for c in codes]
                row[key] = {"elements": codes, "scale": scale}
            rows.append(row)
        mantissa, exponent = exact(x_format, w_format, vector, **options)
        tensors = [
            tensor(format, [pair[side] for pair in vector])
            for side, format in enumerate((x_format, w_format))
        ]
        if "e5m2" not in x_format.name + w_format.name:
            # Golden's int64 does not hold the widest sums.
            total, _ = dot_product(*tensors, **options)
            assert (int(total.mantissa), int(total.exponent)) == (mantissa, exponent)
        result = {"mantissa": mantissa, "exponent": exponent}
        flag = (tensors[0].is_nan() | tensors[1].is_nan()).any()
        expected.append(result | ({"nan": int(flag)} if nan else {}))
    return rows, expected


@pytest.mark.parametrize(("x_name", "w_name"), PAIRS)
@pytest.mark.parametrize("align_bits", [0, 3])
def test_equals_golden(x_name, w_name, align_bits):
    x_format, w_format = parse_format(x_name), parse_format(w_name)
    vectors = random_vectors(x_format, w_format, 32, 5)
    rows, expected = payloads(x_format, w_format, vectors, align_bits=align_bits)
    unit = DotProduct(x_format=x_format, w_format=w_format, max_terms=5, align_bits=align_bits)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1.0, 1.0), (0.6, 0.5)])


@pytest.mark.parametrize(
    "multiplier", [DspMultiplier(), DspMultiplier(stages=2), LutMultiplier(stages=3)]
)
@pytest.mark.parametrize("name", ["mxfp4_b8", "mxfp8_b8", "mxint3_b8"])
def test_multipliers(name, multiplier):
    format = parse_format(name)
    rows, expected = payloads(format, format, random_vectors(format, format, 16, 3))
    unit = DotProduct(x_format=format, w_format=format, max_terms=3, multiplier=multiplier)
    assert unit.cost()["multipliers"] == 8 * multiplier.multipliers
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(0.8, 0.8)])


@pytest.mark.parametrize("name", ["mxint8_b8", "mxfp4", "mxfp8_b16", "mxfp6_b8"])
@pytest.mark.parametrize("terms", [1, 3])
def test_timing(name, terms):
    format = parse_format(name)
    block = ([0] * format.block_size, 127)
    rows, expected = payloads(format, format, [[(block, block)] * terms] * 40)
    unit = DotProduct(x_format=format, w_format=format, max_terms=4)
    timing = measure_latency_and_interval(unit, {"i": rows}, "o", len(expected), groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval * terms)


@pytest.mark.parametrize("name", ["mxfp8_e4m3_b8", "mxfp8_e5m2_b8", "mxfp4_b8"])
def test_nan_is_flagged(name):
    format = parse_format(name)
    rng = random.Random(4)
    vectors = random_vectors(format, format, 60, 4, seed=1)
    for vector in vectors:
        for pair in vector:
            for side, (codes, scale) in enumerate(pair):
                if format.element.has_nan and rng.random() < 0.7:
                    # Codes of finite numbers only, but for the rest.
                    codes = [code & ~(1 << (format.element.bits - 2)) for code in codes]
                pair[side] = (codes, 255 if rng.random() < 0.1 else scale)
    rows, expected = payloads(format, format, vectors, nan=True)
    flags = [row["nan"] for row in expected]
    assert 0 < sum(flags) < len(flags)
    unit = DotProduct(x_format=format, w_format=format, max_terms=4, nan=True)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1.0, 1.0), (0.6, 0.5)])


@pytest.mark.parametrize("name", ["mxint8_b8", "mxint4_b8"])
def test_full_range(name):
    format = parse_format(name)
    vectors = random_vectors(format, format, 24, 4, full_range=True)
    rows, expected = payloads(format, format, vectors)
    unit = DotProduct(x_format=format, w_format=format, max_terms=4, full_range=True)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(0.9, 0.9)])


@pytest.mark.parametrize("name", ["mxfp4_b8", "mxfp6_b8", "mxfp6_e3m2_b8"])
def test_all_pairs_of_codes(name):
    """Each block multiplies one code with eight others."""
    format = parse_format(name)
    count = 1 << format.element.bits
    vectors = [
        [(([x] * 8, 127), (list(range(w, w + 8)), 127))]
        for x in range(count)
        for w in range(0, count, 8)
    ]
    rows, expected = payloads(format, format, vectors, guard_bits=0)
    unit = DotProduct(x_format=format, w_format=format, max_terms=1, guard_bits=0)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1.0, 1.0)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"w_format": parse_format("mxint8_b16")},
            ValueError,
            "Formats of a dot product must have one block size, not 8 and 16",
        ),
        (
            {"w_format": "mxint8"},
            TypeError,
            "Format of a dot product must be a BlockFormat, not 'mxint8'",
        ),
        (
            {"max_terms": 0},
            ValueError,
            "Number of terms of an accumulator must be at least 1, not 0",
        ),
        (
            {"guard_bits": 1.5},
            TypeError,
            "Number of guard bits of an accumulator must be an integer, not 1.5",
        ),
    ],
)
def test_errors(options, error, message):
    format = parse_format("mxint8_b8")
    with pytest.raises(error) as caught:
        DotProduct(**({"x_format": format, "w_format": format, "max_terms": 2} | options))
    assert str(caught.value) == message


def test_properties():
    x, w = parse_format("mxfp8"), parse_format("mxfp4")
    unit = DotProduct(x_format=x, w_format=w, max_terms=9, guard_bits=5, align_bits=2)
    assert (unit.x_format, unit.w_format, unit.max_terms) == (x, w, 9)
    assert (unit.guard_bits, unit.align_bits) == (5, 2)
    largest = (480 << 9) * 12 * 32
    assert unit.mantissa_bits == largest.bit_length() + 1 + 5 + 3 + 4


@pytest.mark.parametrize(
    ("x_name", "w_name"),
    [("mxint8_b8", "mxint4_b8"), ("mxint8_b16", "mxint3_b16"), ("mxint6_b8", "mxint6_b8")],
)
@pytest.mark.parametrize("stages", [1, 2])
def test_two_products_a_multiplier(x_name, w_name, stages):
    x_format, w_format = parse_format(x_name), parse_format(w_name)
    vectors = random_vectors(x_format, w_format, 80, 4, seed=3)
    rows, expected = payloads(x_format, w_format, vectors)
    unit = DotProduct(
        x_format=x_format, w_format=w_format, max_terms=4, multiplier=PackedPairMultiplier(stages)
    )
    assert unit.cost()["multipliers"] == x_format.block_size // 2
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1.0, 1.0), (0.6, 0.6)])


def test_all_products_in_pairs():
    """Every activation with every weight, beside the neighbours that disturb it most."""
    x_format, w_format = parse_format("mxint8_b8"), parse_format("mxint4_b8")
    vectors = []
    for x in range(-127, 128):
        for others in ((127, 7), (-127, 7), (-127, -7), (0, -7)):
            for w in range(-7, 8, 4):
                xs = [x, others[0], others[0], x] * 2
                ws = [min(w + lane // 2, 7) if lane % 3 else others[1] for lane in range(8)]
                pair = ([code % 256 for code in xs], 127), ([code % 16 for code in ws], 127)
                vectors.append([pair])
    rows, expected = payloads(x_format, w_format, vectors)
    unit = DotProduct(
        x_format=x_format, w_format=w_format, max_terms=1, multiplier=PackedPairMultiplier()
    )
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1.0, 1.0)])


@pytest.mark.parametrize("names", [("mxint8", "mxint5"), ("mxint8", "mxfp4"), ("mxint4", "mxint8")])
def test_pairs_need_narrow_factors(names):
    x_format, w_format = (parse_format(name) for name in names)
    message = r"^Two products can share a multiplier if both formats have integer elements"
    with pytest.raises(ValueError, match=message):
        DotProduct(
            x_format=x_format, w_format=w_format, max_terms=4, multiplier=PackedPairMultiplier()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mxint8", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3"])
def test_as_native_code(name):
    """Whole blocks, thousands of vectors."""
    format = parse_format(name)
    vectors = random_vectors(format, format, 1000, 6, seed=7)
    rows, expected = payloads(format, format, vectors, align_bits=3)
    unit = DotProduct(x_format=format, w_format=format, max_terms=6, align_bits=3)
    check_stream(unit, {"i": rows}, {"o": expected}, engine="cxxrtl", stalls=[(0.9, 0.8)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mxfp8_e4m3_b8", "mxfp8_e5m2_b8", "mxint8_b8"])
def test_all_pairs_of_eight_bit_codes(name):
    format = parse_format(name)
    codes = [c for c in range(256) if not (format.element.is_integer and c == 128)]
    vectors = [
        [(([x] * 8, 127), ((codes[w : w + 8] + [0] * 8)[:8], 127))]
        for x in codes
        for w in range(0, len(codes), 8)
    ]
    rows, expected = payloads(format, format, vectors, guard_bits=0)
    unit = DotProduct(x_format=format, w_format=format, max_terms=1, guard_bits=0)
    check_stream(unit, {"i": rows}, {"o": expected}, engine="cxxrtl", stalls=[(1.0, 1.0)])
