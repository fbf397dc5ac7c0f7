"""The predicted schedule of a token against the simulation."""

import dataclasses

import pytest

from mxhw.compiler.elaborate import elaborate
from mxhw.compiler.schedule import schedule_token
from mxhw.cosim.engine import make_engine
from mxhw.dataflow.program import TokenStep
from tests import tiny

POSITIONS = [0, 3, 15, 31, 32, 40]


def measure(sim):
    """Cycles of each position's token, and words of the engine."""
    shape = tiny.binding().shape
    layout = TokenStep(vocabulary=shape.vocabulary, context=shape.context)
    result = []
    for position in range(max(POSITIONS) + 1):
        step = {"token": position % 7, "position": position, "sample": 1, "logits": 0}
        start, words = sim.cycles, sim.transfers("engine.i_weights")
        sim.put("i_step", [layout.const(step).as_bits()])
        sim.get("o_token", 1)
        result.append((sim.cycles - start, sim.transfers("engine.i_weights") - words))
    return result


@pytest.fixture(scope="module")
def measured():
    sim = tiny.simulation()
    sim.reset()
    return measure(sim)


@pytest.mark.parametrize("position", POSITIONS)
def test_cycles_of_a_token(measured, position):
    schedule = schedule_token(elaborate(tiny.binding()), position)
    cycles, words = measured[position]
    assert schedule.engine_words == words
    assert schedule.cycles == pytest.approx(cycles, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [(4, 4, 4), (2, 4, 2), (1, 1, 1)])
def test_cycles_with_other_widths_of_units(lanes):
    names = ("softmax_lanes", "attention_lanes", "gated_lanes")
    binding = dataclasses.replace(tiny.binding(), **dict(zip(names, lanes, strict=True)))
    with (
        tiny.quick_build(),
        make_engine(
            elaborate(binding), "cxxrtl", probes=["engine.i_weights"], inner_signals=False
        ) as sim,
    ):
        sim.probe("engine.i_weights")
        measured = measure(sim)
    for position in POSITIONS:
        schedule = schedule_token(elaborate(binding), position)
        cycles, words = measured[position]
        assert schedule.engine_words == words
        assert schedule.cycles == pytest.approx(cycles, rel=0.02)


def test_steps_follow_each_other():
    schedule = schedule_token(elaborate(tiny.binding()), 20)
    program = tiny.binding().program
    # The embedding is no product.
    assert [step.name for step in schedule.steps] == [step.name for step in program[1:]]
    for before, after in zip(schedule.steps, schedule.steps[1:], strict=False):
        assert before.start < before.end <= after.start
    assert schedule.steps[-1].end < schedule.cycles


def test_later_tokens_take_longer():
    decoder = elaborate(tiny.binding())
    cycles = [schedule_token(decoder, position).cycles for position in (0, 20, 63)]
    assert cycles == sorted(set(cycles))
