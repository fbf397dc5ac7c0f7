"""The exact optimum against brute force, published limits and an independent evaluator."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxhw.lut import FUNCTIONS, Function, PwlTable, fit, mean_squared_error
from mxhw.lut.functions import as_function
from mxhw.lut.optimal import REAL, fixed_values, per_entry_values, solve


def brute_force(function, entries, values, mode):
    """Least error over every breakpoint of a fine grid and every pair of coefficients."""
    low, high = function.range
    points = []
    for scale in function.scales:
        codes = np.arange(math.ceil(low * 2**scale), math.floor(high * 2**scale) + 1)
        points.append((scale, codes, function(codes / 2**scale)))
    fine = 2 ** (max(function.scales) + 3)
    grid = [Fraction(n, fine) for n in range(math.floor(low * fine), math.ceil(high * fine) + fine)]
    quantise = math.ceil if mode == "ceil" else round
    outcomes = {tuple(quantise(p * 2**scale) for scale, _, _ in points) for p in grid}
    cuts = [(-(10**9),) * len(points), *sorted(outcomes), (10**9,) * len(points)]
    cache = {}

    def cost(start, end):
        if (start, end) not in cache:
            total = np.zeros((len(values), len(values)))
            for (scale, codes, y), first, last in zip(points, start, end, strict=True):
                inside = (codes >= first) & (codes < last)
                x = codes[inside] / 2**scale
                line = values[:, None, None] * x + values[None, :, None]
                error = ((line - y[inside]) ** 2).sum(-1)
                total += error / len(codes) / len(points)
            cache[start, end] = total.min()
        return cache[start, end]

    best = math.inf
    for inner in itertools.combinations_with_replacement(cuts, entries - 1):
        chain = [cuts[0], *inner, cuts[-1]]
        best = min(best, sum(cost(a, b) for a, b in itertools.pairwise(chain)))
    return best


@pytest.mark.parametrize("mode", ["round", "ceil"])
@pytest.mark.parametrize("entries", [2, 3])
@given(
    values=st.lists(st.integers(-8, 8), min_size=9, max_size=9),
    low=st.integers(-2, 1),
    scales=st.sampled_from([(0,), (1,), (0, 1), (0, 2)]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_optimum_equals_brute_force(mode, entries, values, low, scales):
    table = np.array(values) / 4

    def bent(x):
        return np.interp(x, low + np.arange(9) / 4, table)

    function = as_function(bent, (low, low + 2), scales)
    grid = fixed_values(4, 2)
    found = solve(function, entries, grid, grid, breakpoint_mode=mode)
    assert found.cost == pytest.approx(brute_force(function, entries, grid, mode), abs=1e-12)
    result = fit(
        bent,
        entries=entries,
        bits=4,
        range=(low, low + 2),
        scales=scales,
        breakpoint_mode=mode,
        storage="published",
    )
    assert result.mean_squared_error == pytest.approx(found.cost, abs=1e-12)


# Measured apart from this code: real, published, best and own exponents; then fixed tails.
LIMITS = {
    ("gelu", 8): (1.49e-5, 3.36e-5, 2.07e-5, 1.83e-5, 2.83e-5, 3.02e-5),
    ("gelu", 16): (1.56e-6, 4.76e-6, 3.62e-6, 2.51e-6, 1.89e-6, 3.62e-6),
    ("hswish", 8): (9.15e-5, 1.05e-4, 1.05e-4, 9.26e-5, 9.16e-5, 1.05e-4),
    ("hswish", 16): (4.87e-6, 1.16e-5, 1.16e-5, 5.53e-6, 4.87e-6, 1.16e-5),
    ("exp", 8): (3.61e-6, 1.57e-5, 8.18e-6, 3.88e-6, 5.59e-6, 8.18e-6),
    ("exp", 16): (2.90e-7, 8.77e-6, 2.99e-6, 4.61e-7, 3.78e-7, 2.99e-6),
    ("div", 8): (1.09e-5, 3.52e-5, 3.52e-5, 1.30e-5, 1.09e-5, 3.52e-5),
    ("div", 16): (5.17e-7, 9.76e-6, 4.61e-6, 9.69e-7, 5.17e-7, 4.61e-6),
    ("rsqrt", 8): (7.36e-6, 5.62e-5, 4.88e-5, 8.86e-6, 7.36e-6, 4.88e-5),
    ("rsqrt", 16): (5.76e-7, 4.36e-5, 7.08e-6, 1.13e-6, 5.76e-7, 7.08e-6),
}


def at_most(value, limit):
    """Equal to a limit of three digits, or below it."""
    return value <= limit * 1.006


@pytest.mark.parametrize(("name", "entries"), LIMITS)
def test_optima_of_every_storage(name, entries):
    function = FUNCTIONS[name]
    real, published, _, own, real_tails, _ = LIMITS[name, entries]
    assert at_most(solve(function, entries, REAL, REAL, tails="free").cost, real)
    assert at_most(solve(function, entries, REAL, REAL).cost, real_tails)
    for storage, limit in (("published", published), ("per-entry", own)):
        table = fit(name, entries=entries, storage=storage, tails="free")
        assert at_most(table.mean_squared_error, limit)
        assert table.mean_squared_error == mean_squared_error(table)
        assert table.mean_squared_error >= real * 0.994


FAST = [("gelu", 8), ("div", 16), ("rsqrt", 16)]


@pytest.mark.parametrize(
    ("name", "entries"),
    [pytest.param(*key, marks=() if key in FAST else pytest.mark.slow) for key in LIMITS],
)
def test_best_common_exponents(name, entries):
    _, _, free, _, _, fixed = LIMITS[name, entries]
    for tails, limit in (("free", free), ("fixed", fixed)):
        table = fit(name, entries=entries, storage="best", tails=tails)
        assert at_most(table.mean_squared_error, limit)


@pytest.mark.parametrize(
    ("name", "entries", "target"),
    [
        ("gelu", 8, 3.5e-5),
        ("gelu", 16, 5.0e-6),
        ("hswish", 8, 1.10e-4),
        ("hswish", 16, 1.21e-5),
        ("exp", 8, 1.65e-5),
        ("exp", 16, 9.2e-6),
        ("div", 8, 3.7e-5),
        ("div", 16, 1.03e-5),
        ("rsqrt", 8, 5.9e-5),
        ("rsqrt", 16, 4.6e-5),
    ],
)
def test_published_storage_with_exact_tails(name, entries, target):
    table = fit(name, entries=entries)
    assert table.mean_squared_error <= target
    assert table.entries == entries
    frac = FUNCTIONS[name].coefficient_frac
    assert (table.slope_frac, table.intercept_frac, table.bits) == (frac, frac, 8)


@pytest.mark.parametrize(
    ("name", "entries", "target"),
    [("gelu", 8, 1.2e-5), ("gelu", 16, 8.5e-7), ("exp", 8, 3.0e-6), ("exp", 16, 2.3e-7)],
)
def test_own_exponents_and_exact_compare(name, entries, target):
    table = fit(name, entries=entries, storage="per-entry", breakpoint_mode="ceil", tails="free")
    assert table.mean_squared_error <= target


def test_wider_coefficients_and_more_entries():
    errors = [
        fit("tanh", entries=entries, bits=bits).mean_squared_error
        for entries, bits in ((8, 8), (8, 10), (16, 10), (32, 14))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] / errors[-1] > 100


def test_any_callable():
    def bump(x):
        return 1 / (1 + x**2)

    table = fit(bump, range=(-3, 3), scales=(3, 4), entries=16)
    assert isinstance(table, PwlTable)
    assert table.function == "bump"
    assert table.mean_squared_error < 1e-4
    registered = Function("bump", bump, (-3.0, 3.0), scales=(3, 4), chord_ends=(-3.0, 3.0))
    assert fit(registered, entries=16) == table


def test_per_entry_values_are_all_exponents():
    values = per_entry_values(8)
    assert {127.0, 63.5, -1.0, 2.0**-14, -(2.0**-7)} <= set(values)
    assert 127.25 not in values


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"function": "gulu"},
            ValueError,
            "Function must be one of gelu, hswish, exp, div, rsqrt, silu, sigmoid, tanh, softplus, "
            "erf, sin, cos, exp2, log2, or a callable, not 'gulu'",
        ),
        ({"function": 3}, TypeError, "Function must be a name or a callable, not 3"),
        ({"function": np.exp}, ValueError, "Range of a callable must be given"),
        (
            {"function": np.exp, "range": (1, "a")},
            TypeError,
            "Range of a function must be two numbers, not (1, 'a')",
        ),
        (
            {"function": np.exp, "range": (1, math.inf)},
            ValueError,
            "Range of a function must be finite, not 1 to inf",
        ),
        (
            {"function": np.exp, "range": (1, 1)},
            ValueError,
            "Range of a function must ascend, not 1 to 1",
        ),
        (
            {"function": "div", "range": (0, 4)},
            ValueError,
            "Function 'div' must be finite over its range, but is inf at 0",
        ),
        (
            {"function": lambda x: 1.0, "range": (0, 4)},
            ValueError,
            "Function '<lambda>' must give one value an input, not shape () for (1025,)",
        ),
        ({"scales": (0.5,)}, TypeError, "Scale exponent must be an integer, not 0.5"),
        ({"scales": (-1,)}, ValueError, "Scale exponent must be between 0 and 15, not -1"),
        (
            {"scales": ()},
            ValueError,
            "Scale exponents must be different and at least one, not []",
        ),
        ({"entries": 1}, ValueError, "Entries of a fit must be between 2 and 64, not 1"),
        ({"entries": 8.0}, TypeError, "Entries of a fit must be an integer, not 8.0"),
        ({"bits": 3}, ValueError, "Bits of a fit must be between 4 and 16, not 3"),
        (
            {"method": "magic"},
            ValueError,
            "Method must be one of optimal, genetic, nn-lut, not 'magic'",
        ),
        ({"breakpoint_mode": "up"}, ValueError, "Breakpoint mode must be round or ceil, not 'up'"),
        ({"tails": "cut"}, ValueError, "Tails must be fixed or free, not 'cut'"),
        (
            {"storage": "x"},
            ValueError,
            "Storage must be one of published, best, per-entry, not 'x'",
        ),
        (
            {"speed": 1},
            TypeError,
            "Setting of method 'optimal' must be one of storage, tails, not 'speed'",
        ),
        (
            {"scales": (12,)},
            ValueError,
            "Range -4 to 4 at the scale 2**-12 has 65538 breakpoints, more than 5120; "
            "use coarser scales or a shorter range",
        ),
        (
            {"range": (0.25, 0.5), "scales": (0,)},
            ValueError,
            "Range 0.25 to 0.5 must hold a multiple of 2**-0",
        ),
        (
            {"function": Function("big", np.exp, (-4.0, 0.0), left=(0.0, 200.0))},
            ValueError,
            "Asymptotes of 'big' do not fit the coefficients; use free tails",
        ),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind) as caught:
        fit(**{"function": "gelu", **arguments})
    assert str(caught.value) == message
