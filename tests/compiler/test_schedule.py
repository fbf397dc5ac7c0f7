"""The predicted schedule of a token against the simulation."""

import pytest

from mxhw.compiler.elaborate import elaborate
from mxhw.compiler.schedule import schedule_token
from mxhw.dataflow.program import TokenStep
from tests import tiny

POSITIONS = [0, 3, 15, 31, 32, 40]


@pytest.fixture(scope="module")
def measured():
    """Cycles of each position's token, and words of the engine."""
    sim = tiny.simulation()
    sim.reset()
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


@pytest.mark.parametrize("position", POSITIONS)
def test_cycles_of_a_token(measured, position):
    schedule = schedule_token(elaborate(tiny.binding()), position)
    cycles, words = measured[position]
    assert schedule.engine_words == words
    assert schedule.cycles == pytest.approx(cycles, rel=0.05)


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
