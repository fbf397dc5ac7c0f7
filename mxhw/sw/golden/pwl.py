"""Piecewise-linear tables with free breakpoints, as integers of one input scale."""

import dataclasses
import math

import torch

from mxhw.lut.metric import quantised_breakpoints
from mxhw.lut.table import PwlTable

__all__ = ["FloatWords", "PwlWords", "float_pwl_values", "pwl_values"]


@dataclasses.dataclass(frozen=True)
class PwlWords:
    """What a piecewise-linear unit keeps of a table.

    Contract: for the input ``x``, a code shifted left to the finest scale, ``i`` is the number of
    breakpoints that ``x`` is not below, and the output ``((slopes[i] * x) << shifts[i]) +
    intercepts[i]`` with ``output_frac`` fraction bits is exact.

    Members
    -------
    code_bits : int
        Width of a code, two's complement.
    most_shift : int
        Most places that a code is shifted to the left; 0 for one fixed scale.
    breakpoints : tuple of int
        Ascending, one less than the entries; clamped to the inputs' range. An entry that no input
        reaches is a copy of the one below it, so that its breakpoint does not matter.
    slopes, shifts, intercepts : tuple of int
    slope_bits : int
    output_frac : int
    """

    code_bits: int
    most_shift: int
    breakpoints: tuple[int, ...]
    slopes: tuple[int, ...]
    slope_bits: int
    shifts: tuple[int, ...]
    intercepts: tuple[int, ...]
    output_frac: int

    @classmethod
    def of(cls, table: PwlTable, *, code_bits: int, scale: int | None = None) -> "PwlWords":
        """Words of a table for one scale exponent, or for all of a table with exact compare.

        Raises
        ------
        ValueError
            If the scale is missing though breakpoints are rounded, or is not one of the table's.
        """
        if scale is None and table.breakpoint_mode != "ceil":
            raise ValueError(
                f"Table of '{table.function}' rounds its breakpoints for each scale; "
                "a unit for all scales needs the breakpoint mode ceil"
            )
        if scale is not None and scale not in table.scales:
            raise ValueError(
                f"Scale of a unit must be one of {', '.join(map(str, table.scales))}, not {scale}"
            )
        finest = max(table.scales) if scale is None else scale
        most_shift = finest - min(table.scales) if scale is None else 0
        limit = 1 << (code_bits - 1 + most_shift)
        points = quantised_breakpoints(table, finest)
        fracs = [finest + frac for frac in table.slope_fracs]
        output = max(*fracs, *table.intercept_fracs)
        # Of the entries, those that some input may reach; the last of them stands for the rest.
        last = sum(point < limit for point in points)
        kept = [min(entry, last) for entry in range(table.entries)]
        return cls(
            code_bits=code_bits,
            most_shift=most_shift,
            breakpoints=tuple(min(max(point, -limit), limit - 1) for point in points),
            slopes=tuple(table.slopes[entry] for entry in kept),
            slope_bits=table.bits,
            shifts=tuple(output - fracs[entry] for entry in kept),
            intercepts=tuple(
                table.intercepts[entry] << (output - table.intercept_fracs[entry]) for entry in kept
            ),
            output_frac=output,
        )

    @property
    def entries(self) -> int:
        """Segments."""
        return len(self.slopes)


def pwl_values(words: PwlWords, codes: torch.Tensor, shift: torch.Tensor | int = 0) -> torch.Tensor:
    """Outputs of integer codes that are shifted to the left first (int64, exact)."""
    x = codes << torch.as_tensor(shift, dtype=torch.int64)
    points = torch.tensor(words.breakpoints, dtype=torch.int64)
    segment = torch.bucketize(x, points, right=True)
    product = torch.tensor(words.slopes)[segment] * x
    return (product << torch.tensor(words.shifts)[segment]) + torch.tensor(words.intercepts)[
        segment
    ]


@dataclasses.dataclass(frozen=True)
class FloatWords:
    """What a piecewise-linear unit for float32 keeps of a table: exact float32 numbers.

    Members
    -------
    breakpoints, slopes, intercepts : tuple of float
    """

    breakpoints: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    @classmethod
    def of(cls, table: PwlTable) -> "FloatWords":
        """Numbers of a table.

        Raises
        ------
        ValueError
            If one of them is not a normal float32 number or zero.
        """
        points = (point * 2.0**-table.breakpoint_frac for point in table.breakpoints)
        slopes = (math.ldexp(*pair) for pair in _scaled(table.slopes, table.slope_fracs))
        intercepts = (
            math.ldexp(*pair) for pair in _scaled(table.intercepts, table.intercept_fracs)
        )
        words = cls(tuple(points), tuple(slopes), tuple(intercepts))
        for value in (*words.breakpoints, *words.slopes, *words.intercepts):
            exact = float(torch.tensor(value, dtype=torch.float32)) == value
            if not exact or 0 < abs(value) < _SMALLEST_NORMAL:
                raise ValueError(
                    f"Numbers of a float table must be normal float32 numbers, not {value!r}"
                )
        return words


_SMALLEST_NORMAL = 2.0**-126


def _scaled(values: tuple[int, ...], fracs: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(value, -frac) for value, frac in zip(values, fracs, strict=True)]


def _to_float32(exact: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest even; magnitudes below the smallest normal number become +0."""
    small = exact.abs() < _SMALLEST_NORMAL
    return torch.where(small, 0.0, exact.to(torch.float32).to(torch.float64))


def float_pwl_values(words: FloatWords, bits: torch.Tensor) -> torch.Tensor:
    """Outputs of float32 bit patterns (int64, 0 to 2**32 - 1), as bit patterns.

    Contract: subnormal inputs count as 0. The segment is the number of breakpoints that the input
    is not below. The product with the slope and then the sum with the intercept are each rounded
    to nearest, ties to even; results below 2**-126 before rounding, and all zeros, are +0; what
    exceeds the range is infinite. A slope of 0 gives the intercept, for an infinite input too. A
    NaN gives the NaN 0x7FC00000.
    """
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits)
    x = signed.to(torch.int32).view(torch.float32).to(torch.float64)
    x = torch.where(x.abs() < _SMALLEST_NORMAL, 0.0, x)
    points = torch.tensor(words.breakpoints, dtype=torch.float64)
    segment = torch.bucketize(x, points, right=True)
    slope = torch.tensor(words.slopes, dtype=torch.float64)[segment.clamp(max=len(points))]
    intercept = torch.tensor(words.intercepts, dtype=torch.float64)[segment.clamp(max=len(points))]
    # Exact in float64; a sum rounded to 53 bits first rounds to the same 24 bits.
    product = _to_float32(torch.where(slope == 0, 0.0, slope * x))
    result = _to_float32(product + intercept)
    code = result.to(torch.float32).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    code = torch.where(result == 0, 0, code)
    return torch.where(torch.isnan(x), 0x7FC00000, code)
