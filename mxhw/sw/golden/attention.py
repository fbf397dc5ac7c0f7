"""Attention of one query head over cached keys and values, in base 2."""

import dataclasses

import torch

from mxhw.formats import SCALE_BIAS, BlockFormat
from mxhw.lut.uniform import EXP2_FRACTION_BITS, exp2_table, reciprocal_table
from mxhw.sw.golden.integer import accumulate, bit_length, shift_floor
from mxhw.sw.golden.linear import ACCUMULATOR_GUARD_BITS, matrix_vector, to_fixed
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide, widen

__all__ = [
    "Probabilities",
    "exp2_fixed",
    "only_slot",
    "reciprocal",
    "scores",
    "softmax",
    "values",
]

_SMALLEST_EXPONENT = -31


@dataclasses.dataclass(frozen=True)
class Probabilities:
    """Softmax numerators as MX blocks along the positions, and their exact sum.

    Members
    -------
    numerators : MXTensor ``[..., positions padded to whole blocks]``
        ``2**(score - maximum)`` times the scale of the position's value block.
    total : int64 tensor ``[...]``
        Sum of the numerators without value scales, 31 fraction bits.
    """

    numerators: MXTensor
    total: torch.Tensor


def scores(query: MXTensor, keys: MXTensor) -> torch.Tensor:
    """Base-2 logits of every cached position: fixed point ``[..., positions]``.

    ``query`` ``[..., head_size]`` already carries ``log2(e) / sqrt(head_size)``; ``keys`` is
    ``[positions, head_size]``. The dot is :func:`matrix_vector`, cut by :func:`to_fixed`.
    """
    return to_fixed(matrix_vector(query, keys))


def only_slot(query: MXTensor, slot: int, slots: int) -> MXTensor:
    """A block of ``slots`` heads with zeros for all but one; the shared scale stays."""
    if slots == 1:
        return query
    parts = query.elements.unflatten(-1, (slots, -1))
    kept = torch.zeros_like(parts)
    kept[..., slot, :] = parts[..., slot, :]
    return MXTensor(kept.flatten(-2), query.scales, query.format)


def exp2_fixed(exponent: torch.Tensor, index_bits: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """``2**t`` of fixed point with 12 fraction bits: mantissa (15 fraction bits), exponent.

    Contract: the exponent is ``t >> 12`` (floor), the mantissa the value in [1, 2) of a table of
    ``2**index_bits`` entries for the 12 fraction bits.
    """
    fraction = exponent & ((1 << EXP2_FRACTION_BITS) - 1)
    return exp2_table(index_bits).evaluate(fraction), exponent >> EXP2_FRACTION_BITS


def softmax(
    fixed: torch.Tensor,
    visible: torch.Tensor,
    value_scales: torch.Tensor,
    format: BlockFormat,
    exp2_bits: int = 5,
) -> Probabilities:
    """Numerators of the softmax over visible positions, scaled by the values' shared scales.

    Contract: ``t = score - maximum`` of the visible scores; ``M, I = exp2_fixed(t)``; a position
    with ``I < -31`` or not visible has ``M = 0``. ``total = sum((M << 16) >> -I)``. The numerator
    is ``M * 2**(I - 15 + scale - 127)``, quantised along the positions; the axis is padded with
    zeros to whole blocks.

    Parameters
    ----------
    fixed : int64 tensor ``[..., positions]``
    visible : bool tensor, same shape
    value_scales : int64 tensor ``[..., positions]`` of E8M0 bytes
    exp2_bits : int
        Logarithm of the table's entries.
    """
    lowest = torch.iinfo(torch.int64).min
    maximum = torch.where(visible, fixed, lowest).amax(-1, keepdim=True)
    mantissa, exponent = exp2_fixed(torch.where(visible, fixed - maximum, -(1 << 30)), exp2_bits)
    alive = exponent >= _SMALLEST_EXPONENT
    mantissa = torch.where(alive, mantissa, 0)
    exponent = exponent.clamp(min=_SMALLEST_EXPONENT)
    total = shift_floor(mantissa << 16, -exponent).sum(-1)
    short = -fixed.shape[-1] % format.block_size
    numerator = torch.nn.functional.pad(mantissa, (0, short))
    unit = torch.nn.functional.pad(exponent - 15 + value_scales - SCALE_BIAS, (0, short))
    return Probabilities(quantize_wide(Wide(numerator, unit), format), total)


def reciprocal(total: torch.Tensor, index_bits: int = 5) -> Wide:
    """``1 / total`` of a sum with 31 fraction bits; the table has ``2**index_bits`` entries.

    Contract: ``total`` is cut to 16 bits (floor); the mantissa is the table's value of the low 15.
    A total of 0 has no meaningful result.
    """
    length = bit_length(total)
    top = shift_floor(total, length - 16)
    return Wide(reciprocal_table(index_bits).evaluate(top & 0x7FFF), 32 - 15 - length)


def values(
    probabilities: Probabilities,
    cached: torch.Tensor,
    format: BlockFormat,
    wide: BlockFormat,
    reciprocal_bits: int = 5,
    *,
    slots: int = 1,
) -> MXTensor:
    """Probability-weighted sums of cached value vectors, normalised and requantised.

    Contract: for every element ``d`` of a slot and block ``b`` of positions the exact integer dot
    of the numerators of the slot's head and value codes, accumulated in order (:func:`accumulate`,
    8 guard bits) at the numerator block's exponent minus the values' fraction bits; the slots
    together are quantised to ``wide``; each element is multiplied by the :func:`reciprocal` of its
    head's total; the exact product is quantised to ``format``.

    Parameters
    ----------
    probabilities : Probabilities ``[..., positions]``, or ``[..., slots, positions]``
    cached : int64 tensor ``[positions, width]``
        Element codes of the cached values (their scales are in the numerators).
    reciprocal_bits : int
        Logarithm of the table's entries.
    slots : int
        Heads that share the vectors, each with an equal part of their elements.
    """
    numerators = probabilities.numerators
    total = probabilities.total
    if slots == 1:
        numerators, total = numerators[..., None, :], total.unsqueeze(-1)
    size = numerators.format.block_size
    short = -cached.shape[0] % size
    cached = torch.nn.functional.pad(cached, (0, 0, 0, short)).to(torch.float64)
    # [slots, positions, elements of a slot]
    cached = cached.unflatten(-1, (slots, -1)).movedim(-2, 0)
    left = numerators.significands().to(torch.float64)
    terms = torch.stack(
        [
            (left[..., b, :].unsqueeze(-2) @ cached[:, b * size : (b + 1) * size]).squeeze(-2)
            for b in range(numerators.blocks)
        ],
        -1,
    ).to(torch.int64)
    exponents = (numerators.exponents() - format.element.fraction_bits).unsqueeze(-2)
    mantissa, exponent = accumulate(terms, exponents, guard_bits=ACCUMULATOR_GUARD_BITS)
    exponent = exponent.expand_as(mantissa)
    sums = widen(quantize_wide(Wide(mantissa.flatten(-2), exponent.flatten(-2)), wide))
    factor = reciprocal(total, reciprocal_bits)
    part = cached.shape[-1]
    product = sums.mantissa * factor.mantissa.repeat_interleave(part, -1)
    unit = sums.exponent + factor.exponent.repeat_interleave(part, -1)
    return quantize_wide(Wide(product, unit), format)
