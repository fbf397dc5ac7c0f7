"""Mean squared error of a table, as the literature measures it.

For the scale ``S = 2**-j`` the inputs are all integers ``q`` with ``low <= q * S <= high``. A
breakpoint ``p`` becomes the integer ``round(p / S)``, ties to even, or ``ceil(p / S)``; an input
that is not below a breakpoint belongs to the segment on its right. The value ``k * q * S + b`` is
not rounded. The figure is the plain mean over the scales of the mean squared error of each.

Nothing here is shared with the methods that fit tables.
"""

import math
from fractions import Fraction

import numpy as np

from mxhw.lut.functions import Function, as_function
from mxhw.lut.table import PwlTable

__all__ = ["largest_error", "mean_squared_error", "mean_squared_errors", "table_values"]


def _inputs(range: tuple[float, float], scale: int) -> np.ndarray:
    """Integers whose multiples of ``2**-scale`` lie in the range."""
    low, high = (Fraction(end) * 2**scale for end in range)
    return np.arange(math.ceil(low), math.floor(high) + 1)


def quantised_breakpoints(table: PwlTable, scale: int) -> list[int]:
    """The table's breakpoints as integers of one scale."""
    exact = [Fraction(point, 2**table.breakpoint_frac) * 2**scale for point in table.breakpoints]
    if table.breakpoint_mode == "ceil":
        return [math.ceil(point) for point in exact]
    return [round(point) for point in exact]


def table_values(table: PwlTable, codes: np.ndarray, scale: int) -> np.ndarray:
    """Exact values of integer inputs at the scale ``2**-scale``, as float64."""
    codes = np.asarray(codes, dtype=np.int64)
    points = np.asarray(quantised_breakpoints(table, scale), dtype=np.int64)
    segment = (codes[..., None] >= points).sum(-1)
    slopes = np.ldexp(np.asarray(table.slopes, dtype=np.float64), -np.asarray(table.slope_fracs))
    intercepts = np.ldexp(
        np.asarray(table.intercepts, dtype=np.float64), -np.asarray(table.intercept_fracs)
    )
    return slopes[segment] * np.ldexp(codes.astype(np.float64), -scale) + intercepts[segment]


def _errors(table: PwlTable, function: Function, scale: int) -> np.ndarray:
    codes = _inputs(table.range, scale)
    return table_values(table, codes, scale) - function(np.ldexp(codes.astype(float), -scale))


def mean_squared_errors(table: PwlTable, function: Function | None = None) -> list[float]:
    """Mean squared error at each of the table's scales.

    Parameters
    ----------
    table : PwlTable
    function : Function, optional
        What the table stands for; by default the registered one of its name.
    """
    function = function or as_function(table.function)
    return [float(np.mean(_errors(table, function, scale) ** 2)) for scale in table.scales]


def mean_squared_error(table: PwlTable, function: Function | None = None) -> float:
    """Mean over the table's scales of the mean squared error."""
    return float(np.mean(mean_squared_errors(table, function)))


def largest_error(table: PwlTable, function: Function | None = None) -> float:
    """Largest absolute error over the table's scales."""
    function = function or as_function(table.function)
    return max(float(np.abs(_errors(table, function, scale)).max()) for scale in table.scales)
