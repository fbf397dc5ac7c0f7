"""Dot products of block vectors as one unit computes them, with NaN."""

import torch

from mxhw.sw.golden.integer import accumulate
from mxhw.sw.golden.tensor import MXTensor, Wide

__all__ = ["block_products", "dot_product"]


def _spelled(x: MXTensor) -> torch.Tensor:
    """Significands ``[..., blocks, block_size]``; NaN codes are what their fields spell."""
    element = x.format.element
    blocked = x.elements.unflatten(-1, (x.blocks, x.format.block_size))
    if element.is_integer:
        return blocked
    return torch.from_numpy(element.spelled_table())[blocked]


def block_products(x: MXTensor, w: MXTensor) -> torch.Tensor:
    """Exact integer dot products of pairs of blocks, int64 ``[..., blocks]``.

    Magnitudes stay below 2**63 for every pair of formats but E5M2 with itself and with MXINT of
    more than 24 bits.
    """
    return (_spelled(x) * _spelled(w)).sum(-1)


def dot_product(
    x: MXTensor, w: MXTensor, *, guard_bits: int = 8, align_bits: int = 0
) -> tuple[Wide, torch.Tensor]:
    """Dot product of vectors of blocks: ``sum over b of x_b . w_b``.

    Contract: block ``b`` gives the exact integer dot product of the significands at the sum of both
    scale bytes; :func:`accumulate` sums them in order. The exponent of the result is that of the
    accumulator and the formats' units. Special codes count as the numbers that their fields spell.

    Returns
    -------
    tuple
        The sums ``[...]``, and whether a block had the scale 255, a NaN or an infinity.
    """
    scales = x.scales.to(torch.int64) + w.scales.to(torch.int64)
    mantissa, exponent = accumulate(
        block_products(x, w), scales, guard_bits=guard_bits, align_bits=align_bits
    )
    unit = -254 - x.format.element.fraction_bits - w.format.element.fraction_bits
    return Wide(mantissa, exponent + unit), (x.is_nan() | w.is_nan()).any(-1)
