# amaranth: UnusedElaboratable=no
import pytest
import torch

from mxhw.dataflow.rope import Rope
from mxhw.formats import BlockFormat, parse_format
from mxhw.sw.golden.rope import rope
from mxhw.sw.golden.tensor import MXTensor
from tests.support import STALLS, check_stream, measure_latency_and_interval

WIDE, NARROW = parse_format("mxint16"), parse_format("mxint8")


def beats(vector, lanes):
    elements = vector.elements.flatten().tolist()
    scales = vector.scales.flatten().tolist()
    size = vector.format.block_size
    return [
        {"elements": elements[start : start + lanes], "scale": scales[start // size]}
        for start in range(0, len(elements), lanes)
    ]


def parameters(**changes):
    return {
        "context": 64,
        "head_size": 32,
        "theta": 10000.0,
        "query_heads": 2,
        "key_heads": 1,
        "wide_format": WIDE,
        "format": NARROW,
        "lanes": 4,
        **changes,
    }


def random_input(positions, heads, head_size, format, seed=0):
    generator = torch.Generator().manual_seed(seed)
    length = heads * head_size
    limit = format.element.max_significand
    elements = torch.randint(-limit, limit + 1, (positions, length), generator=generator)
    # Pairs of the largest length, which rotate onto an axis.
    elements[0] = limit
    elements[-1, : length // 2] = -limit - 1
    scales = torch.randint(0, 255, (positions, length // format.block_size), generator=generator)
    return MXTensor(elements, scales, format)


def check(positions, p, **options):
    heads = p["query_heads"] + p["key_heads"]
    x = random_input(len(positions), heads, p["head_size"], p["wide_format"])
    result = rope(
        x,
        torch.tensor(positions),
        p["context"],
        p["head_size"],
        p["theta"],
        p["format"],
        p.get("rotary"),
        p.get("slots", 1),
    )
    queries = p["query_heads"] * p["head_size"]
    size = p["format"].block_size
    parts = {
        "o_query": MXTensor(
            result.elements[:, :queries], result.scales[:, : queries // size], p["format"]
        ),
        "o_key": MXTensor(
            result.elements[:, queries:], result.scales[:, queries // size :], p["format"]
        ),
    }
    check_stream(
        Rope(**p),
        {"i_position": positions, "i": beats(x, p["lanes"])},
        {name: beats(part, p["lanes"]) for name, part in parts.items()},
        **options,
    )


def test_stalls():
    check([0, 3, 63], parameters(), stalls=STALLS)


@pytest.mark.parametrize(("rotary", "slots"), [(8, 4), (12, 2), (24, 1)])
def test_heads_that_share_a_block(rotary, slots):
    check([0, 5, 63, 17], parameters(rotary=rotary, slots=slots), stalls=[(0.8, 0.7)])
    cost = Rope(**parameters(rotary=rotary, slots=slots, context=512)).cost()
    assert cost["block_rams"] == {4: 4, 2: 8, 1: 16}[slots]


def test_every_position():
    check(list(range(64)), parameters(query_heads=1), stalls=[(1.0, 1.0)])


@pytest.mark.parametrize(
    "changes",
    [
        {"head_size": 64, "context": 5, "theta": 500000.0, "lanes": 8},
        {"wide_format": BlockFormat.mxint(18, 16), "format": BlockFormat.mxint(6, 16), "lanes": 2},
        {"query_heads": 4, "key_heads": 2, "context": 33, "format": parse_format("mxint16")},
    ],
)
def test_shapes(changes):
    p = parameters(**changes)
    check([0, 1, 4, p["context"] - 1], p, stalls=[(0.8, 0.7)])


def test_timing():
    # Only the first position is taken: its six blocks are all queries.
    unit = Rope(**parameters(query_heads=6, context=256))
    x = random_input(1, 6, 32, WIDE)
    timing = measure_latency_and_interval(
        unit, {"i_position": [63] * 6, "i": beats(x, 4)}, "o_query", 48, groups=6
    )
    assert timing.interval == unit.interval == 16
    assert timing.latency == unit.latency
    cost = unit.cost()
    assert (cost["multipliers"], cost["block_rams"]) == (4, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": None}, TypeError, "^Format of a rotation must be a block format, not None$"),
        (
            {"format": parse_format("mxfp4")},
            ValueError,
            "^Format of a rotation must have integer elements, not mxfp4_e2m1$",
        ),
        (
            {"wide_format": parse_format("mxint19")},
            ValueError,
            "^Input of a rotation must have 4 to 18 bits, not 19$",
        ),
        (
            {"format": parse_format("mxint8_b16")},
            ValueError,
            "^Formats of a rotation must have one block size, not 32 and 16$",
        ),
        (
            {"key_heads": 0},
            ValueError,
            "^Key heads of a rotation must be a positive integer, not 0$",
        ),
        (
            {"head_size": 16},
            ValueError,
            r"^Head size of a rotation must be a multiple of the block size \(32\), not 16$",
        ),
        ({"theta": -1.0}, ValueError, r"^Base of a rotation must be positive, not -1\.0$"),
        ({"lanes": 1}, ValueError, "^Lanes of a rotation must be whole pairs, not 1$"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        Rope(**parameters(**changes))
