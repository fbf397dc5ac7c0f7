"""GQA-LUT: breakpoints by a genetic algorithm with Rounding Mutation (arXiv 2403.19591).

An individual is a list of breakpoints. The published fitness takes the chord through the function
between neighbouring breakpoints, rounds its slope and intercept, and measures the error over a
grid of step 0.01 with the breakpoints as they are. The quantised fitness is the figure that counts:
breakpoints rounded at every scale, and the best quantised coefficients for them.

The published outer chords end far away, and rounding makes most of them the function's asymptotes.
Fixed tails make all of them that, after the published search and during the quantised one.

Rounding Mutation rounds a breakpoint to ``j`` fraction bits with a small probability for each
``j``, which leads the search to breakpoints that stay good when a scale rounds them.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from deap import algorithms, base, tools

from mxhw.lut import _segments
from mxhw.lut.functions import Function, Line
from mxhw.lut.optimal import (
    Candidates,
    Solution,
    candidates,
    fixed_values,
    lines_fit,
    make_table,
    no_tails,
    set_outer_lines,
)
from mxhw.lut.table import PwlTable

__all__ = ["FITNESSES", "GeneticSettings", "fit_genetic", "published_settings"]

FITNESSES = ("published", "quantised")

_GRID_STEP = 0.01
_Lines = tuple[Line | None, Line | None]

_SEARCH_FRAC = 6
"""Fraction bits of 8-bit coefficients in the published fitness, also where 5 are stored."""


@dataclasses.dataclass(frozen=True)
class GeneticSettings:
    """Settings of the genetic algorithm; the defaults are the published ones.

    Members
    -------
    population, generations, tournament : int
    crossover, mutation : float
        Probability of a two-point crossover for a pair, and of a mutation for an individual.
    rounding : bool
        Whether mutations round. Without it a breakpoint moves or stays.
    rounding_from : int
        Fewest fraction bits that a mutation rounds to.
    rounding_probability : float
        For each number of fraction bits.
    shift_probability, shift : float
        Probability and standard deviation of a move, for each number of fraction bits.
    breakpoint_range : (float, float) or None
        Where breakpoints may lie; None is the function's range.
    """

    population: int = 50
    generations: int = 500
    tournament: int = 3
    crossover: float = 0.7
    mutation: float = 0.2
    rounding: bool = True
    rounding_from: int = 0
    rounding_probability: float = 0.05
    shift_probability: float = 0.1
    shift: float = 0.2
    breakpoint_range: tuple[float, float] | None = None

    def __post_init__(self):
        for name in ("population", "generations", "tournament"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name.capitalize()} must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name.capitalize()} must be at least 1, not {value}")
        for name in ("crossover", "mutation", "rounding_probability", "shift_probability"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                title = name.replace("_", " ").capitalize()
                raise ValueError(f"{title} must be a probability, not {value!r}")


_PUBLISHED = {
    ("gelu", 8): {"rounding_from": 2},
    ("hswish", 16): {"rounding_from": 2},
    ("exp", 16): {"breakpoint_range": (-6.5, 0.0)},
    ("div", None): {"rounding": False, "breakpoint_range": (0.625, 3.875)},
    ("rsqrt", None): {"rounding": False, "breakpoint_range": (0.25, 3.875)},
}


def published_settings(function: str, entries: int) -> GeneticSettings:
    """What the published tables of a function and a number of entries were made with."""
    own = _PUBLISHED.get((function, entries)) or _PUBLISHED.get((function, None)) or {}
    return GeneticSettings(**own)


class _Fitness(base.Fitness):
    weights = (-1.0,)


class _Individual(list):
    """Breakpoints and their fitness."""

    def __init__(self, points: Sequence[float]):
        super().__init__(points)
        self.fitness = _Fitness()


def _clone(individual: _Individual) -> _Individual:
    twin = _Individual(individual)
    twin.fitness.wvalues = individual.fitness.wvalues
    return twin


def _chords(
    function: Function, points: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ends, rounded slopes and rounded intercepts of rows of breakpoints."""
    low, high = function.chord_ends
    rows = len(points)
    ends = np.concatenate([np.full((rows, 1), low), points, np.full((rows, 1), high)], 1)
    values = function(ends)
    wide = np.diff(ends)
    slopes = np.where(wide != 0, np.diff(values) / np.where(wide != 0, wide, 1.0), 0.0)
    intercepts = np.where(wide != 0, -ends[:, :-1] * slopes + values[:, :-1], 0.0)
    return (
        ends,
        np.round(slopes * resolution) / resolution,
        np.round(intercepts * resolution) / resolution,
    )


def _published_fitness(function: Function, resolution: int) -> Callable[[np.ndarray], np.ndarray]:
    """Error of the rounded chords over a fine grid, for rows of ascending breakpoints."""
    x = np.arange(*function.range, _GRID_STEP)
    y = function(x)

    def evaluate(points: np.ndarray) -> np.ndarray:
        ends, slopes, intercepts = _chords(function, points, resolution)
        ends = np.clip(ends, *function.chord_ends)
        segment = np.stack([np.searchsorted(row, x, side="right") for row in ends]) - 1
        segment = np.minimum(segment, slopes.shape[1] - 1)
        line = np.take_along_axis(slopes, segment, 1) * x
        line += np.take_along_axis(intercepts, segment, 1)
        return np.mean((y - line) ** 2, axis=1)

    return evaluate


class _Quantised:
    """Tables with the best quantised coefficients for given breakpoints; else given outer lines."""

    def __init__(self, found: Candidates, values: np.ndarray, lines: _Lines):
        self._found = found
        self._values = values
        self._lines = lines
        self._sums = found.cumulative
        free = (math.nan, math.nan)
        self._outer = np.array([free if line is None else line for line in lines])
        # Where a breakpoint may lie: not beyond an end of the range with an asymptote.
        everywhere = (0, len(found.points) - 1)
        self._low, self._high = (
            wide if line is None else narrow
            for line, wide, narrow in zip(lines, everywhere, found.inside, strict=True)
        )

    def _costs(self, cells: np.ndarray) -> np.ndarray:
        return _segments.chain_costs(self._sums, cells + 1, self._values, self._values, self._outer)

    def cells(self, points: np.ndarray) -> np.ndarray:
        """Numbers of the candidates for real breakpoints."""
        return np.clip(self._found.index(points), self._low, self._high)

    def fitness(self, points: np.ndarray) -> np.ndarray:
        """Least error over the coefficients and all scales, for rows of ascending breakpoints."""
        return self._costs(self.cells(points))

    def refine(self, cells: np.ndarray) -> np.ndarray:
        """Move one breakpoint at a time to the best place between its neighbours."""
        cells = cells.copy()
        best = math.inf
        while True:
            before = best
            for index in range(len(cells)):
                low = cells[index - 1] if index else self._low
                high = cells[index + 1] if index + 1 < len(cells) else self._high
                tries = np.repeat(cells[None], high - low + 1, 0)
                tries[:, index] = np.arange(low, high + 1)
                costs = self._costs(tries)
                best = costs.min()
                cells = tries[costs.argmin()]
            if best >= before:
                return cells

    def coefficients(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slopes and intercepts of the segments."""
        values = self._values
        parts = np.diff(self._sums[[0, *(cells + 1), -1]], axis=0)
        lines = [
            _segments.best_line(xx, w, x, xy, y, yy, values, values)[1:]
            for xx, x, w, xy, y, yy in parts
        ]
        slopes, intercepts = np.array(lines).T
        return set_outer_lines(slopes, intercepts, self._lines)


def _mutation(
    settings: GeneticSettings, ends: tuple[float, float], scales: Sequence[int], seed: int
) -> tuple[Callable[[], float], Callable[[_Individual], tuple[_Individual]]]:
    """What draws a breakpoint, and what mutates an individual: one stream of random numbers."""
    generator = np.random.RandomState(seed)
    low, high = ends
    step, shift_from = settings.rounding_probability, 1 - settings.shift_probability

    def draw() -> float:
        return generator.uniform(low, high)

    def clip(point: float) -> float:
        return min(max(point, low), high)

    def rounding(individual: _Individual) -> tuple[_Individual]:
        for index in range(len(individual)):
            point = individual[index]
            for bits in range(min(scales) + settings.rounding_from, max(scales) + 1):
                chance = generator.random_sample()
                if step * bits <= chance < step * (bits + 1):
                    factor = 2 ** (min(scales) + bits)
                    point = clip(round(point * factor) / factor)
                elif chance >= shift_from:
                    point += generator.normal(0, settings.shift)
            individual[index] = clip(point)
        return (individual,)

    def shifting(individual: _Individual) -> tuple[_Individual]:
        for index in range(len(individual)):
            if generator.random_sample() >= shift_from:
                individual[index] = clip(individual[index] + generator.normal(0, settings.shift))
        return (individual,)

    return draw, rounding if settings.rounding else shifting


def _evolve(
    evaluate: Callable[[np.ndarray], np.ndarray],
    settings: GeneticSettings,
    ends: tuple[float, float],
    function: Function,
    breakpoints: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[_Individual, _Individual]:
    """Best individual of the last generation, and of all."""
    draw, mutate = _mutation(settings, ends, function.scales, seed)
    generation = 0

    def evaluate_all(_: Callable, individuals: Sequence[_Individual]) -> list[tuple[float]]:
        nonlocal generation
        for individual in individuals:
            individual.sort()
        if progress is not None:
            progress(generation, settings.generations)
        generation += 1
        if not individuals:
            return []
        return [(float(cost),) for cost in evaluate(np.array(individuals))]

    toolbox = base.Toolbox()
    toolbox.register("clone", _clone)
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", mutate)
    toolbox.register("select", tools.selTournament, tournsize=settings.tournament)
    toolbox.register("evaluate", evaluate)
    toolbox.register("map", evaluate_all)
    state = random.getstate()
    random.seed(seed)
    try:
        population = [
            _Individual([draw() for _ in range(breakpoints)]) for _ in range(settings.population)
        ]
        fame = tools.HallOfFame(1)
        population, _ = algorithms.eaSimple(
            population,
            toolbox,
            settings.crossover,
            settings.mutation,
            settings.generations,
            halloffame=fame,
            verbose=False,
        )
    finally:
        random.setstate(state)
    return tools.selBest(population, 1)[0], fame[0]


def fit_genetic(
    function: Function,
    *,
    entries: int,
    bits: int,
    breakpoint_mode: str,
    tails: str = "fixed",
    fitness: str = "published",
    seed: int = 42,
    genetic: GeneticSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PwlTable:
    """A table by the genetic algorithm, in the published storage.

    Parameters
    ----------
    function, entries, bits, breakpoint_mode
        See :func:`mxhw.lut.fit`.
    tails : str
        ``fixed``: outer segments are the function's asymptotes; ``free``, as published.
    fitness : str
        ``published``; or ``quantised``, whose best individual is refined at the end: one
        breakpoint after the other moves to its best place until none moves.
    seed : int
        42 makes the published tables.
    genetic : GeneticSettings, optional
        By default the published ones for this function and these entries.
    progress : callable, optional
        Called with the generation and the number of generations.

    Raises
    ------
    TypeError, ValueError
        If a setting is wrong, or the coefficients or asymptotes do not fit the bits.
    """
    if fitness not in FITNESSES:
        raise ValueError(f"Fitness must be published or quantised, not '{fitness}'")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"Seed must be an integer, not {seed!r}")
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"Seed must be between 0 and {(1 << 32) - 1}, not {seed}")
    if genetic is None:
        genetic = published_settings(function.name, entries)
    elif not isinstance(genetic, GeneticSettings):
        raise TypeError(f"Genetic settings must be GeneticSettings, not {genetic!r}")
    found = candidates(function, breakpoint_mode)
    frac = function.coefficient_frac + bits - 8
    resolution = 1 << (_SEARCH_FRAC + bits - 8)
    values = fixed_values(bits, frac)
    lines = function.outer_lines(tails)
    if not lines_fit(lines, values, values):
        raise ValueError(no_tails(function))
    quantised = _Quantised(found, values, lines)
    if fitness == "published":
        evaluate = _published_fitness(function, resolution)
    else:
        evaluate = quantised.fitness
    ends = genetic.breakpoint_range or function.range
    last, ever = _evolve(evaluate, genetic, ends, function, entries - 1, seed, progress)
    points = np.sort(np.array(last if fitness == "published" else ever, dtype=np.float64))
    if fitness == "published":
        _, slopes, intercepts = (row[0] for row in _chords(function, points[None], resolution))
        slopes, intercepts = set_outer_lines(slopes, intercepts, lines)
        encoded = found.confine(found.encode(points), lines)
    else:
        cells = quantised.refine(quantised.cells(points))
        slopes, intercepts = quantised.coefficients(cells)
        encoded = tuple(int(point) for point in found.points[cells])
    solution = Solution(math.nan, encoded, found.frac, tuple(slopes), tuple(intercepts))
    return make_table(
        function,
        solution,
        bits=bits,
        fracs=(frac, frac),
        breakpoint_mode=breakpoint_mode,
        settings={
            "method": "genetic",
            "tails": tails,
            "fitness": fitness,
            "seed": seed,
            **dataclasses.asdict(genetic),
        },
    )
