"""The genetic method against the published figures and the optimum; the network baseline."""

import random
import statistics

import numpy as np
import pytest

from mxhw.lut import FUNCTIONS, fit, mean_squared_error
from mxhw.lut.genetic import GeneticSettings, published_settings
from mxhw.lut.metric import table_values
from mxhw.lut.optimal import candidates

FEW = GeneticSettings(population=12, generations=8)

# What the published program makes with its settings and its seed.
PUBLISHED = {
    ("gelu", 8): 9.41e-5,
    ("gelu", 16): 9.14e-5,
    ("hswish", 8): 2.91e-4,
    ("hswish", 16): 1.99e-4,
    ("exp", 8): 1.20e-4,
    ("exp", 16): 8.60e-5,
    ("div", 8): 8.05e-4,
    ("div", 16): 1.32e-3,
    ("rsqrt", 8): 1.73e-3,
    ("rsqrt", 16): 1.05e-3,
}
FAST = [("gelu", 8), ("exp", 16), ("rsqrt", 8), ("div", 16)]


@pytest.mark.parametrize(
    ("name", "entries"),
    [pytest.param(*key, marks=() if key in FAST else pytest.mark.slow) for key in PUBLISHED],
)
def test_published_settings_give_the_published_figure(name, entries):
    table = fit(name, entries=entries, method="genetic")
    assert table.mean_squared_error == pytest.approx(PUBLISHED[name, entries], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figure"), [("gelu", 1.49e-4), ("hswish", 3.43e-4)])
def test_without_rounding_mutation(name, figure):
    table = fit(name, method="genetic", genetic=GeneticSettings(rounding=False))
    assert table.mean_squared_error == pytest.approx(figure, rel=0.01)


def test_published_gelu_table():
    # The published table of 8 entries, as the paper's method makes it.
    table = fit("gelu", method="genetic")
    assert table.slopes == (0, -2, -7, 3, 23, 48, 69, 64)
    assert table.intercepts == (0, -6, -17, -8, 0, -1, -14, 0)
    points = np.array(table.breakpoints) / 2**table.breakpoint_frac
    assert np.round(points * 32).tolist() == [-97, -71, -29, -13, 1, 20, 90]


@pytest.mark.parametrize("name", ["gelu", "exp", "rsqrt"])
def test_quantised_fitness_reaches_the_optimum(name):
    optimum = fit(name).mean_squared_error
    tables = [fit(name, method="genetic", fitness="quantised", seed=seed) for seed in range(3)]
    ratios = [table.mean_squared_error / optimum for table in tables]
    assert min(ratios) >= 1 - 1e-9
    assert statistics.median(ratios) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "entries"), PUBLISHED)
def test_quantised_fitness_over_ten_seeds(name, entries):
    optimum = fit(name, entries=entries).mean_squared_error
    errors = [
        fit(
            name, entries=entries, method="genetic", fitness="quantised", seed=seed
        ).mean_squared_error
        for seed in range(10)
    ]
    assert statistics.median(errors) <= 1.5 * optimum


@pytest.mark.parametrize("fitness", ["published", "quantised"])
def test_seed_makes_the_table(fitness):
    random.seed(5)
    wanted = random.random()
    random.seed(5)
    first = fit("gelu", method="genetic", genetic=FEW, fitness=fitness, seed=3)
    assert random.random() == wanted, "the global generator must be left alone"
    again = fit("gelu", method="genetic", genetic=FEW, fitness=fitness, seed=3)
    other = fit("gelu", method="genetic", genetic=FEW, fitness=fitness, seed=4)
    assert first == again
    assert first != other
    assert first.mean_squared_error == mean_squared_error(first)
    assert first.settings["seed"] == 3
    assert first.settings["generations"] == 8


@pytest.mark.parametrize("mode", ["round", "ceil"])
def test_quantised_fitness_is_the_metric(mode):
    table = fit(
        "tanh", method="genetic", genetic=FEW, fitness="quantised", breakpoint_mode=mode, bits=10
    )
    best = fit("tanh", breakpoint_mode=mode, bits=10)
    assert best.mean_squared_error <= table.mean_squared_error < 10 * best.mean_squared_error


@pytest.mark.parametrize("mode", ["round", "ceil"])
def test_encoded_breakpoints_round_as_the_real_ones(mode):
    found = candidates(FUNCTIONS["gelu"], mode)
    points = np.concatenate(
        [np.arange(-512, 513) / 128, np.random.default_rng(0).uniform(-4, 4, 500)]
    )
    quantise = np.ceil if mode == "ceil" else np.round
    for scale in range(7):
        encoded = np.array(found.encode(points)) / 2.0**found.frac
        assert (quantise(encoded * 2**scale) == quantise(points * 2**scale)).all()


def test_progress_and_published_settings():
    seen = []
    fit("gelu", method="genetic", genetic=FEW, progress=lambda *step: seen.append(step))
    assert seen == [(generation, 8) for generation in range(9)]
    assert published_settings("gelu", 8).rounding_from == 2
    assert published_settings("exp", 16).breakpoint_range == (-6.5, 0.0)
    assert not published_settings("div", 8).rounding
    assert published_settings("silu", 8) == GeneticSettings()


@pytest.mark.parametrize("mode", ["round", "ceil"])
def test_network_baseline(mode):
    seen = []
    table = fit(
        "gelu",
        method="nn-lut",
        steps=800,
        breakpoint_mode=mode,
        progress=lambda *step: seen.append(step),
    )
    assert 1e-5 < table.mean_squared_error < 1e-2
    assert table == fit("gelu", method="nn-lut", steps=800, breakpoint_mode=mode)
    assert seen[0] == (0, 800)


def test_network_as_a_table_is_continuous():
    # Segments of a network meet at their breakpoints, up to the rounding of 14 bits.
    table = fit("sigmoid", method="nn-lut", bits=14, steps=300, breakpoint_mode="ceil")
    for point in table.breakpoints:
        left, right = table_values(table, np.array([point - 1, point]), table.breakpoint_frac)
        assert abs(left - right) < 0.02


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"fitness": "best"}, ValueError, "Fitness must be published or quantised, not 'best'"),
        ({"seed": 1.0}, TypeError, "Seed must be an integer, not 1.0"),
        ({"seed": -1}, ValueError, "Seed must be between 0 and 4294967295, not -1"),
        ({"genetic": 3}, TypeError, "Genetic settings must be GeneticSettings, not 3"),
        (
            {"function": "div", "range": (0.125, 4), "genetic": FEW},
            ValueError,
            "does not fit 8 bits with 5 fraction bits",
        ),
        ({"method": "nn-lut", "steps": 0}, ValueError, "Steps must be at least 1, not 0"),
        ({"method": "nn-lut", "seed": "a"}, TypeError, "Seed must be an integer, not 'a'"),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind) as caught:
        fit(**{"function": "gelu", "method": "genetic", **arguments})
    assert str(caught.value).endswith(message)


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"^Population must be at least 1, not 0$"):
        GeneticSettings(population=0)
    with pytest.raises(TypeError, match=r"^Generations must be an integer, not 1.5$"):
        GeneticSettings(generations=1.5)
    with pytest.raises(ValueError, match=r"^Rounding probability must be a probability, not 2$"):
        GeneticSettings(rounding_probability=2)
