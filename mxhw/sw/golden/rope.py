"""Rotary position embedding on interleaved pairs."""

import functools
import math

import torch

from mxhw.formats import BlockFormat
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide

__all__ = ["ROPE_FRACTION_BITS", "rope", "rope_tables"]

ROPE_FRACTION_BITS = 14


@functools.cache
def rope_tables(
    context: int, head_size: int, theta: float, rotary: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine ``[context, head_size / 2]`` as integers with 14 fraction bits.

    The angle of pair ``i`` at position ``t`` is ``t * theta**(-2 * i / head_size)``, in float64.
    Where a head's blocks hold several smaller heads of ``rotary`` elements, or one and padding, the
    angles are those of ``rotary`` elements, over and over.
    """
    rotary = rotary or head_size
    pairs = torch.arange(head_size // 2, dtype=torch.float64) % (rotary // 2)
    frequency = torch.exp(-2 * pairs / rotary * math.log(theta))
    angle = torch.arange(context, dtype=torch.float64).unsqueeze(1) * frequency
    scale = 1 << ROPE_FRACTION_BITS
    cosine = torch.round(torch.cos(angle) * scale).to(torch.int64)
    sine = torch.round(torch.sin(angle) * scale).to(torch.int64)
    return cosine, sine


def rope(
    x: MXTensor,
    position: torch.Tensor,
    context: int,
    head_size: int,
    theta: float,
    format: BlockFormat,
    rotary: int | None = None,
) -> MXTensor:
    """Rotate the pairs (2i, 2i + 1) of every head by the angle of ``position``; requantise.

    Contract: with the table's ``c`` and ``s``, ``y[2i] = a * c - b * s`` and
    ``y[2i + 1] = a * s + b * c`` are exact integers, 14 bits below the block's unit.

    Parameters
    ----------
    x : MXTensor ``[..., heads * head_size]``, whole blocks a head
    position : int64 tensor ``[...]``
    rotary : int, optional
        Elements after which the angles repeat (:func:`rope_tables`); even, by default all.
    """
    cosine, sine = rope_tables(context, head_size, theta, rotary)
    values = x.significands().flatten(-2).unflatten(-1, (-1, head_size // 2, 2))
    c = cosine[position].unsqueeze(-2)
    s = sine[position].unsqueeze(-2)
    even, odd = values[..., 0], values[..., 1]
    rotated = torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-3)
    unit = (x.exponents() - ROPE_FRACTION_BITS).repeat_interleave(x.format.block_size, -1)
    return quantize_wide(Wide(rotated, unit), format)
