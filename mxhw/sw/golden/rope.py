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
    context: int, head_size: int, theta: float, rotary: int | None = None, slots: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine ``[context, head_size / slots / 2]`` as integers with 14 fraction bits.

    The angle of pair ``i`` at position ``t`` is ``t * theta**(-2 * i / rotary)``, in float64;
    ``rotary`` is the head size of the model, where that is not the whole slot.
    """
    rotary = rotary or head_size
    pairs = torch.arange(head_size // slots // 2, dtype=torch.float64)
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
    slots: int = 1,
) -> MXTensor:
    """Rotate the pairs (2i, 2i + 1) of every head by the angle of ``position``; requantise.

    Contract: with the table's ``c`` and ``s``, ``y[2i] = a * c - b * s`` and
    ``y[2i + 1] = a * s + b * c`` are exact integers, 14 bits below the block's unit.

    Parameters
    ----------
    x : MXTensor ``[..., heads * head_size]``, whole blocks a head
    position : int64 tensor ``[...]``
    rotary : int, optional
        Head size of the model (:func:`rope_tables`); even, by default all elements.
    slots : int
        Equal parts of a head, each with a head of the model and the angles of all others.
    """
    cosine, sine = rope_tables(context, head_size, theta, rotary, slots)
    values = x.significands().flatten(-2).unflatten(-1, (-1, head_size // slots // 2, 2))
    c = cosine[position].unsqueeze(-2)
    s = sine[position].unsqueeze(-2)
    even, odd = values[..., 0], values[..., 1]
    rotated = torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-3)
    unit = (x.exponents() - ROPE_FRACTION_BITS).repeat_interleave(x.format.block_size, -1)
    return quantize_wide(Wide(rotated, unit), format)
