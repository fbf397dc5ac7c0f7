import itertools

import pytest

from mxhw.compiler.timeline import measure_timeline, probe_names
from tests import tiny

TOKENS = [3, 17, 5, 40, 41]


@pytest.fixture(scope="module")
def timeline():
    sim = tiny.simulation()
    sim.reset()
    return measure_timeline(sim, tiny.lowered(), tiny.binding(), TOKENS)


def test_simulators_record_the_streams():
    assert probe_names(tiny.lowered())[-1] == "engine.i_weights"


def test_every_cycle_belongs_to_a_node(timeline):
    assert timeline.context == len(TOKENS)
    spans = timeline.critical
    assert (spans[0].start, spans[-1].end) == (0, timeline.cycles)
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    assert spans[0].unit == "embedding"
    assert spans[-1].unit == "argmax"


def test_words_are_those_of_the_program(timeline):
    binding = tiny.binding()
    words = sum(span.end - span.start for span in timeline.words)
    # With five positions: two groups of keys and one block of values a head and layer.
    fixed = sum(
        step.blocks * step.groups
        for step in binding.program[1:]
        if isinstance(step.blocks, int) and isinstance(step.groups, int)
    )
    heads = binding.heads * binding.shape.layers
    assert words == fixed + heads * (2 + binding.head_size // binding.shape.rows)
    multiplying = [s for s in timeline.critical if s.unit == "engine"]
    assert words == sum(span.end - span.start for span in multiplying)


def test_what_the_engine_waits_for(timeline):
    units = {span.unit for span in timeline.critical}
    assert {"norm", "softmax", "attention", "gated", "residual", "keys", "quantizer"} <= units
    by_node = [span.node for span in timeline.critical if span.unit == "norm"]
    assert by_node == [f"rms_norm{suffix}" for suffix in ("", "_1", "_2", "_3", "_4")]


def test_results_lie_within_the_token(timeline):
    assert {span.node for span in timeline.results} >= {"linear", "softmax", "argmax", "add_5"}
    for span in timeline.results:
        assert 0 <= span.start < span.end <= timeline.cycles
