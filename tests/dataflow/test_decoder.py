"""The folded decoder on tiny models: every node equals golden, under stalls and in any mix."""

import dataclasses
import random

import pytest

from mxhw.compiler.binder import bind
from mxhw.compiler.compare import DecodeStep, compare_decoder, compare_engine
from mxhw.compiler.elaborate import decoder_parameters, elaborate
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import parse_format
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import LlamaDecode
from tests import tiny


def text(length: int, seed: int, vocabulary: int = tiny.CONFIG.vocabulary_size) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocabulary) for _ in range(length)]


def compare(steps, **options):
    return compare_engine(tiny.simulation(), tiny.binding().shape, tiny.lowered(), steps, **options)


def test_every_node_equals_golden_over_more_than_a_block_of_positions():
    result = compare(text(36, 1))
    assert result.difference is None
    # Of each layer: two norms, seven linears, two rotations, scores, softmax, weighted values,
    # gate, two sums; and the embedding, the last norm, logits and arg-max.
    assert result.nodes == 2 * 17 + 4


@pytest.mark.parametrize("stalls", [(0.02, 1.0), (1.0, 0.1), (0.05, 0.3)])
def test_mixed_requests_under_stalls(stalls):
    rng = random.Random(7)
    first = [
        DecodeStep(token, position, sample=rng.random() < 0.5, logits=rng.random() < 0.4)
        for position, token in enumerate(text(9, 2))
    ]
    # A new text begins at position 0 and sees nothing of the one before.
    second = [
        DecodeStep(token, position, sample=position > 1, logits=position == 3)
        for position, token in enumerate(text(5, 3))
    ]
    steps = first + second
    assert {(step.sample, step.logits) for step in steps} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }
    assert compare(steps, stalls=stalls, seed=5).difference is None


def test_a_prompt_without_an_answer():
    steps = [DecodeStep(token, position, sample=False) for position, token in enumerate(text(4, 4))]
    result = compare(steps)
    assert result.difference is None
    assert result.nodes == 2 * 17 + 2


def test_timings_need_no_elaboration():
    decoder = elaborate(tiny.binding())
    assert decoder.unit_timings() == decoder.unit_timings()
    assert decoder.parameters.shape == decoder_parameters(tiny.binding()).shape


BASE = {"vocabulary_size": 32, "dim": 32, "hidden": 32, "layers": 1, "kv_heads": 1, "head_size": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "weights", "rows", "lanes", "length"),
    [
        pytest.param(
            {"heads": 4, "context": 64}, "mxint8", 4, (4, 4, 2), 64, id="4 heads, full context"
        ),
        pytest.param(
            {"heads": 4, "context": 64, "tied": False}, "mxfp4", 2, (2, 2, 1), 42, id="2 rows"
        ),
        pytest.param(
            {"heads": 1, "context": 32, "layers": 2}, "mxint4", 4, (1, 1, 4), 6, id="mxint4"
        ),
        pytest.param(
            {"heads": 2, "context": 32, "hidden": 64},
            "mxfp6_e3m2",
            4,
            (2, 4, 1),
            6,
            id="mxfp6_e3m2",
        ),
        pytest.param(
            {"heads": 2, "context": 32, "dim": 64}, "mxint8", 8, (8, 8, 8), 12, id="8 rows"
        ),
    ],
)
def test_other_shapes_and_formats(changes, weights, rows, lanes, length):
    """``lanes`` are those of the softmax, the attention output and the gated SiLU."""
    config = LlamaConfig(**{**BASE, **changes})
    options = LoweringOptions(weight_format=parse_format(weights))
    graph = lower(LlamaDecode(tiny.llama(config, gain=2.0)), options)
    names = ("softmax_lanes", "attention_lanes", "gated_lanes")
    binding = bind(graph, options, rows=rows)
    decoder = elaborate(dataclasses.replace(binding, **dict(zip(names, lanes, strict=True))))
    with tiny.quick_build():
        result = compare_decoder(decoder, graph, text(length, 6, config.vocabulary_size))
    assert result.difference is None
    assert result.nodes == config.layers * 17 + 4
