"""Piecewise-linear tables with free breakpoints, as integers of one input scale."""

import dataclasses

import torch

from mxhw.lut.metric import quantised_breakpoints
from mxhw.lut.table import PwlTable

__all__ = ["PwlWords", "pwl_values"]


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
        Ascending, one less than the entries; clamped to the inputs' range and one beyond.
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
        intercepts = zip(table.intercepts, table.intercept_fracs, strict=True)
        return cls(
            code_bits=code_bits,
            most_shift=most_shift,
            breakpoints=tuple(min(max(point, -limit), limit) for point in points),
            slopes=table.slopes,
            slope_bits=table.bits,
            shifts=tuple(output - frac for frac in fracs),
            intercepts=tuple(value << (output - frac) for value, frac in intercepts),
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
