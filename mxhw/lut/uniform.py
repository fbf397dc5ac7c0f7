"""Piecewise-linear tables with uniform segments in local form, fitted with quantised coefficients.

A table maps an unsigned code ``x`` of ``index_bits + low_bits`` bits to
``y = base[x >> low_bits] + ((slope[x >> low_bits] * low + half) >> slope_shift)`` with
``low = x & (2**low_bits - 1)`` and ``half = 2**(slope_shift - 1)``; ``>>`` floors. Uniform
segments need no comparators: the index is the top bits of the code.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch

__all__ = [
    "EXACT_VALUES",
    "EXP2_FRACTION_BITS",
    "SINE_CODE_BITS",
    "VALUE_FRACTION_BITS",
    "UniformTable",
    "exp2_table",
    "reciprocal_table",
    "rsqrt_table",
    "sine_table",
]

EXP2_FRACTION_BITS = 12
VALUE_FRACTION_BITS = 15
SINE_CODE_BITS = 14

_PINNED_INDEX_BITS = 5
"""From so many on, the first segment's line goes through the exact first value."""


@dataclasses.dataclass(frozen=True)
class UniformTable:
    """A fitted table; all members are plain integers.

    Members
    -------
    name : str
    index_bits, low_bits : int
        The input code has ``index_bits + low_bits`` bits.
    slope_shift : int
        Fraction bits of the slope against one step of the low bits.
    base, slope : tuple of int
        ``2**index_bits`` entries; the value has :data:`VALUE_FRACTION_BITS` fraction bits.
    first : int or None
        The value of code 0, where that is not on its segment's line. A line through an exact first
        value has twice the error, which long segments cannot afford.
    """

    name: str
    index_bits: int
    low_bits: int
    slope_shift: int
    base: tuple[int, ...]
    slope: tuple[int, ...]
    first: int | None = None

    @property
    def input_bits(self) -> int:
        """Width of the input code."""
        return self.index_bits + self.low_bits

    @functools.cached_property
    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.base), torch.tensor(self.slope)

    def evaluate(self, code: torch.Tensor) -> torch.Tensor:
        """Table value of every code (int64)."""
        index = code >> self.low_bits
        low = code & ((1 << self.low_bits) - 1)
        base, slope = (row[index] for row in self._rows)
        value = base + ((slope * low + (1 << (self.slope_shift - 1))) >> self.slope_shift)
        return value if self.first is None else torch.where(code == 0, self.first, value)


def _fit_segment(target: np.ndarray, slope_shift: int, pinned: bool) -> tuple[int, int]:
    """Base and slope of least maximum error over a segment's codes; exact at 0 if pinned."""
    low = np.arange(len(target))
    chord = (target[-1] - target[0]) / (len(target) - 1)
    best: tuple[float, int, int] | None = None
    for slope in range(*(round(chord * 2**slope_shift) + delta for delta in (-2, 3))):
        line = (slope * low + (1 << (slope_shift - 1))) >> slope_shift
        gap = target - line
        middle = (gap.max() + gap.min()) / 2
        for base in {round(target[0])} if pinned else {int(np.floor(middle)), int(np.ceil(middle))}:
            error = float(np.abs(gap - base).max())
            if best is None or error < best[0]:
                best = (error, base, slope)
    if best is None:
        raise ValueError("A segment must have at least two codes")
    return best[1], best[2]


def _fit(
    name: str, index_bits: int, low_bits: int, slope_shift: int, exact_line: bool = False
) -> UniformTable:
    codes = np.arange(1 << (index_bits + low_bits))
    target = EXACT_VALUES[name](codes) * 2.0**VALUE_FRACTION_BITS
    segments = target.reshape(1 << index_bits, 1 << low_bits)
    pinned = exact_line or index_bits >= _PINNED_INDEX_BITS
    fitted = [
        _fit_segment(row, slope_shift, pinned and index == 0) for index, row in enumerate(segments)
    ]
    base, slope = zip(*fitted, strict=True)
    first = None if pinned else round(target[0])
    return UniformTable(name, index_bits, low_bits, slope_shift, base, slope, first)


def _exp2(code: np.ndarray) -> np.ndarray:
    return 2.0 ** (code / 2.0**EXP2_FRACTION_BITS)


def _reciprocal(code: np.ndarray) -> np.ndarray:
    return 1 / (1 + code / 2.0**VALUE_FRACTION_BITS)


def _rsqrt(code: np.ndarray) -> np.ndarray:
    octave, rest = np.divmod(code, 1 << VALUE_FRACTION_BITS)
    return 1 / np.sqrt((1 + rest / 2.0**VALUE_FRACTION_BITS) * 2.0**octave)


def _sine(code: np.ndarray) -> np.ndarray:
    return np.sin(np.pi / 2 * code / 2.0**SINE_CODE_BITS)


EXACT_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp2": _exp2,
    "reciprocal": _reciprocal,
    "rsqrt": _rsqrt,
    "sine": _sine,
}
"""What a table of each name stands for: the real value of every code."""


@functools.cache
def exp2_table(index_bits: int = 5) -> UniformTable:
    """``2**F`` in [1, 2) for a 12-bit fraction F; exact at 0."""
    return _fit("exp2", index_bits, EXP2_FRACTION_BITS - index_bits, 6)


@functools.cache
def reciprocal_table(index_bits: int = 5) -> UniformTable:
    """``1/m`` in (0.5, 1] for m = 1 + code / 2**15 in [1, 2); exact at 1."""
    return _fit("reciprocal", index_bits, VALUE_FRACTION_BITS - index_bits, 10)


@functools.cache
def rsqrt_table(index_bits: int = 5) -> UniformTable:
    """``1/sqrt(m)`` in (0.5, 1]: code < 2**15 is m = 1 + code / 2**15, above it 2 * (1 + rest)."""
    return _fit("rsqrt", index_bits, VALUE_FRACTION_BITS + 1 - index_bits, 11)


@functools.cache
def sine_table(index_bits: int = 5) -> UniformTable:
    """Sine of a quarter turn: ``sin(pi / 2 * code / 2**14)``; exact at 0."""
    return _fit("sine", index_bits, SINE_CODE_BITS - index_bits, 8, exact_line=True)
