# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.dataflow.value_cache import ValueCache
from mxhw.formats import BlockFormat, parse_format
from tests.support import STALLS, measure_latency_and_interval, payload_shape, run_stream, unpack

MXINT8 = parse_format("mxint8")


def parameters(**changes):
    return {
        "layers": 2,
        "kv_heads": 1,
        "context": 64,
        "head_size": 32,
        "rows": 4,
        "format": MXINT8,
        "lanes": 4,
        "query_heads_per_kv": 2,
        **changes,
    }


def run(parameters, steps, stalls, seed=0):
    """Run commands on random values and compare every word and scale that is not arbitrary."""
    rng = random.Random(seed)
    format, rows, lanes = (parameters[name] for name in ("format", "rows", "lanes"))
    size = format.block_size
    head_size, parts = parameters["head_size"], parameters.get("parts", 1)
    bits = format.element.bits
    low = -(1 << (bits - 1)) if format.element.is_integer else 0
    codes, scales = {}, {}
    commands, inputs, words, scale_beats = [], [], [], []
    for write, layer, head, position in steps:
        part = 0 if write else rng.randrange(parts)
        command = {"write": write, "layer": layer, "head": head, "position": position}
        commands.append({**command, "part": part})
        if write:
            value = [rng.randrange(low, low + (1 << bits)) for _ in range(head_size)]
            codes[layer, head, position] = value
            own = [rng.randrange(255) for _ in range(head_size // size)]
            scales[layer, head, position] = own
            inputs += [
                {"elements": value[start : start + lanes], "scale": own[start // size]}
                for start in range(0, head_size, lanes)
            ]
            beats = []
            for number in range(len(own)):
                every = [scales[layer, head, index][number] for index in range(position + 1)]
                every += [None] * (-len(every) % lanes)
                beats += [every[start : start + lanes] for start in range(0, len(every), lanes)]
            scale_beats += beats * parameters["query_heads_per_kv"]
            continue
        groups = head_size // rows // parts
        for group in range(part * groups, (part + 1) * groups):
            for block in range(position // size + 1):
                words.append(
                    [
                        [
                            codes[layer, head, index][rows * group + row]
                            if index <= position
                            else None
                            for index in range(size * block, size * block + size)
                        ]
                        for row in range(rows)
                    ]
                )
    cache = ValueCache(**parameters)
    result = run_stream(
        cache,
        {"i_command": commands, "i": inputs},
        {"o": len(words), "o_scales": len(scale_beats)},
        stalls=stalls,
        seed=seed,
    )
    shape = payload_shape(cache.o)
    for raw, wanted in zip(result["o"], words, strict=True):
        for row, elements in zip(unpack(shape, raw), wanted, strict=True):
            assert row["scale"] == 127
            for got, element in zip(row["elements"], elements, strict=True):
                assert element is None or got == element
    for raw, wanted in zip(result["o_scales"], scale_beats, strict=True):
        for got, scale in zip(unpack(payload_shape(cache.o_scales), raw), wanted, strict=True):
            assert scale is None or got == scale


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
    run(parameters(), [step for position in range(6) for step in token(position, 2, 1)], stalls)


@pytest.mark.parametrize("last", [31, 32, 63])
def test_positions(last):
    steps = [(1, 1, 0, position) for position in range(last + 1)]
    steps += [(0, 1, 0, position) for position in (0, 3, 31, last)]
    run(parameters(query_heads_per_kv=1), steps, (0.8, 0.6))


def test_heads():
    steps = [step for position in range(5) for step in token(position, 3, 2, reads=3)]
    format = BlockFormat.mxint(8, 16)
    run(
        parameters(
            layers=3,
            kv_heads=2,
            context=16,
            head_size=16,
            rows=8,
            format=format,
            query_heads_per_kv=3,
        ),
        steps,
        (0.7, 0.6),
    )


@pytest.mark.parametrize(("head_size", "parts"), [(32, 4), (64, 2), (96, 3)])
@pytest.mark.parametrize("stalls", [(1.0, 1.0), (0.7, 0.6)])
def test_parts_and_blocks_of_a_head(head_size, parts, stalls):
    steps = [step for position in range(5) for step in token(position, 2, 2, reads=4)]
    run(parameters(kv_heads=2, head_size=head_size, parts=parts), steps, stalls)


@pytest.mark.parametrize(
    ("format", "rows", "lanes"), [("mxfp4", 1, 1), ("mxfp6", 8, 2), ("mxint5", 32, 32)]
)
def test_formats(format, rows, lanes):
    steps = [step for position in range(9) for step in token(position, 1, 1)]
    run(
        parameters(layers=1, context=32, rows=rows, format=parse_format(format), lanes=lanes),
        steps,
        (0.7, 0.7),
    )


def test_writes_wait_for_scales():
    # Nobody takes scales: as many writes as heads must go through, and reads behind them.
    cache = ValueCache(**parameters(kv_heads=2))
    commands = [{"write": 1, "layer": 0, "head": head, "position": 0} for head in (0, 1)]
    commands += [{"write": 0, "layer": 0, "head": 1, "position": 0}]
    beat = {"elements": [1, 2, 3, 4], "scale": 5}
    run_stream(cache, {"i_command": commands, "i": [beat] * 16}, {"o": 8}, timeout_cycles=200)


def test_timing():
    cache = ValueCache(**parameters())
    command = {"write": 0, "layer": 1, "head": 0, "position": 63}
    timing = measure_latency_and_interval(
        cache, {"i_command": [command] * 4}, "o", 4 * cache.read_cycles(63), groups=4
    )
    assert timing.latency == cache.latency == 3
    assert timing.interval == cache.read_cycles(63) * cache.interval == 16


def test_scale_timing():
    cache = ValueCache(**parameters())
    commands = [{"write": 1, "layer": 0, "head": 0, "position": 63}] * 4
    beats = [{"elements": [1, 2, 3, 4], "scale": 5}] * (4 * cache.write_cycles)
    timing = measure_latency_and_interval(
        cache,
        {"i_command": commands, "i": beats},
        "o_scales",
        4 * cache.scale_cycles(63),
        groups=4,
    )
    assert timing.latency == cache.scale_latency == 4
    # No scales are read in the cycle of a write.
    assert cache.scale_cycles(63) == 32 <= timing.interval <= 33


def test_cost():
    cost = ValueCache(**parameters(layers=5, context=256)).cost()
    assert cost == {
        "multipliers": 0,
        "memory_bits": 0,
        "block_rams": 33,
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"layers": 0},
            ValueError,
            "^Number of layers of a cache must be a positive integer, not 0$",
        ),
        (
            {"parts": 16},
            ValueError,
            "^Parts of a value head must be whole groups of its 32 elements, 4 in a group, not 16$",
        ),
        (
            {"context": 48},
            ValueError,
            r"^Positions of a value cache must be a multiple of the block size \(32\), not 48$",
        ),
        (
            {"rows": 64, "context": 64},
            ValueError,
            r"^Rows of a value word must divide the block size \(32\) and be a multiple of the "
            r"lanes \(4\), not 64$",
        ),
        (
            {"lanes": 8},
            ValueError,
            r"^Rows of a value word must divide the block size \(32\) and be a multiple of the "
            r"lanes \(8\), not 4$",
        ),
        (
            {"query_heads_per_kv": 0},
            ValueError,
            "^Query heads of a value head must be a positive integer, not 0$",
        ),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        ValueCache(**parameters(**changes))
