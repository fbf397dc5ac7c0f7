"""Compiled kernels of the exact optimum: cost of every segment, and the best chain of segments.

The statistics of the points of a segment are the sums of ``w x**2, w x, w, w x y, w y, w y**2``.
"""

import numpy as np
from numba import njit

__all__ = ["best_chain", "best_line", "chain_costs", "line_cost", "segment_costs"]

_TINY = 1e-13
_NOISE = 1e-15


@njit(cache=True)
def _nearest(values, target):
    """Member of an ascending array that is nearest to a number."""
    low, high = 0, len(values) - 1
    if target <= values[0]:
        return values[0]
    if target >= values[high]:
        return values[high]
    while high - low > 1:
        middle = (low + high) // 2
        if values[middle] <= target:
            low = middle
        else:
            high = middle
    return values[low] if target - values[low] <= values[high] - target else values[high]


@njit(cache=True)
def best_line(outer, inner, cross, outer_y, inner_y, squares, outer_values, inner_values):
    """Least cost over two coefficients, and both.

    The cost is ``outer a**2 + 2 cross a b + inner b**2 - 2 outer_y a - 2 inner_y b + squares``. An
    empty array of values stands for all real numbers. Candidates of ``a`` are taken outwards from
    the real optimum until the cost with a real ``b`` alone exceeds the best one: exact.
    """
    ratio, inner_part = 0.0, 0.0
    if inner > _TINY:
        ratio = cross / inner
        inner_part = inner_y * inner_y / inner
    curvature = outer - cross * ratio
    slope = outer_y - inner_y * ratio
    if curvature > _TINY * outer and curvature > 0:
        centre = slope / curvature
    else:
        curvature, centre = 0.0, 0.0
    floor = squares - inner_part - curvature * centre * centre
    if floor < 0:
        floor = 0.0
    if len(outer_values) == 0:
        a = centre
        target = (inner_y - cross * a) / inner if inner > _TINY else 0.0
        b = target if len(inner_values) == 0 else _nearest(inner_values, target)
        return floor + inner * (b - target) ** 2, a, b
    start = np.searchsorted(outer_values, centre)
    below, above = start - 1, start
    best, best_a, best_b = np.inf, 0.0, 0.0
    while below >= 0 or above < len(outer_values):
        if below < 0 or (
            above < len(outer_values)
            and outer_values[above] - centre < centre - outer_values[below]
        ):
            a = outer_values[above]
            above += 1
        else:
            a = outer_values[below]
            below -= 1
        bound = floor + curvature * (a - centre) ** 2
        if bound + _NOISE >= best:
            break
        target = (inner_y - cross * a) / inner if inner > _TINY else 0.0
        b = target if len(inner_values) == 0 else _nearest(inner_values, target)
        cost = bound + inner * (b - target) ** 2
        if cost < best:
            best, best_a, best_b = cost, a, b
    return best, best_a, best_b


@njit(cache=True)
def line_cost(part, slope, intercept):
    """Cost of points with given statistics on one line."""
    return (
        part[0] * slope * slope
        + 2 * part[1] * slope * intercept
        + part[2] * intercept * intercept
        - 2 * part[3] * slope
        - 2 * part[4] * intercept
        + part[5]
    )


@njit(cache=True)
def segment_costs(sums, slopes, intercepts, limit):
    """Least cost of the points between every two cuts, ``[from, to]``, and how far each row goes.

    A segment's cost cannot fall when it is extended, so that each row ends at the limit. What is
    beyond is not written, which would take longer than the rest; but the first row and the last
    column are infinite there.
    """
    count = len(sums)
    costs = np.empty((count, count))
    costs[0, :] = np.inf
    costs[:, count - 1] = np.inf
    reach = np.full(count, count - 1)
    swap = len(slopes) == 0 and len(intercepts) > 0
    for start in range(count):
        costs[start, start] = 0.0
        for end in range(start + 1, count):
            xx = sums[end, 0] - sums[start, 0]
            x = sums[end, 1] - sums[start, 1]
            w = sums[end, 2] - sums[start, 2]
            xy = sums[end, 3] - sums[start, 3]
            y = sums[end, 4] - sums[start, 4]
            yy = sums[end, 5] - sums[start, 5]
            if w <= _TINY:
                costs[start, end] = 0.0
                continue
            if swap:
                cost, _, _ = best_line(w, xx, x, y, xy, yy, intercepts, slopes)
            else:
                cost, _, _ = best_line(xx, w, x, xy, y, yy, slopes, intercepts)
            if cost > limit:
                reach[start] = end - 1
                break
            costs[start, end] = cost
    return costs, reach


@njit(cache=True)
def best_chain(costs, reach, first, last, entries, limit):
    """Cuts of the cheapest chain of ``entries`` segments from the first cut to the last one.

    ``first[c]`` and ``last[c]`` are the costs of the first segment up to the inner cut ``c``, which
    is ``c + 1`` in ``costs``, and of the last one from it on; ``reach`` is in inner cuts. A chain
    dearer than the limit is not found: its cost is infinite.
    """
    count = len(first)
    total = first.copy()
    choices = np.zeros((entries, count), dtype=np.int64)
    for number in range(1, entries - 1):
        better = np.full(count, np.inf)
        for start in range(count):
            reached = total[start]
            if reached > limit:
                continue
            for end in range(start, reach[start] + 1):
                cost = reached + costs[start + 1, end + 1]
                if cost < better[end]:
                    better[end] = cost
                    choices[number, end] = start
        total = better
    best, cut = np.inf, 0
    for start in range(count):
        cost = total[start] + last[start]
        if cost < best:
            best, cut = cost, start
    cuts = np.zeros(entries - 1, dtype=np.int64)
    for number in range(entries - 2, -1, -1):
        cuts[number] = cut
        cut = choices[number, cut]
    return best, cuts


@njit(cache=True)
def chain_costs(sums, cuts, slopes, intercepts, outer):
    """Least cost of chains with given cuts, one a row; none of the coefficients is real.

    ``outer`` has slope and intercept of the first and the last segment, NaN where they are free.
    """
    totals = np.zeros(len(cuts))
    for row in range(len(cuts)):
        start = 0
        for number in range(cuts.shape[1] + 1):
            end = cuts[row, number] if number < cuts.shape[1] else len(sums) - 1
            part = sums[end] - sums[start]
            start = end
            if part[2] <= _TINY:
                continue
            side = 0 if number == 0 else 1
            if (number == 0 or number == cuts.shape[1]) and not np.isnan(outer[side, 0]):
                totals[row] += line_cost(part, outer[side, 0], outer[side, 1])
            else:
                cost, _, _ = best_line(
                    part[0], part[2], part[1], part[3], part[4], part[5], slopes, intercepts
                )
                totals[row] += cost
    return totals
