"""The table of least mean squared error, exactly: dynamic programming over all breakpoints.

A breakpoint matters only by the integers that it becomes at each scale. Between two odd multiples
of ``2**-(j + 1)`` these do not change for the scale ``2**-j``, so that the cells of
``2**-(J + 1)``, with ``J`` the finest scale, are all breakpoints there are (with ``ceil``: the
multiples of ``2**-J``). The cost of a segment is the exact minimum over all quantised slopes and
intercepts, and a chain of segments of least total cost is found by dynamic programming.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from mxhw.lut import _segments
from mxhw.lut.functions import Function, Line
from mxhw.lut.metric import mean_squared_error
from mxhw.lut.table import PwlTable

__all__ = [
    "REAL",
    "STORAGES",
    "Candidates",
    "Solution",
    "candidates",
    "fixed_values",
    "fit_optimal",
    "lines_fit",
    "make_table",
    "no_tails",
    "per_entry_values",
    "set_outer_lines",
    "solve",
]

REAL = np.empty(0)
"""Values of a coefficient that is not quantised."""

STORAGES = ("published", "best", "per-entry")
"""Fraction bits as published, the best one for all slopes and for all intercepts, or each entry's
own."""

_MOST_CANDIDATES = 5120
_MOST_FRAC = 14
_FEW = 64


@dataclasses.dataclass(frozen=True)
class Solution:
    """A chain of segments.

    Members
    -------
    cost : float
        Mean squared error.
    breakpoints : tuple of int
        With ``breakpoint_frac`` fraction bits.
    breakpoint_frac : int
    slopes, intercepts : tuple of float
    """

    cost: float
    breakpoints: tuple[int, ...]
    breakpoint_frac: int
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """All breakpoints that differ, and for each of them the statistics of the points below it.

    Members
    -------
    mode : str
    points : int array
        With ``frac`` fraction bits.
    frac : int
    sums : array ``[points, 6]``
    total : array ``[6]``
    inside : (int, int)
        Numbers of the first and the last candidate that leave every input beyond the range, at
        every scale, to the segments outside.
    """

    mode: str
    points: np.ndarray
    frac: int
    sums: np.ndarray
    total: np.ndarray
    inside: tuple[int, int]

    @property
    def cumulative(self) -> np.ndarray:
        """Statistics of the points below no breakpoint, below each of them, and of all points."""
        return np.concatenate([np.zeros((1, 6)), self.sums, self.total[None]])

    def index(self, breakpoints: np.ndarray) -> np.ndarray:
        """Number of the candidate for each real breakpoint: of two cells, the right one."""
        scaled = np.ldexp(breakpoints, self.frac)
        if self.mode == "ceil":
            index = np.ceil(scaled) - self.points[0]
        else:
            index = np.floor(scaled / 2) - (self.points[0] - 1) // 2
        return np.clip(index, 0, len(self.points) - 1).astype(np.int64)

    def encode(self, breakpoints: np.ndarray) -> tuple[int, ...]:
        """Integers of ``frac`` bits that become the same at every scale as real breakpoints."""
        scaled = np.ldexp(breakpoints, self.frac)
        if self.mode == "ceil":
            return tuple(int(point) for point in np.ceil(scaled))
        cells = np.floor(scaled / 2)
        on_border = scaled / 2 == cells
        return tuple(int(point) for point in np.where(on_border, 2 * cells, 2 * cells + 1))

    def confine(
        self, encoded: Sequence[int], lines: tuple[Line | None, Line | None]
    ) -> tuple[int, ...]:
        """Encoded breakpoints, none of them beyond an end of the range that has an asymptote."""
        low, high = (int(self.points[index]) for index in self.inside)
        low = low if lines[0] is not None else min(encoded)
        high = high if lines[1] is not None else max(encoded)
        return tuple(min(max(point, low), high) for point in encoded)


def fixed_values(bits: int, frac: int) -> np.ndarray:
    """All numbers of ``bits`` bits in two's complement with ``frac`` fraction bits."""
    limit = 1 << (bits - 1)
    return np.ldexp(np.arange(-limit, limit, dtype=np.float64), -frac)


def per_entry_values(bits: int) -> np.ndarray:
    """All numbers of ``bits`` bits with any number of fraction bits up to 14."""
    lowest = min(0, bits - 8)
    grids = [fixed_values(bits, frac) for frac in range(lowest, _MOST_FRAC + 1)]
    return np.unique(np.concatenate(grids))


def candidates(function: Function, mode: str) -> Candidates:
    """Candidates of a function, or a ValueError if there are too many."""
    low, high = function.range
    finest = max(function.scales)
    step = finest if mode == "ceil" else finest + 1
    # Up to a step of the coarsest scale beyond, so that the last segment may hold no input at all.
    beyond = high + 2.0 ** -min(function.scales)
    start, stop = math.floor(low * 2**step), math.ceil(beyond * 2**step)
    count = stop - start
    if count > _MOST_CANDIDATES:
        raise ValueError(
            f"Range {low:g} to {high:g} at the scale 2**-{finest} has {count} breakpoints, "
            f"more than {_MOST_CANDIDATES}; use coarser scales or a shorter range"
        )
    if mode == "ceil":
        points, frac = np.arange(start, stop + 1), finest
    else:
        # The middle of each cell, so that no rounding is a tie.
        points, frac = 2 * np.arange(start, stop) + 1, finest + 2
    sums = np.zeros((len(points), 6))
    total = np.zeros(6)
    least, most = 0, len(points)
    for scale in function.scales:
        codes = np.arange(math.ceil(low * 2**scale), math.floor(high * 2**scale) + 1)
        if not len(codes):
            raise ValueError(f"Range {low:g} to {high:g} must hold a multiple of 2**-{scale}")
        x = np.ldexp(codes.astype(np.float64), -scale)
        y = function(x)
        terms = np.stack([x * x, x, np.ones_like(x), x * y, y, y * y], -1)
        terms /= len(codes) * len(function.scales)
        prefix = np.concatenate([np.zeros((1, 6)), np.cumsum(terms, 0)])
        if mode == "ceil":
            first = -(-points >> (frac - scale))
        else:
            first = (points + (1 << (frac - scale - 1))) >> (frac - scale)
        sums += prefix[np.clip(first - codes[0], 0, len(codes))]
        total += prefix[-1]
        least = max(least, int(np.searchsorted(first, codes[0])))
        most = min(most, int(np.searchsorted(first, codes[-1] + 1, side="right")))
    return Candidates(mode, points, frac, sums, total, (least, most - 1))


class _Solver:
    """Chains of one function, number of entries and kind of breakpoint."""

    def __init__(self, function: Function, entries: int, mode: str, tails: str):
        self._entries = entries
        self._found = candidates(function, mode)
        self._lines = function.outer_lines(tails)
        # The outer segments reach from and to cuts of their own.
        self._sums = self._found.cumulative

    def solve(
        self, slopes: np.ndarray, intercepts: np.ndarray, limit: float = math.inf
    ) -> Solution | None:
        """The best chain, or None if it is dearer than a limit or cannot have the asymptotes."""
        if not lines_fit(self._lines, slopes, intercepts):
            return None
        # A chain over few of the breakpoints is soon found, and most segments are dearer than it.
        limit = min(limit, _loosen(self.estimate(slopes, intercepts)))
        cost, cuts = self._chain(np.arange(len(self._sums)), slopes, intercepts, limit)
        return self._solution(cost, cuts, slopes, intercepts) if cost <= limit else None

    def estimate(
        self, slopes: np.ndarray, intercepts: np.ndarray, limit: float = math.inf
    ) -> float:
        """Cost of the best chain over some of the breakpoints, infinite above a limit."""
        end = len(self._sums) - 1
        kept = np.unique(np.append(np.arange(0, end, max(1, end // _FEW)), end))
        if not lines_fit(self._lines, slopes, intercepts) or len(kept) < self._entries + 1:
            return math.inf
        return self._chain(kept, slopes, intercepts, limit)[0]

    def _chain(
        self, kept: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray, limit: float
    ) -> tuple[float, np.ndarray]:
        """Cost and cuts of the best chain over the kept rows of the statistics."""
        sums = self._sums[kept]
        costs, reach = _segments.segment_costs(sums, slopes, intercepts, limit)
        end = len(sums) - 1
        if self._entries == 1:
            return float(costs[0, end]), np.empty(0, dtype=np.int64)
        first, last = costs[0, 1:end].copy(), costs[1:end, end].copy()
        cuts, (left, right) = kept[1:end] - 1, self._lines
        if left is not None:
            first = _segments.line_cost(sums[1:end].T, *left)
            first[cuts < self._found.inside[0]] = math.inf
        if right is not None:
            last = _segments.line_cost((sums[end] - sums[1:end]).T, *right)
            last[cuts > self._found.inside[1]] = math.inf
        reach = np.minimum(reach[1:end] - 1, end - 2)
        cost, chosen = _segments.best_chain(costs, reach, first, last, self._entries, limit)
        return float(cost), cuts[chosen]

    def _solution(
        self, cost: float, cuts: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray
    ) -> Solution:
        edges = [0, *(int(cut) + 1 for cut in cuts), len(self._sums) - 1]
        lines = []
        for index, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
            fixed = dict(zip((0, self._entries - 1), self._lines, strict=True)).get(index)
            lines.append(fixed or self._line(start, stop, slopes, intercepts))
        points = tuple(int(self._found.points[cut]) for cut in cuts)
        k, b = zip(*lines, strict=True)
        return Solution(cost, points, self._found.frac, k, b)

    def _line(self, start: int, stop: int, slopes: np.ndarray, intercepts: np.ndarray) -> Line:
        xx, x, w, xy, y, yy = self._sums[stop] - self._sums[start]
        if len(slopes) == 0 and len(intercepts):
            _, b, k = _segments.best_line(w, xx, x, y, xy, yy, intercepts, slopes)
        else:
            _, k, b = _segments.best_line(xx, w, x, xy, y, yy, slopes, intercepts)
        return float(k), float(b)


def _loosen(cost: float) -> float:
    """A limit above a cost and the rounding of its sums, far below what tells tables apart."""
    return cost * (1 + 1e-9) + 1e-14


def lines_fit(lines: Sequence[Line | None], slopes: np.ndarray, intercepts: np.ndarray) -> bool:
    """Whether the coefficients of lines are among the values."""

    def holds(values: np.ndarray, number: float) -> bool:
        return len(values) == 0 or bool((values == number).any())

    found = [line for line in lines if line is not None]
    return all(holds(slopes, k) and holds(intercepts, b) for k, b in found)


def solve(
    function: Function,
    entries: int,
    slopes: np.ndarray,
    intercepts: np.ndarray,
    *,
    breakpoint_mode: str = "round",
    tails: str = "fixed",
) -> Solution:
    """The exact optimum over all breakpoints, given the values that coefficients may have.

    Parameters
    ----------
    function : Function
    entries : int
    slopes, intercepts : array
        Ascending values, or :data:`REAL`.
    breakpoint_mode : str
        ``round`` or ``ceil``.
    tails : str
        ``fixed``: the outer segments are the function's asymptotes, where it has them; ``free``.

    Raises
    ------
    ValueError
        If there are too many breakpoints, or an asymptote's coefficients are not among the values.
    """
    found = _Solver(function, entries, breakpoint_mode, tails).solve(slopes, intercepts)
    if found is None:
        raise ValueError(no_tails(function))
    return found


def set_outer_lines(
    slopes: np.ndarray, intercepts: np.ndarray, lines: tuple[Line | None, Line | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients with the outer segments replaced by given lines."""
    slopes, intercepts = slopes.copy(), intercepts.copy()
    for side, line in zip((0, -1), lines, strict=True):
        if line is not None:
            slopes[side], intercepts[side] = line
    return slopes, intercepts


def no_tails(function: Function) -> str:
    """What is wrong where the asymptotes are not among the values."""
    return f"Asymptotes of '{function.name}' do not fit the coefficients; use free tails"


def fit_optimal(
    function: Function,
    *,
    entries: int,
    bits: int,
    breakpoint_mode: str,
    storage: str = "published",
    tails: str = "fixed",
) -> PwlTable:
    """The table of least mean squared error.

    Raises
    ------
    ValueError
        If the storage is unknown, there are too many breakpoints in the range, or the asymptotes
        do not fit the bits.
    """
    if storage not in STORAGES:
        raise ValueError(f"Storage must be one of {', '.join(STORAGES)}, not '{storage}'")
    solver = _Solver(function, entries, breakpoint_mode, tails)
    if storage == "per-entry":
        values = per_entry_values(bits)
        found, fracs = solver.solve(values, values), (None, None)
    elif storage == "best":
        found, fracs = _best_format(solver, bits)
    else:
        frac = function.coefficient_frac + bits - 8
        values = fixed_values(bits, frac)
        found, fracs = solver.solve(values, values), (frac, frac)
    if found is None:
        raise ValueError(no_tails(function))
    return make_table(
        function,
        found,
        bits=bits,
        fracs=fracs,
        breakpoint_mode=breakpoint_mode,
        settings={"method": "optimal", "storage": storage, "tails": tails},
    )


def _best_format(solver: _Solver, bits: int) -> tuple[Solution | None, tuple[int, int]]:
    """The best common exponents of slopes and of intercepts.

    Quantising one coefficient alone bounds every pair that contains it from below, so that few
    pairs have to be solved.
    """
    fracs = range(bits - 8, bits + 5)
    pairs = [(slope, intercept) for slope in fracs for intercept in fracs]
    values = {frac: fixed_values(bits, frac) for frac in fracs}
    limit = math.inf
    for slope, intercept in sorted(pairs, key=lambda pair: sum((f - bits + 2) ** 2 for f in pair)):
        limit = min(limit, solver.estimate(values[slope], values[intercept], limit))
    limit = _loosen(limit)

    def cost(found: Solution | None) -> float:
        return math.inf if found is None else found.cost

    slope_bound = {frac: cost(solver.solve(values[frac], REAL, limit)) for frac in fracs}
    intercept_bound = {frac: cost(solver.solve(REAL, values[frac], limit)) for frac in fracs}

    def bound(pair: tuple[int, int]) -> float:
        return max(slope_bound[pair[0]], intercept_bound[pair[1]])

    best: Solution | None = None
    best_pair = pairs[0]
    for pair in sorted(pairs, key=bound):
        if bound(pair) >= min(limit, cost(best)):
            break
        found = solver.solve(values[pair[0]], values[pair[1]], limit)
        if found is not None and found.cost < cost(best):
            best, best_pair, limit = found, pair, _loosen(found.cost)
    return best, best_pair


def make_table(
    function: Function,
    found: Solution,
    *,
    bits: int,
    fracs: tuple[int | None, int | None],
    breakpoint_mode: str,
    settings: dict,
) -> PwlTable:
    """A solution as integers, rounded to nearest; a frac of None gives each entry its own.

    Raises
    ------
    ValueError
        If a coefficient does not fit.
    """
    slopes, slope_frac = _integers(found.slopes, fracs[0], bits, "slope")
    intercepts, intercept_frac = _integers(found.intercepts, fracs[1], bits, "intercept")
    table = PwlTable(
        function=function.name,
        range=function.range,
        scales=function.scales,
        breakpoint_mode=breakpoint_mode,
        breakpoints=found.breakpoints,
        breakpoint_frac=found.breakpoint_frac,
        slopes=slopes,
        slope_frac=slope_frac,
        intercepts=intercepts,
        intercept_frac=intercept_frac,
        bits=bits,
        mean_squared_error=0.0,
        settings=settings,
    )
    return dataclasses.replace(table, mean_squared_error=mean_squared_error(table, function))


def _integers(
    values: Sequence[float], frac: int | None, bits: int, name: str
) -> tuple[tuple[int, ...], int | tuple[int, ...]]:
    if frac is not None:
        integers = tuple(round(math.ldexp(value, frac)) for value in values)
        for value, integer in zip(values, integers, strict=True):
            if not -(1 << (bits - 1)) <= integer < 1 << (bits - 1):
                raise ValueError(
                    f"A {name} of {float(value):g} does not fit {bits} bits with {frac} fraction "
                    f"bits"
                )
        return integers, frac
    fracs = tuple(_smallest_frac(value, bits) for value in values)
    pairs = zip(values, fracs, strict=True)
    return tuple(int(math.ldexp(value, own)) for value, own in pairs), fracs


@functools.cache
def _smallest_frac(value: float, bits: int) -> int:
    """Fewest fraction bits, at least 0 where that fits, that hold a number exactly."""
    frac = 0
    while not math.ldexp(value, frac).is_integer():
        frac += 1
    while not -(1 << (bits - 1)) <= math.ldexp(value, frac) < 1 << (bits - 1):
        frac -= 1
    return frac
