# amaranth: UnusedElaboratable=no
import random

import pytest
import torch

from mxhw.cosim.engine import make_engine
from mxhw.dataflow.softmax import Softmax
from mxhw.formats import BlockFormat, parse_format
from mxhw.sw.golden.attention import softmax
from tests.support import STALLS, check_stream, pack, payload_shape

MXINT8 = parse_format("mxint8")
LOWEST, HIGHEST = -(1 << 23), (1 << 23) - 1


def beats(values, lanes, rng, low, high):
    """Beats of ``lanes``; what follows the last value is anything."""
    padded = list(values) + [rng.randrange(low, high) for _ in range(-len(values) % lanes)]
    return [padded[start : start + lanes] for start in range(0, len(padded), lanes)]


def scenario(heads, format, lanes_in, lanes_out, seed=0, exp2_bits=5):
    """Inputs and golden outputs of heads of (scores, scales)."""
    rng = random.Random(seed)
    inputs = {"i_position": [], "i": [], "i_scales": []}
    expected = {"o": [], "o_total": []}
    for scores, scales in heads:
        inputs["i_position"].append(len(scores) - 1)
        inputs["i"] += beats(scores, lanes_in, rng, LOWEST, HIGHEST)
        inputs["i_scales"] += beats(scales, lanes_in, rng, 0, 256)
        result = softmax(
            torch.tensor(scores),
            torch.ones(len(scores), dtype=torch.bool),
            torch.tensor(scales),
            format,
            exp2_bits,
        )
        expected["o_total"].append(int(result.total))
        elements = result.numerators.elements.tolist()
        for start in range(0, len(elements), lanes_out):
            scale = int(result.numerators.scales[start // format.block_size])
            expected["o"].append({"elements": elements[start : start + lanes_out], "scale": scale})
    return inputs, expected


def random_head(rng, positions):
    spread = rng.choice((10, 1 << 12, 1 << 15, 1 << 18))
    center = rng.randrange(-(1 << 20), 1 << 20)
    scores = [center + rng.randrange(-spread, spread + 1) for _ in range(positions)]
    return scores, [rng.choice((0, 90, 118, 120, 121, 127, 254)) for _ in range(positions)]


def check(
    heads, *, context, format=MXINT8, lanes_in=4, lanes=2, lanes_out=4, exp2_bits=5, **options
):
    inputs, expected = scenario(heads, format, lanes_in, lanes_out, exp2_bits=exp2_bits)
    unit = Softmax(
        context=context,
        format=format,
        lanes_in=lanes_in,
        lanes=lanes,
        lanes_out=lanes_out,
        exp2_bits=exp2_bits,
    )
    check_stream(unit, inputs, expected, **options)


def test_stalls():
    rng = random.Random(1)
    check([random_head(rng, count) for count in (1, 4, 32, 33, 5)], context=64, stalls=STALLS)


@pytest.mark.parametrize("positions", [1, 4, 32, 33, 64])
def test_positions(positions):
    rng = random.Random(positions)
    check([random_head(rng, positions) for _ in range(3)], context=64, stalls=[(1.0, 1.0)])


@pytest.mark.parametrize("exp2_bits", [3, 4])
def test_fewer_entries(exp2_bits):
    rng = random.Random(exp2_bits)
    heads = [random_head(rng, count) for count in (7, 33)]
    check(heads, context=64, exp2_bits=exp2_bits, stalls=[(0.7, 0.6)])


def test_extremes():
    # Saturated scores: the difference takes 25 bits; equal scores; exactly -31 and just below.
    scales = [120] * 32
    edge = [0, -31 << 12, (-31 << 12) - 1, (-31 << 12) + 1, (-32 << 12) + 5, -4096, -4095, -1]
    heads = [
        ([HIGHEST, LOWEST] * 4, scales[:8]),
        ([LOWEST] * 32, scales),
        (edge, scales[: len(edge)]),
        ([LOWEST] * 5 + [LOWEST + 1], [0] * 6),
        ([-(5 << 12)] * 3 + [(1 << 12) * 40], [0, 254, 1, 0]),
    ]
    check(heads, context=32, stalls=[(1.0, 1.0), (0.7, 0.7)])


def test_values_of_several_blocks():
    """A head takes a pass for each block, with the block's scales; the total is the same."""
    rng = random.Random(9)
    heads = []
    for count in (1, 4, 33, 64, 5):
        scores, scales = random_head(rng, count)
        heads.append([(scores, scales), (scores, random_head(rng, count)[1])])
    inputs, expected = scenario([part for head in heads for part in head], MXINT8, 4, 4)
    inputs |= {
        name: scenario([head[0] for head in heads], MXINT8, 4, 4)[0][name]
        for name in ("i", "i_position")
    }
    unit = Softmax(context=64, format=MXINT8, passes=2)
    check_stream(unit, inputs, expected, stalls=[(1.0, 1.0), (0.7, 0.6)])
    assert unit.interval(63) == 2 * Softmax(context=64, format=MXINT8).interval(63)


def test_other_lanes():
    rng = random.Random(7)
    heads = [random_head(rng, count) for count in (1, 9, 16, 24)]
    format = BlockFormat.mxint(6, 8)
    for lanes_in, lanes, lanes_out in ((4, 4, 4), (2, 1, 8), (1, 1, 1), (4, 2, 2)):
        check(
            heads,
            context=24,
            format=format,
            lanes_in=lanes_in,
            lanes=lanes,
            lanes_out=lanes_out,
            stalls=[(0.7, 0.6)],
        )


@pytest.mark.parametrize("lanes", [2, 4])
def test_timing(lanes):
    rng = random.Random(4)
    unit = Softmax(context=64, format=MXINT8, lanes=lanes)
    inputs, expected = scenario([random_head(rng, 32) for _ in range(4)], MXINT8, 4, 4)
    with make_engine(unit, "pysim") as sim:
        for name, payloads in inputs.items():
            sim.put(name, [pack(payload_shape(getattr(unit, name)), item) for item in payloads])
        for name, payloads in expected.items():
            sim.collect(name, len(payloads))
        sim.run_until()
        starts = sim.transfer_cycles("o")[::8]
        assert starts[0] - sim.transfer_cycles("i")[7] == unit.latency
        assert starts[3] - starts[2] == unit.interval(31)
    assert unit.interval(63) == {2: 33, 4: 17}[lanes]
    assert (unit.cost()["multipliers"], unit.cost()["block_rams"]) == (0, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": None}, TypeError, "^Format of a softmax must be a block format, not None$"),
        (
            {"format": parse_format("mxfp4")},
            ValueError,
            "^Format of a softmax must have integer elements, not mxfp4_e2m1$",
        ),
        (
            {"context": 0},
            ValueError,
            "^Context of a softmax must be a positive integer, not 0$",
        ),
        (
            {"lanes_in": 3},
            ValueError,
            r"^Input lanes of a softmax must divide the block size \(32\), not 3$",
        ),
        (
            {"lanes": 8},
            ValueError,
            r"^Inner lanes of a softmax must divide the input's \(4\) and the output's \(4\), "
            r"not 8$",
        ),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        Softmax(**{"context": 64, "format": MXINT8, **changes})
