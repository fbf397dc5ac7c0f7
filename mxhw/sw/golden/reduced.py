"""Functions by range reduction: sigmoid and SiLU of fixed point, sine and cosine of a phase."""

import dataclasses

import torch

from mxhw.lut.uniform import (
    EXP2_FRACTION_BITS,
    SINE_CODE_BITS,
    VALUE_FRACTION_BITS,
    exp2_table,
    reciprocal_table,
    sine_table,
)
from mxhw.sw.golden.integer import shift_floor
from mxhw.sw.golden.tensor import Wide

__all__ = [
    "LOG2_E",
    "LOG2_E_FRAC",
    "ONLINE_GUARD_BITS",
    "ONLINE_MOST_SHIFT",
    "ONLINE_SMALLEST",
    "Online",
    "online_softmax",
    "rotation",
    "sigmoid_fixed",
    "silu_fixed",
]

LOG2_E_FRAC = 20
LOG2_E = 1512775
"""log2(e) with 20 fraction bits: at 128 its relative error makes one of 5e-5 in the power."""

ONLINE_GUARD_BITS = 16
"""Fraction bits of a total beyond those of a mantissa."""

ONLINE_SMALLEST = 31
"""A numerator more places than this below the maximum counts as 0."""

ONLINE_MOST_SHIFT = 63

_FAR = 17
_PHASE_BITS = 32


def sigmoid_fixed(code: torch.Tensor, frac: int, index_bits: int = 5) -> Wide:
    """``1 / (1 + exp(-x))`` of ``x = code * 2**-frac``.

    Contract: ``t = (|code| * LOG2_E) >> (frac + 8)``, 12 fraction bits; ``M`` is the table's value
    of ``2**(fraction of -t)`` and ``I = floor(-t)``, so that ``exp(-|x|) = M * 2**(I - 15)``;
    ``d = 2**15 + (M >> -I)``; ``r`` is the table's reciprocal of ``d`` with 15 fraction bits, and
    2**14 for ``d = 2**16``. The mantissa is ``r`` for ``code >= 0``, else ``(r * M) >> 15`` with
    the exponent ``I`` more; the exponent is -15. Both tails have the right relative error, since a
    negative input takes ``exp(x) / (1 + exp(x))``.

    Parameters
    ----------
    code : int64 tensor, at most 16 bits
    frac : int
        Fraction bits of the code, 0 to 15.
    index_bits : int
        The tables have ``2**index_bits`` entries.
    """
    t = (code.abs() * LOG2_E) >> (frac + LOG2_E_FRAC - EXP2_FRACTION_BITS)
    fraction = -t & ((1 << EXP2_FRACTION_BITS) - 1)
    exponent = -t >> EXP2_FRACTION_BITS
    mantissa = exp2_table(index_bits).evaluate(fraction)
    one = 1 << VALUE_FRACTION_BITS
    denominator = one + shift_floor(mantissa, (-exponent).clamp(max=_FAR))
    table = reciprocal_table(index_bits)
    reciprocal = torch.where(
        denominator == 2 * one, one >> 1, table.evaluate(denominator & (one - 1))
    )
    negative = code < 0
    weight = torch.where(negative, (reciprocal * mantissa) >> VALUE_FRACTION_BITS, reciprocal)
    return Wide(weight, torch.where(negative, exponent, 0) - VALUE_FRACTION_BITS)


def silu_fixed(code: torch.Tensor, frac: int, index_bits: int = 5) -> Wide:
    """``x * sigmoid(x)`` of ``x = code * 2**-frac``: exactly :func:`sigmoid_fixed` times x."""
    weight = sigmoid_fixed(code, frac, index_bits)
    return Wide(code * weight.mantissa, weight.exponent - frac)


def rotation(phase: torch.Tensor, index_bits: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of a phase in turns, with 15 fraction bits.

    Contract: the phase, 32 bits, is rounded to 16 bits (half up, a full turn wraps): a quadrant of
    2 bits and a code ``c`` of 14 bits. ``s`` is the table's value of ``c`` and ``k`` that of
    ``2**14 - c``, which is 2**15 for ``c = 0``. Quadrant by quadrant the sine is ``s, k, -s, -k``
    and the cosine ``k, -s, -k, s``.

    Parameters
    ----------
    phase : int64 tensor
        0 to ``2**32 - 1``; ``2**32`` is a full turn.
    """
    drop = _PHASE_BITS - SINE_CODE_BITS - 2
    rounded = ((phase + (1 << (drop - 1))) >> drop) & ((1 << (SINE_CODE_BITS + 2)) - 1)
    quadrant = rounded >> SINE_CODE_BITS
    quarter = 1 << SINE_CODE_BITS
    code = rounded & (quarter - 1)
    table = sine_table(index_bits)
    rising = table.evaluate(code)
    falling = torch.where(
        code == 0, 1 << VALUE_FRACTION_BITS, table.evaluate((quarter - code) & (quarter - 1))
    )
    odd = quadrant & 1 == 1
    sine = torch.where(odd, falling, rising)
    cosine = torch.where(odd, rising, falling)
    sine = torch.where(quadrant >= 2, -sine, sine)
    cosine = torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return cosine, sine


@dataclasses.dataclass(frozen=True)
class Online:
    """What every position of a one-pass softmax gives; int64 tensors ``[..., positions]``.

    Members
    -------
    mantissa, down : numerator ``mantissa * 2**(-15 - down)`` below ``2**maximum``
    shift : places that sums made before move to the right
    maximum : running maximum of the scores' whole parts
    total : running sum, 31 fraction bits, below ``2**maximum``
    """

    mantissa: torch.Tensor
    down: torch.Tensor
    shift: torch.Tensor
    maximum: torch.Tensor
    total: torch.Tensor


def online_softmax(scores: torch.Tensor, index_bits: int = 5) -> Online:
    """Numerators and total of a softmax in one pass over the last axis.

    Contract: with ``M, I`` the table's mantissa of ``2**score`` and ``floor(score)``, the maximum
    becomes ``m' = max(m, I)``, ``shift = min(m' - m, 63)`` (0 for the first), ``down = m' - I``; a
    ``down`` above 31 counts as 31 and makes ``M`` 0.
    ``total' = (total >> shift) + ((M << 16) >> down)``.

    Parameters
    ----------
    scores : int64 tensor ``[..., positions]``
        Base-2 logits with 12 fraction bits.
    index_bits : int
        The table has ``2**index_bits`` entries.
    """
    fraction = scores & ((1 << EXP2_FRACTION_BITS) - 1)
    whole = scores >> EXP2_FRACTION_BITS
    maximum = torch.cummax(whole, -1).values
    shift = torch.diff(maximum, dim=-1, prepend=maximum[..., :1]).clamp(max=ONLINE_MOST_SHIFT)
    down = maximum - whole
    mantissa = torch.where(down > ONLINE_SMALLEST, 0, exp2_table(index_bits).evaluate(fraction))
    down = down.clamp(max=ONLINE_SMALLEST)
    terms = (mantissa << ONLINE_GUARD_BITS) >> down
    total = torch.zeros_like(terms[..., 0])
    totals = []
    for position in range(scores.shape[-1]):
        total = (total >> shift[..., position]) + terms[..., position]
        totals.append(total)
    return Online(mantissa, down, shift, maximum, torch.stack(totals, -1))
