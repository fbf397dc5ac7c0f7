# amaranth: UnusedElaboratable=no
"""RMSNorm against the golden model."""

import functools

import pytest
import torch

from mxhw.dataflow.rms_norm import RmsNorm
from mxhw.formats import parse_format
from mxhw.sw.golden import quantize
from mxhw.sw.golden.norm import rms_norm
from tests.support import check_stream, measure_latency_and_interval, pack_lanes, run_stream

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")
EPSILON = 1e-5


def beats(tensor, lanes):
    """Bits of the beats of all blocks, in order."""
    bits, size = tensor.format.element.bits, tensor.format.block_size
    rows = tensor.elements.reshape(-1, size).tolist()
    return [
        pack_lanes(row[start : start + lanes], bits) | scale << lanes * bits
        for row, scale in zip(rows, tensor.scales.reshape(-1).tolist(), strict=True)
        for start in range(0, size, lanes)
    ]


@functools.cache
def vectors(count, dim, format=WIDE):
    """Usual vectors, zeros, one large block, extreme scales, random codes of all scales."""
    generator = torch.Generator().manual_seed(dim)
    size = format.block_size
    x = torch.randn(count, dim, generator=generator)
    x = x * torch.exp2(torch.arange(count) % 12 * 2.0 - 6).unsqueeze(1)
    x[1] = 0
    x[2, size:] *= 2.0**-12
    x[3, :size] *= 2.0**-9
    x[4, : dim // 2] = 0
    x = quantize(x, format)
    x.elements[5] = -(1 << (format.element.bits - 1))
    for row, scales in ((5, 127), (6, 0), (7, 200)):
        x.scales[row] = scales
    spread = torch.randint(100, 150, x.scales[8:].shape, generator=generator)
    x.scales[8:] = spread
    return x


@functools.cache
def weights(count, dim, format=WIDE):
    generator = torch.Generator().manual_seed(count)
    values = 1 + 0.4 * torch.randn(count, dim, generator=generator)
    values[-1, : format.block_size] *= 2.0**-10
    return [quantize(row, format) for row in values]


def golden(x, used, format, epsilon=EPSILON, rsqrt_bits=5):
    dim = x.elements.shape[-1]
    rows = []
    for index in range(x.elements.shape[0]):
        weight = used[index % len(used)] if used else None
        rows.append(rms_norm(x[index], weight, epsilon, dim, format, rsqrt_bits))
    return rows


def make(dim, used, **parameters):
    parameters = {"wide_format": WIDE, "format": NARROW, "epsilon": EPSILON} | parameters
    return RmsNorm(dim=dim, weights=used, **parameters)


def expected(x, used, format, lanes, epsilon=EPSILON, rsqrt_bits=5):
    rows = golden(x, used, format, epsilon, rsqrt_bits)
    return [beat for row in rows for beat in beats(row, lanes)]


def test_with_weights_under_stalls():
    x, used = vectors(11, 128), weights(3, 128)
    # The weights' counter starts again at a reset.
    check_stream(make(128, used), {"i": beats(x, 4)}, {"o": expected(x, used, NARROW, 4)})


def test_without_weights_under_stalls():
    x = vectors(10, 64)
    check_stream(make(64, None), {"i": beats(x, 4)}, {"o": expected(x, None, NARROW, 4)})


@pytest.mark.parametrize(
    ("wide", "narrow", "dim", "lanes", "epsilon"),
    [
        ("mxint16", "mxint16", 96, 4, 1e-6),
        ("mxint12_b16", "mxint4_b16", 48, 1, 0.7),
        ("mxint8", "mxint6", 160, 8, 1e-30),
        ("mxint16_b8", "mxint8_b8", 8, 8, 1e-5),
        ("mxint16_b8", "mxint8_b8", 24, 2, 1e-5),
    ],
)
def test_other_shapes(wide, narrow, dim, lanes, epsilon):
    wide, narrow = parse_format(wide), parse_format(narrow)
    x, stalls = vectors(10, dim, wide), [(0.7, 0.5)]
    for used in (None, weights(2, dim, wide)):
        unit = make(dim, used, wide_format=wide, format=narrow, lanes=lanes, epsilon=epsilon)
        want = expected(x, used, narrow, lanes, epsilon)
        check_stream(unit, {"i": beats(x, lanes)}, {"o": want}, stalls=stalls)


@pytest.mark.parametrize("rsqrt_bits", [3, 4])
def test_fewer_entries(rsqrt_bits):
    x, used = vectors(11, 64), weights(3, 64)
    unit = make(64, used, rsqrt_bits=rsqrt_bits)
    want = expected(x, used, NARROW, 4, rsqrt_bits=rsqrt_bits)
    check_stream(unit, {"i": beats(x, 4)}, {"o": want}, stalls=[(0.7, 0.6)])


@pytest.mark.slow
def test_many_vectors():
    x, used = vectors(400, 128), weights(11, 128)
    want = expected(x, used, NARROW, 4)
    unit = make(128, used)
    got = run_stream(unit, {"i": beats(x, 4)}, {"o": len(want)}, engine="cxxrtl", stalls=(0.9, 0.9))
    assert got["o"] == want


@pytest.mark.parametrize(
    ("dim", "lanes", "norms"), [(128, 4, 2), (64, 4, 0), (96, 4, 1), (64, 1, 1), (64, 16, 1)]
)
def test_timing(dim, lanes, norms):
    x = vectors(10, dim)[:4]
    unit = make(dim, weights(norms, dim) if norms else None, lanes=lanes)
    count = 4 * dim // lanes
    timing = measure_latency_and_interval(unit, {"i": beats(x, lanes)}, "o", count, groups=4)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    slices = lanes * (2 if norms else 1) + (2 if dim == 96 else 1)
    assert unit.cost()["multipliers"] == slices
    width = 8 + 16 * lanes
    assert unit.cost()["block_rams"] == (-(-width // 36) if norms else 0)
    assert (unit.dim, unit.lanes, unit.norms, unit.epsilon) == (dim, lanes, norms, EPSILON)
    assert (unit.wide_format, unit.format) == (WIDE, NARROW)
    # From the last beat to the first product of the second pass.
    assert unit._issue_stage + 3 <= 20


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        ({"wide_format": 16}, TypeError, "Wide format of a norm must be a BlockFormat, not 16"),
        ({"format": 8}, TypeError, "Format of a norm must be a BlockFormat, not 8"),
        (
            {"wide_format": parse_format("mxint20")},
            ValueError,
            "Wide format of a norm must have integer elements of at most 16 bits, not mxint20",
        ),
        (
            {"format": parse_format("mxint8_b16")},
            ValueError,
            "Formats of a norm must have one block size, not 32 and 16",
        ),
        ({"dim": "a"}, TypeError, "Length of a norm must be an integer, not 'a'"),
        ({"lanes": 4.0}, TypeError, "Lanes of a norm must be an integer, not 4.0"),
        (
            {"dim": 100},
            ValueError,
            "Length of a norm must be a multiple of the block size (32), not 100",
        ),
        ({"epsilon": "a"}, TypeError, "Epsilon of a norm must be a number, not 'a'"),
        ({"epsilon": 0.0}, ValueError, "Epsilon of a norm must be positive, not 0.0"),
        (
            {"weights": []},
            ValueError,
            "Weights of a norm must be at least one vector, or None",
        ),
        ({"weights": [1]}, TypeError, "Weight of a norm must be an MXTensor, not 1"),
        (
            {"weights": [quantize(torch.ones(64), NARROW)]},
            ValueError,
            "Weight of a norm must have the wide format mxint16, not mxint8",
        ),
        (
            {"weights": [quantize(torch.ones(32), WIDE)]},
            ValueError,
            "Weight of a norm must have the shape (64,), not (32,)",
        ),
        (
            {"lanes": 5},
            ValueError,
            "Lanes of a beat must divide the block size (32), not 5",
        ),
    ],
)
def test_errors(parameters, kind, message):
    settings = {"dim": 64, "epsilon": EPSILON, "wide_format": WIDE, "format": NARROW}
    with pytest.raises(kind) as caught:
        RmsNorm(**settings | parameters)
    assert str(caught.value) == message
