# amaranth: UnusedElaboratable=no
"""SiLU and gated SiLU against the golden model."""

import functools

import pytest
import torch

from mxhw.dataflow.swiglu import Silu, SwiGlu
from mxhw.formats import parse_format
from mxhw.sw.golden import MXTensor, quantize
from mxhw.sw.golden.pointwise import silu, swiglu
from tests.support import (
    check_stream,
    measure_latency_and_interval,
    pack_lanes,
    run_stream,
)

WIDE = parse_format("mxint16")
NARROW = parse_format("mxint8")


def beats(tensor, lanes):
    """Bits of the beats of the blocks, one list a block."""
    bits = tensor.format.element.bits
    size = tensor.format.block_size
    rows = tensor.elements.reshape(-1, size).tolist()
    scales = tensor.scales.reshape(-1).tolist()
    return [
        [
            pack_lanes(row[start : start + lanes], bits) | scale << lanes * bits
            for start in range(0, size, lanes)
        ]
        for row, scale in zip(rows, scales, strict=True)
    ]


def flat(blocks):
    return [beat for block in blocks for beat in block]


def interleaved(gate, up, lanes):
    pairs = zip(beats(gate, lanes), beats(up, lanes), strict=True)
    return flat(block for pair in pairs for block in pair)


@functools.cache
def operands(count, format=WIDE):
    """Pairs of blocks: usual ones, extreme exponents, zeros, tails, random codes."""
    generator = torch.Generator().manual_seed(count)
    size = format.block_size
    magnitudes = torch.tensor([1.0, 8.0, 2.0**-6, 2.0**-20, 40.0]).repeat(count)[:count]
    gate = torch.randn(count, size, generator=generator) * magnitudes.unsqueeze(1)
    up = torch.randn(count, size, generator=generator) * magnitudes.flip(0).unsqueeze(1)
    gate[3] = -gate[3].abs()
    gate[1, :4] = torch.tensor([-20.0, -30.0, -22.0, 25.0])
    gate[4] = 0
    up[5] = 0
    gate[6] = torch.linspace(-24, 24, size)
    gate, up = quantize(gate, format), quantize(up, format)
    # Products beyond 2**128 by more than 30 bits overflow the golden model's int64.
    for index, (left, right) in enumerate([(0, 0), (254, 140), (0, 254), (254, 0), (140, 3)]):
        for tensor, scale in ((gate, left), (up, right)):
            tensor.scales[8 + index] = scale
            low = -(1 << (format.element.bits - 1))
            tensor.elements[8 + index] = torch.randint(low, -low, (size,), generator=generator)
    return gate, up


def test_swiglu_under_stalls():
    gate, up = operands(14)
    want = flat(beats(swiglu(gate, up, NARROW), 4))
    unit = SwiGlu(wide_format=WIDE, format=NARROW)
    check_stream(unit, {"i": interleaved(gate, up, 4)}, {"o": want})


def test_silu_under_stalls():
    gate, _ = operands(14)
    want = flat(beats(silu(gate, NARROW), 4))
    unit = Silu(wide_format=WIDE, format=NARROW)
    stalls = [(1.0, 1.0), (0.6, 0.6)]
    check_stream(unit, {"i": flat(beats(gate, 4))}, {"o": want}, stalls=stalls)


@pytest.mark.parametrize(
    ("wide", "narrow", "lanes_in", "lanes", "lanes_out"),
    [
        ("mxint16_b16", "mxint16_b16", 2, 2, 2),
        ("mxint12_b16", "mxint4_b16", 4, 2, 8),
        ("mxint8", "mxint6", 1, 1, 1),
        ("mxint16_b8", "mxint8_b8", 8, 4, 4),
    ],
)
def test_other_shapes(wide, narrow, lanes_in, lanes, lanes_out):
    wide, narrow = parse_format(wide), parse_format(narrow)
    gate, up = operands(13, wide)
    lanes_of = {"lanes_in": lanes_in, "lanes": lanes, "lanes_out": lanes_out}
    stalls = [(0.7, 0.5)]
    want = flat(beats(swiglu(gate, up, narrow), lanes_out))
    unit = SwiGlu(wide_format=wide, format=narrow, **lanes_of)
    check_stream(unit, {"i": interleaved(gate, up, lanes_in)}, {"o": want}, stalls=stalls)
    want = flat(beats(silu(gate, narrow), lanes_out))
    unit = Silu(wide_format=wide, format=narrow, **lanes_of)
    check_stream(unit, {"i": flat(beats(gate, lanes_in))}, {"o": want}, stalls=stalls)


@pytest.mark.parametrize("bits", [(3, 4)])
def test_fewer_entries(bits):
    gate, up = operands(14)
    entries = dict(zip(("exp2_bits", "reciprocal_bits"), bits, strict=True))
    want = flat(beats(swiglu(gate, up, NARROW, **entries), 4))
    unit = SwiGlu(wide_format=WIDE, format=NARROW, **entries)
    check_stream(unit, {"i": interleaved(gate, up, 4)}, {"o": want}, stalls=[(0.7, 0.6)])


def test_every_code_at_several_exponents():
    # A block of one code and zeros shows every bit of the 18-bit mantissa that rounding leaves; a
    # wide output leaves 23. Each block has one element of the sweep and scales of its own.
    codes = torch.arange(-(1 << 15), 1 << 15)
    wanted = parse_format("mxint20_b8")
    wide = parse_format("mxint16_b8")
    rows, scales = [], []
    for exponent in (-16, -12, -11):
        part = codes if exponent == -12 else codes[::5]
        part = part[: len(part) // 8 * 8].reshape(8, -1).T.contiguous()
        rows.append(part)
        scales.append(torch.full((len(part), 1), exponent + 127 + wide.element.fraction_bits))
    gate = MXTensor(torch.cat(rows), torch.cat(scales), wide)
    want = flat(beats(silu(gate, wanted), 8))
    unit = Silu(wide_format=wide, format=wanted, lanes_in=8, lanes=1, lanes_out=8)
    inputs = flat(beats(gate, 8))
    got = run_stream(unit, {"i": inputs}, {"o": len(want)}, engine="cxxrtl")
    assert got["o"] == want


@pytest.mark.parametrize("kind", [Silu, SwiGlu])
@pytest.mark.parametrize("lanes_of", [(4, 1, 4), (4, 4, 4), (4, 2, 8), (1, 1, 1)])
def test_timing(kind, lanes_of):
    lanes_in, lanes, lanes_out = lanes_of
    gate, up = operands(14)
    unit = kind(
        wide_format=WIDE, format=NARROW, lanes_in=lanes_in, lanes=lanes, lanes_out=lanes_out
    )
    gate, up = gate[:5], up[:5]
    inputs = interleaved(gate, up, lanes_in) if kind is SwiGlu else flat(beats(gate, lanes_in))
    count = 5 * 32 // lanes_out
    timing = measure_latency_and_interval(unit, {"i": inputs}, "o", count, groups=5)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    assert unit.cost()["multipliers"] == (4 if kind is SwiGlu else 3) * lanes
    assert unit.cost()["block_rams"] == 0
    assert unit.wide_format is WIDE
    assert unit.format is NARROW
    assert (unit.lanes_in, unit.lanes, unit.lanes_out) == lanes_of


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        (
            {"wide_format": 16},
            TypeError,
            "Wide format of a gated SiLU must be a BlockFormat, not 16",
        ),
        ({"format": "a"}, TypeError, "Format of a gated SiLU must be a BlockFormat, not 'a'"),
        (
            {"wide_format": parse_format("mxfp8")},
            ValueError,
            "Wide format of a gated SiLU must have integer elements of at most 16 bits, "
            "not mxfp8_e4m3",
        ),
        (
            {"format": parse_format("mxint8_b16")},
            ValueError,
            "Formats of a gated SiLU must have one block size, not 32 and 16",
        ),
        ({"lanes": 1.0}, TypeError, "Lanes of a gated SiLU must be an integer, not 1.0"),
        (
            {"lanes_in": "4"},
            TypeError,
            "Input lanes of a gated SiLU must be an integer, not '4'",
        ),
        (
            {"lanes": 2, "lanes_out": 1},
            ValueError,
            "Output lanes of a gated SiLU must be a multiple of its lanes (2), not 1",
        ),
    ],
)
def test_errors(parameters, kind, message):
    with pytest.raises(kind) as caught:
        SwiGlu(**{"wide_format": WIDE, "format": NARROW} | parameters)
    assert str(caught.value) == message
