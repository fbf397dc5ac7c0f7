# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.dataflow.key_cache import ColumnMemory, KeyCache
from mxhw.formats import BlockFormat, parse_format
from tests.support import STALLS, measure_latency_and_interval, payload_shape, run_stream, unpack

MXINT8 = parse_format("mxint8")


def beats(rng, format, blocks, lanes=4):
    """Beats of random blocks, and the blocks as (codes, scale)."""
    bits = format.element.bits
    low = -(1 << (bits - 1)) if format.element.is_integer else 0
    result = []
    content = []
    for _ in range(blocks):
        codes = [rng.randrange(low, low + (1 << bits)) for _ in range(format.block_size)]
        scale = rng.randrange(255)
        content.append((codes, scale))
        for start in range(0, len(codes), lanes):
            result.append({"elements": codes[start : start + lanes], "scale": scale})
    return result, content


def scenario(rng, cache_parameters, steps):
    """Commands and beats of random tokens, and the (command, row -> block) each word must hold."""
    format = cache_parameters["format"]
    rows = cache_parameters["rows"]
    blocks = cache_parameters["head_size"] // format.block_size
    stored = {}
    commands, inputs, expected = [], [], []
    for write, layer, head, position in steps:
        commands.append({"write": write, "layer": layer, "head": head, "position": position})
        if write:
            more, content = beats(rng, format, blocks, cache_parameters["lanes"])
            inputs += more
            stored[layer, head, position] = content
        else:
            for word in range(position // rows + 1):
                for block in range(blocks):
                    expected.append(
                        [
                            stored[layer, head, word * rows + row][block]
                            if word * rows + row <= position
                            else None
                            for row in range(rows)
                        ]
                    )
    return commands, inputs, expected


def run(parameters, steps, stalls, seed=0):
    rng = random.Random(seed)
    commands, inputs, expected = scenario(rng, parameters, steps)
    cache = KeyCache(**parameters)
    words = run_stream(
        cache,
        {"i_command": commands, "i": inputs},
        {"o": len(expected)},
        stalls=stalls,
        seed=seed,
    )["o"]
    shape = payload_shape(cache.o)
    for bits, rows in zip(words, expected, strict=True):
        word = unpack(shape, bits)
        for got, wanted in zip(word, rows, strict=True):
            if wanted is not None:
                assert (got["elements"], got["scale"]) == wanted


def parameters(**changes):
    return {
        "layers": 2,
        "kv_heads": 1,
        "context": 64,
        "head_size": 32,
        "rows": 4,
        "format": MXINT8,
        "lanes": 4,
        **changes,
    }


def token(position, layers, kv_heads, reads=2):
    """The commands of one decode step."""
    for layer in range(layers):
        for head in range(kv_heads):
            yield 1, layer, head, position
        for head in range(kv_heads):
            for _ in range(reads):
                yield 0, layer, head, position


@pytest.mark.parametrize("stalls", STALLS)
def test_tokens(stalls):
    steps = [step for position in range(6) for step in token(position, 2, 1)]
    run(parameters(), steps, stalls)


@pytest.mark.parametrize("last", [31, 32, 63])
def test_positions(last):
    steps = [(1, 1, 0, position) for position in range(last + 1)]
    steps += [(0, 1, 0, position) for position in (0, 3, last)]
    run(parameters(), steps, (0.8, 0.6))


def test_heads_and_blocks():
    format = BlockFormat.mxint(8, 16)
    steps = [step for position in range(5) for step in token(position, 3, 2, reads=1)]
    run(
        parameters(layers=3, kv_heads=2, context=8, head_size=32, rows=2, format=format),
        steps,
        (0.7, 0.6),
    )


@pytest.mark.parametrize(
    ("format", "rows", "lanes"), [("mxfp4", 1, 8), ("mxfp6", 8, 32), ("mxint5", 4, 1)]
)
def test_formats(format, rows, lanes):
    steps = [step for position in range(9) for step in token(position, 1, 1)]
    run(
        parameters(layers=1, context=16, rows=rows, format=parse_format(format), lanes=lanes),
        steps,
        (0.7, 0.7),
    )


def test_read_after_overwrite():
    steps = [(1, 0, 0, 0), (0, 0, 0, 0)] * 4
    run(parameters(), steps, (1.0, 1.0))


def test_timing():
    cache = KeyCache(**parameters())
    command = {"write": 0, "layer": 1, "head": 0, "position": 63}
    timing = measure_latency_and_interval(
        cache, {"i_command": [command] * 4}, "o", 4 * cache.read_cycles(63), groups=4
    )
    assert timing.latency == cache.latency == 3
    assert timing.interval == cache.read_cycles(63) * cache.interval == 16


def test_write_timing():
    cache = KeyCache(**parameters())
    steps = [{"write": 1, "layer": 0, "head": 0, "position": 3}] * 3
    steps += [{"write": 0, "layer": 0, "head": 0, "position": 3}]
    inputs, _content = beats(random.Random(0), MXINT8, 3)
    timing = measure_latency_and_interval(cache, {"i_command": steps, "i": inputs}, "o", 1)
    assert timing.latency == cache.latency
    assert cache.write_cycles == 8


def test_cost():
    cost = KeyCache(**parameters(layers=5, context=256)).cost()
    assert cost == {"multipliers": 0, "memory_bits": 0, "block_rams": 33}
    assert KeyCache(**parameters(layers=10, context=256)).cost()["block_rams"] == 66


def test_column_memory():
    store = ColumnMemory(depth=3, widths=[4, 8], offsets=[[0], [4]])
    assert (store.depth, store.latency, store.interval) == (3, 2, 1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"layers": 0},
            ValueError,
            "^Number of layers of a cache must be a positive integer, not 0$",
        ),
        (
            {"kv_heads": 1.5},
            ValueError,
            r"^Number of key heads of a cache must be a positive integer, not 1\.5$",
        ),
        (
            {"format": "mxint8"},
            TypeError,
            "^Format of a cache must be a block format, not 'mxint8'$",
        ),
        ({"rows": 3}, ValueError, "^Rows of a cache word must be a power of two, not 3$"),
        (
            {"context": 62},
            ValueError,
            r"^Positions of a cache must be a multiple of the rows of a word \(4\), not 62$",
        ),
        (
            {"head_size": 48},
            ValueError,
            r"^Head size of a cache must be a multiple of the block size \(32\), not 48$",
        ),
        (
            {"lanes": 3},
            ValueError,
            r"^Lanes of a cache must divide the block size \(32\), not 3$",
        ),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        KeyCache(**parameters(**changes))
