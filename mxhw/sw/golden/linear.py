"""Matrix products of MX blocks and what they end in: embedding, fixed point, arg-max."""

import torch

from mxhw.formats import BlockFormat
from mxhw.sw.golden.integer import accumulate, shift_floor
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide, widen

__all__ = [
    "ACCUMULATOR_GUARD_BITS",
    "FIXED_BITS",
    "FIXED_FRACTION_BITS",
    "argmax",
    "embedding",
    "linear",
    "logits",
    "matrix_vector",
    "to_fixed",
]

ACCUMULATOR_GUARD_BITS = 8
FIXED_BITS = 24
FIXED_FRACTION_BITS = 12


def matrix_vector(x: MXTensor, weight: MXTensor) -> Wide:
    """Product of rows of MX blocks: ``y[..., r] = sum_k x[..., k] * weight[r, k]``.

    Contract: block ``b`` of a row gives the exact integer dot ``p_b`` of the significands, at the
    exponent ``e_b`` = sum of both units. The row's result is :func:`accumulate` over the blocks
    in order with 8 guard bits. Accumulator width: both significand widths + log2(block size) + 8 +
    ceil(log2(blocks)) bits, which cannot overflow.

    Parameters
    ----------
    x : MXTensor ``[..., length]``
    weight : MXTensor ``[rows, length]``; both have the same length and block size

    Returns
    -------
    Wide
        ``[..., rows]``
    """
    left = x.significands().to(torch.float64)
    right = weight.significands().to(torch.float64)
    terms = torch.stack([left[..., b, :] @ right[:, b, :].T for b in range(x.blocks)], dim=-1).to(
        torch.int64
    )
    exponents = x.exponents().unsqueeze(-2) + weight.exponents()
    mantissa, exponent = accumulate(terms, exponents, guard_bits=ACCUMULATOR_GUARD_BITS)
    return Wide(mantissa, exponent)


def linear(x: MXTensor, weight: MXTensor, format: BlockFormat) -> MXTensor:
    """:func:`matrix_vector`, requantised to blocks of rows."""
    return quantize_wide(matrix_vector(x, weight), format)


def to_fixed(value: Wide) -> torch.Tensor:
    """Signed 24-bit fixed point with 12 fraction bits: floor, then saturation at both ends."""
    fixed = shift_floor(value.mantissa, -(value.exponent + FIXED_FRACTION_BITS).clamp(max=20))
    limit = 1 << (FIXED_BITS - 1)
    return fixed.clamp(-limit, limit - 1)


def logits(x: MXTensor, weight: MXTensor) -> torch.Tensor:
    """:func:`matrix_vector` in fixed point (:func:`to_fixed`), int64 ``[..., rows]``."""
    return to_fixed(matrix_vector(x, weight))


def argmax(fixed: torch.Tensor) -> torch.Tensor:
    """Index of the largest value along the last axis; the first of equals."""
    length = fixed.shape[-1]
    earliest_first = torch.arange(length - 1, -1, -1)
    return torch.argmax(fixed * length + earliest_first, dim=-1)


def embedding(table: MXTensor, token: torch.Tensor, format: BlockFormat) -> MXTensor:
    """Row ``token`` of the table, exact in the wide format when that has enough bits."""
    return quantize_wide(widen(table[token]), format)
