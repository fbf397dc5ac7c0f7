"""The step that places and routes with one seed after the other until the clock closes."""

from types import SimpleNamespace

import pytest

from mxhw.boards.catalog import Resources
from mxhw.compiler import steps, toolflow
from mxhw.compiler.netlist.timing import ClockTiming
from mxhw.errors import BuildError, StuckError

STUCK = StuckError("Step 'place and route' was ended: after 1000 iterations cells still overlap")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the step with what each seed reaches: a clock in MHz, or an error."""
    (tmp_path / "top.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    seen = []

    def run(*outcomes):
        def place_and_route(plan, folder, *, seed, unit_of, on_progress):
            seen.append(seed)
            outcome = outcomes[seed - 1]
            if isinstance(outcome, Exception):
                raise outcome
            clocks = [
                ClockTiming("oscillator", 300.0, 25.0),
                ClockTiming("design", outcome, 65.0),
            ]
            return SimpleNamespace(
                timing=SimpleNamespace(clocks=clocks),
                resources=Resources(1, 2, 3, 4),
                utilisation={},
                floorplan=None,
            )

        monkeypatch.setattr(toolflow, "place_and_route", place_and_route)
        context = SimpleNamespace(
            folder=tmp_path, clock_hz=65_000_000, board_plan=None, progress=None
        )
        monkeypatch.setattr(steps, "_tool_progress", lambda context: None)
        return steps.place_and_route(context, out), seen  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize(
    ("outcomes", "seeds"),
    [((66.0,), [1]), ((60.0, 65.0), [1, 2]), ((STUCK, 64.0, 70.0), [1, 2, 3])],
)
def test_the_first_seed_that_closes_is_taken(run, outcomes, seeds):
    result, seen = run(*outcomes)
    assert seen == seeds
    assert (result["seed"], result["fmax_mhz"]) == (seeds[-1], outcomes[-1])
    assert result["clock_mhz"] == 65.0
    assert result["resources"]["multipliers"] == 4


def test_a_clock_that_does_not_close(run):
    with pytest.raises(BuildError) as caught:
        run(60.0, STUCK, 62.5)
    assert str(caught.value) == (
        "Timing does not close at 65.00 MHz: 2 placements reach at most 62.50 MHz; build for a "
        "lower clock (--clock 62)"
    )


def test_no_seed_gets_further(run):
    with pytest.raises(StuckError) as caught:
        run(STUCK, STUCK, STUCK)
    assert caught.value is STUCK
