"""A table as a PyTorch module, to fine-tune a model with it."""

import torch
from torch import nn

from mxhw.lut.metric import quantised_breakpoints
from mxhw.lut.table import PwlTable

__all__ = ["PwlFunction"]

_MOST_CODE_BITS = 24


def _round_through(x: torch.Tensor) -> torch.Tensor:
    """Rounding to nearest even whose gradient is 1."""
    return x + (torch.round(x) - x).detach()


class PwlFunction(nn.Module):
    """A table's value of a quantised input; gradients pass straight through the rounding.

    Contract: with ``S = 2**-j``, ``q = round(x / S)`` (ties to even) saturated to ``code_bits``
    bits, the output is the table's value of ``q * S``, with breakpoints as integers of the scale.
    The gradient is the segment's slope, and 0 where the code saturates. A learnt scale gets the
    gradient of ``q * S`` and is rounded to a power of two, again straight through.

    Parameters
    ----------
    table : PwlTable
    scale : int, optional
        The exponent ``j``, one of the table's. By default it is learnt, from the table's middle
        one on, in the parameter ``log2_scale`` (``-j``).
    code_bits : int
        Width of the codes, 4 to 24.

    Raises
    ------
    TypeError, ValueError
        If the table is no table, the scale is not one of its scales, or the width is wrong.
    """

    slopes: torch.Tensor
    intercepts: torch.Tensor
    breakpoints: torch.Tensor

    def __init__(self, table: PwlTable, *, scale: int | None = None, code_bits: int = 8):
        super().__init__()
        if not isinstance(table, PwlTable):
            raise TypeError(f"Table of a module must be a PwlTable, not {table!r}")
        if scale is not None and scale not in table.scales:
            raise ValueError(
                f"Scale of a module must be one of {', '.join(map(str, table.scales))}, not {scale}"
            )
        if not isinstance(code_bits, int):
            raise TypeError(f"Code width of a module must be an integer, not {code_bits!r}")
        if not 4 <= code_bits <= _MOST_CODE_BITS:
            raise ValueError(
                f"Code width of a module must be between 4 and {_MOST_CODE_BITS}, not {code_bits}"
            )
        self._table = table
        self._fixed_scale = scale
        self._code_limit = 1 << (code_bits - 1)
        middle = sorted(table.scales)[len(table.scales) // 2]
        if scale is None:
            self.log2_scale = nn.Parameter(torch.tensor(-float(middle)))
        slopes = torch.tensor(table.slopes, dtype=torch.float64)
        intercepts = torch.tensor(table.intercepts, dtype=torch.float64)
        self.register_buffer(
            "slopes", torch.ldexp(slopes, -torch.tensor(table.slope_fracs)).float()
        )
        self.register_buffer(
            "intercepts", torch.ldexp(intercepts, -torch.tensor(table.intercept_fracs)).float()
        )
        first, last = min(table.scales), max(table.scales)
        rows = [quantised_breakpoints(table, j) for j in range(first, last + 1)]
        self.register_buffer("breakpoints", torch.tensor(rows, dtype=torch.float64))
        self._first_scale, self._last_scale = first, last

    @property
    def table(self) -> PwlTable:
        """The table."""
        return self._table

    @property
    def scale(self) -> int:
        """Exponent ``j`` of the input scale in use."""
        if self._fixed_scale is not None:
            return self._fixed_scale
        learnt = -round(float(self.log2_scale.detach()))
        return min(max(learnt, self._first_scale), self._last_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The table's value of every element."""
        scale = self.scale
        step = torch.tensor(2.0**-scale, dtype=x.dtype, device=x.device)
        if self._fixed_scale is None:
            through = torch.exp2(self.log2_scale).to(x.dtype)
            step = through + (step - through).detach()
        code = _round_through((x / step).clamp(-self._code_limit, self._code_limit - 1))
        points = self.breakpoints[scale - self._first_scale]
        segment = torch.bucketize(code.detach().double(), points, right=True)
        slope = self.slopes[segment].to(x.dtype)
        return slope * (code * step) + self.intercepts[segment].to(x.dtype)

    def extra_repr(self) -> str:
        """Function, entries and scale."""
        return f"{self._table.function}, entries={self._table.entries}, scale={self.scale}"
