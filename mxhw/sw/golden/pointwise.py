"""Elementwise operators: residual addition, SiLU and gated SiLU."""

import torch

from mxhw.formats import BlockFormat
from mxhw.lut.uniform import reciprocal_table
from mxhw.sw.golden.attention import exp2_fixed
from mxhw.sw.golden.integer import shift_floor
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide, widen

__all__ = ["LOG2_E", "add", "silu", "silu_wide", "swiglu"]

LOG2_E = 23637
"""log2(e) with 14 fraction bits."""

_ADD_GUARD_BITS = 8
_LARGEST_EXPONENT = (1 << 17) - 1


def add(x: MXTensor, y: MXTensor, format: BlockFormat) -> MXTensor:
    """Sum of two wide tensors, requantised.

    Contract: with ``E`` the larger of the two blocks' unit exponents,
    ``z = floor((x << 8) * 2**(Ex - E)) + floor((y << 8) * 2**(Ey - E))`` at ``E - 8``.
    """
    left, right = widen(x), widen(y)
    unit = torch.maximum(left.exponent, right.exponent)
    total = shift_floor(left.mantissa << _ADD_GUARD_BITS, unit - left.exponent) + shift_floor(
        right.mantissa << _ADD_GUARD_BITS, unit - right.exponent
    )
    return quantize_wide(Wide(total, unit - _ADD_GUARD_BITS), format)


def silu_wide(x: Wide, exp2_bits: int = 5, reciprocal_bits: int = 5) -> Wide:
    """``x * sigmoid(x)`` of 16-bit codes: an 18-bit signed mantissa and its exponent.

    Contract, for the code ``g`` at the exponent ``e``: ``t = floor(|g| * LOG2_E * 2**(e - 2))``
    saturated to 17 bits (12 fraction bits); ``M, I = exp2_fixed(-t)``; ``d = 2**15 + (M >> -I)``;
    ``r`` = reciprocal of ``d`` with 15 fraction bits (table; 2**14 for ``d = 2**16``).
    ``w = r`` for ``g >= 0``, else ``(r * M) >> 15`` with the exponent ``I`` more.
    The result is ``(g * w) >> 14`` at ``e - 1`` (plus ``I``). Both tails have the right relative
    error, since a negative input takes ``2**t / (1 + 2**t)`` and not ``1 - sigmoid``.

    Parameters
    ----------
    x : Wide
    exp2_bits, reciprocal_bits : int
        Logarithm of each table's entries.
    """
    magnitude = x.mantissa.abs() * LOG2_E
    # A left shift that cannot saturate every non-zero input must stay within int64.
    position = (2 - x.exponent).clamp(min=-24)
    t = shift_floor(magnitude, position).clamp(max=_LARGEST_EXPONENT)
    mantissa, exponent = exp2_fixed(-t, exp2_bits)
    denominator = (1 << 15) + shift_floor(mantissa, -exponent)
    table = reciprocal_table(reciprocal_bits)
    reciprocal = torch.where(denominator >> 16 > 0, 1 << 14, table.evaluate(denominator & 0x7FFF))
    negative = x.mantissa < 0
    weight = torch.where(negative, (reciprocal * mantissa) >> 15, reciprocal)
    shifted = torch.where(negative, exponent, 0)
    return Wide((x.mantissa * weight) >> 14, x.exponent - 1 + shifted)


def silu(
    x: MXTensor, format: BlockFormat, exp2_bits: int = 5, reciprocal_bits: int = 5
) -> MXTensor:
    """:func:`silu_wide` of every element, requantised."""
    return quantize_wide(silu_wide(widen(x), exp2_bits, reciprocal_bits), format)


def swiglu(
    gate: MXTensor,
    up: MXTensor,
    format: BlockFormat,
    exp2_bits: int = 5,
    reciprocal_bits: int = 5,
) -> MXTensor:
    """``silu(gate) * up``: the exact product of :func:`silu_wide` and the code of ``up``."""
    left, right = silu_wide(widen(gate), exp2_bits, reciprocal_bits), widen(up)
    product = Wide(left.mantissa * right.mantissa, left.exponent + right.exponent)
    return quantize_wide(product, format)
