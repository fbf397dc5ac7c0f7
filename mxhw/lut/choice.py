"""Entries of an operator's tables: the least area within a bound of the error."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from mxhw.lut.uniform import (
    EXACT_VALUES,
    VALUE_FRACTION_BITS,
    UniformTable,
    exp2_table,
    reciprocal_table,
    rsqrt_table,
)

__all__ = ["TABLES", "TableUse", "choose_tables", "largest_table_error", "table_luts"]

TABLES: dict[str, Callable[[int], UniformTable]] = {
    "exp2": exp2_table,
    "reciprocal": reciprocal_table,
    "rsqrt": rsqrt_table,
}
"""Tables that operators look up: by function, the one of so many index bits."""

_LUTS = {
    "exp2": {3: 250, 4: 218, 5: 213},
    "reciprocal": {3: 54, 4: 53, 5: 72},
    "rsqrt": {3: 55, 4: 55, 5: 74},
}
"""Lookup tables of an ECP5 (``python sim/lut.py``): of a power of two with its product in them, of
the others with theirs in a multiplier."""


@dataclasses.dataclass(frozen=True)
class TableUse:
    """What was chosen for one operator.

    Members
    -------
    index_bits : dict of str to int
        Logarithm of each table's entries, by function.
    error : float
        Sum of the tables' largest relative errors.
    luts : int
        What the tables take of an ECP5.
    """

    index_bits: dict[str, int]
    error: float
    luts: int


@functools.cache
def largest_table_error(function: str, index_bits: int) -> float:
    """Largest relative error of a table over all its codes."""
    table = TABLES[function](index_bits)
    codes = torch.arange(1 << table.input_bits)
    values = table.evaluate(codes).numpy() / 2.0**VALUE_FRACTION_BITS
    return float(np.abs(values / EXACT_VALUES[function](codes.numpy()) - 1).max())


def table_luts(function: str, index_bits: int) -> int:
    """Lookup tables that a table with its product takes of an ECP5."""
    return _LUTS[function][index_bits]


def choose_tables(functions: Sequence[str], largest: float) -> TableUse:
    """Entries of several tables: the least area whose errors sum up to at most ``largest``.

    Of equal areas the smaller error is taken.

    Parameters
    ----------
    functions : sequence of str
        Names of :data:`TABLES`.
    largest : float
        Relative error.

    Raises
    ------
    ValueError
        If even the largest tables err by more.
    """
    uses = [
        TableUse(
            dict(zip(functions, bits, strict=True)),
            sum(map(largest_table_error, functions, bits)),
            sum(map(table_luts, functions, bits)),
        )
        for bits in itertools.product(*(_LUTS[function] for function in functions))
    ]
    fitting = [use for use in uses if use.error <= largest]
    if not fitting:
        least = min(use.error for use in uses)
        raise ValueError(
            f"Tables of {' and '.join(functions)} must be allowed a relative error of at least "
            f"{least:.2g}, not {largest:.2g}"
        )
    return min(fitting, key=lambda use: (use.luts, use.error))
