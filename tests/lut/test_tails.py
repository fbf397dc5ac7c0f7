"""Beyond its range a table of any method is the function's asymptote, exactly."""

import math

import numpy as np
import pytest

from mxhw.lut import FUNCTIONS, Function, fit
from mxhw.lut.genetic import GeneticSettings
from mxhw.lut.metric import table_values

FEW = GeneticSettings(population=8, generations=5)
METHODS = {
    "optimal": {"method": "optimal"},
    "best": {"method": "optimal", "storage": "best"},
    "per-entry": {"method": "optimal", "storage": "per-entry"},
    "genetic": {"method": "genetic", "genetic": FEW},
    "quantised": {"method": "genetic", "genetic": FEW, "fitness": "quantised"},
    "nn-lut": {"method": "nn-lut", "steps": 20},
}
WITH_TAILS = [name for name, function in FUNCTIONS.items() if function.left or function.right]


def wrong_tails(table, function):
    """Scales and sides at which an input beyond the range does not have the asymptote's value."""
    wrong = []
    for scale in table.scales:
        low, high = (end * 2**scale for end in function.range)
        reach = np.unique(np.concatenate([np.arange(300), 2 ** np.arange(20)]))
        sides = (
            ("left", math.ceil(low) - 1 - reach, function.left),
            ("right", math.floor(high) + 1 + reach, function.right),
        )
        for side, codes, line in sides:
            if line is None:
                continue
            got = table_values(table, codes, scale)
            if (got != line[0] * np.ldexp(codes.astype(float), -scale) + line[1]).any():
                wrong.append((scale, side))
    return wrong


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WITH_TAILS)
def test_every_input_beyond_the_range(name, method):
    for entries in (8, 16, 32):
        for mode in ("round", "ceil"):
            table = fit(
                name, entries=entries, scales=(0, 2, 3), breakpoint_mode=mode, **METHODS[method]
            )
            assert table.entries == entries
            assert wrong_tails(table, FUNCTIONS[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WITH_TAILS)
def test_every_scale_with_default_settings(name, method):
    short = ("genetic", "steps")
    settings = {key: value for key, value in METHODS[method].items() if key not in short}
    for entries in (8, 16, 32):
        assert wrong_tails(fit(name, entries=entries, **settings), FUNCTIONS[name]) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["round", "ceil"])
def test_asymptotes_that_the_range_does_not_need(method, mode):
    # Inside the range one line is exact: the outer segments serve nothing but what is beyond.
    line = Function(
        "line",
        lambda x: 0.5 * x,
        (-1.7, 1.3),
        scales=(0, 1, 3),
        left=(0.0, 1.0),
        right=(-1.0, 0.25),
        chord_ends=(-1.7, 1.3),
    )
    table = fit(line, entries=4, breakpoint_mode=mode, **METHODS[method])
    assert wrong_tails(table, line) == []
    # A breakpoint that is rounded cannot lie between the range and what is beyond at every scale.
    if mode == "ceil" and METHODS[method]["method"] == "optimal":
        assert table.mean_squared_error == 0


@pytest.mark.parametrize("method", METHODS)
def test_free_tails_are_not_held(method):
    table = fit("tanh", tails="free", scales=(0, 2, 3), bits=10, **METHODS[method])
    assert wrong_tails(table, FUNCTIONS["tanh"])
    assert table.settings["tails"] == "free"


@pytest.mark.parametrize("method", METHODS)
def test_asymptotes_that_do_not_fit(method):
    big = Function("big", np.exp, (-4.0, 0.0), left=(0.0, 20000.0))
    message = r"^Asymptotes of 'big' do not fit the coefficients; use free tails$"
    with pytest.raises(ValueError, match=message):
        fit(big, **METHODS[method])


def test_network_stays_one_curve_when_it_is_held():
    # The training knows the asymptotes: segments meet at their breakpoints up to rounding.
    table = fit("tanh", method="nn-lut", bits=14, steps=300, breakpoint_mode="ceil")
    assert wrong_tails(table, FUNCTIONS["tanh"]) == []
    inside = [p for p in table.breakpoints if abs(p) < 4 << table.breakpoint_frac]
    for point in inside:
        left, right = table_values(table, np.array([point - 1, point]), table.breakpoint_frac)
        assert abs(left - right) < 0.03
