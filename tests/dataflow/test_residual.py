# amaranth: UnusedElaboratable=no
import random

import pytest
import torch

from mxhw.dataflow.residual import Residual
from mxhw.formats import BlockFormat, parse_format
from mxhw.sw.golden.pointwise import add
from mxhw.sw.golden.tensor import MXTensor
from tests.support import check_stream, measure_latency_and_interval

WIDE = parse_format("mxint16")


def random_vector(rng, dim, format, scales):
    """A vector as the quantiser could have made it, and some that it could not."""
    limit = format.element.max_significand
    elements = []
    bytes_ = []
    for _ in range(dim // format.block_size):
        size = rng.choice((1, 7, limit // 3 + 1, limit))
        elements += [rng.randrange(-size, size + 1) for _ in range(format.block_size)]
        bytes_.append(rng.choice(scales))
    return MXTensor(torch.tensor(elements), torch.tensor(bytes_), format)


def beats(vector, lanes):
    elements = vector.elements.tolist()
    size = vector.format.block_size
    return [
        {"elements": elements[start : start + lanes], "scale": int(vector.scales[start // size])}
        for start in range(0, len(elements), lanes)
    ]


def check(dim, format, lanes, rounds, adds, scales=(0, 100, 118, 120, 121, 122, 124), **options):
    rng = random.Random(dim + lanes)
    loads, added, expected = [], [], []
    for _ in range(rounds):
        vector = random_vector(rng, dim, format, scales)
        loads += beats(vector, lanes)
        expected += beats(vector, lanes)
        for _ in range(adds):
            more = random_vector(rng, dim, format, scales)
            vector = add(vector, more, format)
            added += beats(more, lanes)
            expected += beats(vector, lanes)
    check_stream(
        Residual(dim=dim, wide_format=format, lanes=lanes, adds=adds),
        {"i_load": loads, "i_add": added},
        {"o": expected},
        **options,
    )


def test_tokens():
    check(64, WIDE, 4, rounds=3, adds=4)


def test_every_distance():
    scales = [*range(90, 130), 0, 254]
    check(32, WIDE, 4, rounds=2, adds=60, scales=scales, stalls=[(1.0, 1.0)])


@pytest.mark.parametrize(
    ("dim", "format", "lanes", "adds"),
    [
        (32, WIDE, 32, 3),
        (8, BlockFormat.mxint(24, 8), 2, 2),
        (96, BlockFormat.mxint(12), 1, 1),
        (64, BlockFormat.mxint(4, 16), 8, 0),
    ],
)
def test_shapes(dim, format, lanes, adds):
    check(dim, format, lanes, rounds=3, adds=adds, stalls=[(1.0, 1.0), (0.6, 0.6)])


def test_without_order():
    # A load goes first; additions follow as they come.
    rng = random.Random(5)
    vectors = [random_vector(rng, 64, WIDE, (118, 120)) for _ in range(3)]
    total = vectors[0]
    expected = beats(total, 4)
    for vector in vectors[1:]:
        total = add(total, vector, WIDE)
        expected += beats(total, 4)
    inputs = {"i_load": beats(vectors[0], 4), "i_add": beats(vectors[1], 4) + beats(vectors[2], 4)}
    check_stream(
        Residual(dim=64, wide_format=WIDE), inputs, {"o": expected}, stalls=[(1.0, 1.0), (1.0, 0.5)]
    )


def test_timing():
    rng = random.Random(3)
    unit = Residual(dim=64, wide_format=WIDE, adds=None)
    vectors = [random_vector(rng, 64, WIDE, (118, 120)) for _ in range(3)]
    timing = measure_latency_and_interval(
        Residual(dim=32, wide_format=WIDE),
        {"i_add": beats(random_vector(rng, 32, WIDE, (118,)), 4)},
        "o",
        8,
    )
    assert timing.latency == unit.latency
    timing = measure_latency_and_interval(
        unit,
        {"i_add": [beat for vector in vectors for beat in beats(vector, 4)]},
        "o",
        48,
        groups=3,
    )
    assert timing.interval == unit.interval
    assert (unit.cost()["multipliers"], unit.cost()["block_rams"]) == (0, 0)
    assert unit.cost()["memory_bits"] > 16 * 72


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"wide_format": "mxint16"},
            TypeError,
            "^Format of a residual must be a block format, not 'mxint16'$",
        ),
        (
            {"wide_format": parse_format("mxfp8")},
            ValueError,
            "^Format of a residual must have integer elements of at least 4 bits, not mxfp8_e4m3$",
        ),
        ({"dim": 64.0}, TypeError, r"^Dimension of a residual must be an integer, not 64\.0$"),
        (
            {"dim": 48},
            ValueError,
            r"^Dimension of a residual must be a multiple of the block size \(32\), not 48$",
        ),
        ({"adds": -1}, ValueError, "^Number of additions must be a natural number, not -1$"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        Residual(**{"dim": 64, "wide_format": WIDE, **changes})
