"""Multi-range input scaling: reciprocal and inverse root beyond their table's interval.

The table of ``div`` covers a factor of 8, that of ``rsqrt`` a factor of 16. An input beyond is
multiplied by a power of two that brings it into the interval, and the output by the same power
(``div``) or by its root (``rsqrt``). For an integer code nothing moves: the same code is read at
another scale exponent, so that no bit is lost.
"""

import math
from fractions import Fraction

import numpy as np

from mxhw.lut.metric import table_values
from mxhw.lut.table import PwlTable

__all__ = ["multi_range_values", "sub_range"]

_STEPS = {"div": (3, 3), "rsqrt": (4, 2)}
"""Exponent of the input's factor from one sub-range to the next, and of the output's."""


def _steps(table: PwlTable) -> tuple[int, int]:
    if table.function not in _STEPS:
        raise ValueError(
            f"Multi-range scaling must be of {' or '.join(_STEPS)}, not '{table.function}'"
        )
    step, _ = _STEPS[table.function]
    if Fraction(table.range[1]) < Fraction(table.range[0]) * 2**step:
        raise ValueError(
            f"Range of a table for multi-range scaling must span a factor of {2**step}, "
            f"not {table.range[0]:g} to {table.range[1]:g}"
        )
    return _STEPS[table.function]


def sub_range(table: PwlTable, codes: np.ndarray, scale: int) -> np.ndarray:
    """Number ``r`` of each positive code's sub-range; 0 is the table's own.

    The input times ``2**(-r * step)`` is below the table's upper end and, divided by it, at least
    ``2**-step``.

    Raises
    ------
    ValueError
        If the table's function cannot be scaled, or a code is not positive.
    """
    step, _ = _steps(table)
    codes = np.asarray(codes, dtype=np.int64)
    if (codes <= 0).any():
        raise ValueError(f"Code of multi-range scaling must be positive, not {int(codes.min())}")
    _, exponent = np.frexp(codes.astype(np.float64))
    _, top = math.frexp(table.range[1])
    return -(-(exponent - scale - top + 1) // step)


def multi_range_values(table: PwlTable, codes: np.ndarray, scale: int) -> np.ndarray:
    """Exact values of positive integer inputs of any size at the scale ``2**-scale``."""
    step, output_step = _steps(table)
    codes = np.asarray(codes, dtype=np.int64)
    ranges = sub_range(table, codes, scale)
    values = np.empty(codes.shape)
    for number in np.unique(ranges):
        chosen = ranges == number
        inner = table_values(table, codes[chosen], scale + step * int(number))
        values[chosen] = np.ldexp(inner, -output_step * int(number))
    return values
