# amaranth: UnusedElaboratable=no
"""The sequencer: the commands of each step, in program order, for each token."""

import pytest

from mxhw.dataflow.engine import EngineCommand
from mxhw.dataflow.program import Destination, Operand, Position, Shape, Step, Weights
from mxhw.dataflow.sequencer import Sequencer
from tests.support import check_stream

SHAPE = Shape(
    rows=4,
    block_size=32,
    context=128,
    layers=2,
    kv_heads=2,
    vocabulary=64,
    words=100,
    value_groups=8,
    max_blocks=4,
    max_groups=32,
)
ENGINE = EngineCommand(slots=4, max_blocks=4, groups_bits=6)
MEMORY, KEYS, VALUES = Weights.MEMORY, Weights.KEYS, Weights.VALUES

PROGRAM = [
    Step("embed", Operand.KEEP, MEMORY, 7, 2, 1, Destination.EMBEDDING),
    Step("query", Operand.NORM, MEMORY, 20, 2, 8, Destination.ROPE, layer=1, start_layer=True),
    Step("key", Operand.KEEP, MEMORY, 36, 2, 8, Destination.ROPE, layer=1, head=1, store=True),
    Step("value", Operand.KEEP, MEMORY, 52, 2, 8, Destination.VALUES, layer=1, head=1, store=True),
    Step("scores", Operand.QUERY, KEYS, 0, 1, Position.GROUPS, Destination.SOFTMAX, layer=1),
    Step(
        "sums", Operand.PROBABILITIES, VALUES, 0, Position.BLOCKS, 8, Destination.ATTENTION, layer=1
    ),
    Step("output", Operand.ATTENTION, MEMORY, 68, 1, 16, Destination.RESIDUAL),
    Step("head", Operand.NORM, MEMORY, 7, 2, 16, Destination.LOGITS, sampled_only=True),
]


def cache(position: int, *, write: int, head: int) -> dict[str, int]:
    return {"write": write, "layer": 1, "head": head, "position": position}


def commands(token: dict[str, int]) -> dict[str, list]:
    """Commands of the program above for one token."""
    position = token["position"]
    blocks, groups = position // 32 + 1, position // 4 + 1
    head = token["sample"] or token["logits"]
    table = 7 + token["token"] // 4 * 2
    runs = [(table, 2), (20, 16), (36, 16), (52, 16), (68, 16)] + [(7, 32)] * head

    def load(count):
        return {"load": 1, "slot": 0, "blocks": count, "groups": None}

    def product(count, groups):
        return {"load": 0, "slot": 0, "blocks": count, "groups": groups}

    def route(*pairs):
        return [{"port": int(port), "count": count} for port, count in pairs]

    engine = [
        {**load(2), "groups": 8},
        product(2, 8),
        product(2, 8),
        product(2, 8),
        {**load(1), "groups": groups},
        product(1, groups),
        {**load(blocks), "groups": 8},
        product(blocks, 8),
        {**load(1), "groups": 16},
        product(1, 16),
        {**load(2), "groups": 16},
    ] + [product(2, 16)] * head
    return {
        "o_memory": [{"base": base, "count": count} for base, count in runs],
        "o_memory_route": route(*((index == 0, run[1]) for index, run in enumerate(runs))),
        "o_weights": route(
            (MEMORY, 16),
            (MEMORY, 16),
            (MEMORY, 16),
            (KEYS, groups),
            (VALUES, 8 * blocks),
            (MEMORY, 16),
            *[(MEMORY, 32)] * head,
        ),
        "o_operand": route(
            (Operand.NORM, 16),
            (Operand.QUERY, 8),
            (Operand.PROBABILITIES, 8 * blocks),
            (Operand.ATTENTION, 8),
            (Operand.NORM, 16),
        ),
        "o_engine": engine,
        "o_result": route((0, 8), (0, 8), (1, 8), (2, groups), (0, 8), (0, 16), *[(2, 16)] * head),
        "o_wide": route(
            (Destination.ROPE, 8),
            (Destination.ROPE, 8),
            (Destination.VALUES, 8),
            (Destination.ATTENTION, 8),
            (Destination.RESIDUAL, 16),
        ),
        "o_fixed": route((0, groups), *[(1, 16)] * head),
        "o_key": [cache(position, write=1, head=1), cache(position, write=0, head=0)],
        "o_value": [cache(position, write=1, head=1), cache(position, write=0, head=0)],
        "o_rope": [position],
        "o_softmax": [position],
        "o_embedding": [{"row": token["token"] % 4}],
        "o_logits": [token["logits"]] * head,
    }


def test_commands_of_every_step_under_stalls():
    tokens = [
        {"token": 0, "position": 0, "sample": 1, "logits": 0},
        {"token": 63, "position": 31, "sample": 0, "logits": 0},
        {"token": 6, "position": 32, "sample": 0, "logits": 1},
        {"token": 9, "position": 127, "sample": 1, "logits": 1},
    ]
    expected: dict[str, list] = {}
    for token in tokens:
        for name, rows in commands(token).items():
            expected.setdefault(name, []).extend(rows)
    unit = Sequencer(program=PROGRAM, shape=SHAPE, engine_command=ENGINE)
    check_stream(unit, {"i_step": tokens}, expected)


def test_a_program_has_steps():
    with pytest.raises(ValueError, match=r"^Program of a sequencer must have at least one step"):
        Sequencer(program=[], shape=SHAPE, engine_command=ENGINE)
