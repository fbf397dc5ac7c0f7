"""MX tensors and the one quantiser: integer codes, scale bytes, exact rounding."""

import dataclasses
from typing import Any

import torch

from mxhw.formats import SCALE_BIAS, SCALE_MAX, BlockFormat
from mxhw.sw.golden.integer import bit_length, shift_round

__all__ = ["MXTensor", "Wide", "quantize", "quantize_wide", "widen"]

_ZERO_EXPONENT = -(1 << 20)


@dataclasses.dataclass(frozen=True)
class Wide:
    """Exact values on their way to a quantiser: ``mantissa * 2**exponent``, element by element.

    Members
    -------
    mantissa, exponent : int64 tensors of one shape (the exponent may broadcast)
    """

    mantissa: torch.Tensor
    exponent: torch.Tensor

    def to_float(self) -> torch.Tensor:
        """Values as float64."""
        return torch.ldexp(self.mantissa.to(torch.float64), self.exponent)


@dataclasses.dataclass(frozen=True)
class MXTensor:
    """A tensor of MX blocks along its last axis.

    Members
    -------
    elements : int64 tensor ``[..., length]``
        Element codes: signed integers for integer formats, unsigned codes for floats. The length
        is padded to whole blocks with zeros.
    scales : int64 tensor ``[..., length / block_size]``
        E8M0 bytes.
    format : BlockFormat
    """

    elements: torch.Tensor
    scales: torch.Tensor
    format: BlockFormat

    @property
    def blocks(self) -> int:
        """Blocks along the last axis."""
        return self.scales.shape[-1]

    def significands(self) -> torch.Tensor:
        """Decoded integers ``[..., blocks, block_size]`` (see :class:`ElementFormat`)."""
        element = self.format.element
        blocked = self.elements.unflatten(-1, (self.blocks, self.format.block_size))
        if element.is_integer:
            return blocked
        return torch.from_numpy(element.decode_table())[blocked]

    def exponents(self) -> torch.Tensor:
        """Exponent of a significand's unit, ``[..., blocks]``."""
        return self.scales - (SCALE_BIAS + self.format.element.fraction_bits)

    def dequantize(self) -> torch.Tensor:
        """Values as float32 (exact for every format of at most 24 significand bits)."""
        value = torch.ldexp(self.significands().to(torch.float64), self.exponents().unsqueeze(-1))
        return value.flatten(-2).to(torch.float32)

    def __getitem__(self, index: Any) -> "MXTensor":
        """Index the leading axes; the blocked axis stays whole."""
        return MXTensor(self.elements[index], self.scales[index], self.format)


def _encode_float(format: BlockFormat, value: Wide, unit: torch.Tensor) -> torch.Tensor:
    """Codes of float elements; ``unit`` is the exponent that the shared scale stands for."""
    element = format.element
    exponent = bit_length(value.mantissa) - 1 + value.exponent - unit
    exponent = exponent.clamp(min=element.min_exponent)
    quantum = exponent - element.mantissa_bits
    steps = shift_round(value.mantissa.abs(), quantum + unit - value.exponent)
    significand = steps << (quantum + element.fraction_bits)
    significand = significand.clamp(max=element.max_significand)
    exponent = (bit_length(significand) - 1 - element.fraction_bits).clamp(min=element.min_exponent)
    steps = significand >> (exponent - element.mantissa_bits + element.fraction_bits)
    code = steps + ((exponent - element.min_exponent) << element.mantissa_bits)
    return code + ((value.mantissa < 0).to(torch.int64) << (element.bits - 1))


def quantize_wide(value: Wide, format: BlockFormat) -> MXTensor:
    """Round exact values to blocks along the last axis, whose length must be whole blocks.

    Contract: ``T = max(floor(log2 |v|))`` over the block, scale exponent
    ``S = clamp(T - max_exponent, -127, 127)``, element ``= round_to_nearest_even(v * 2**-S)`` on
    the element's grid, saturated to the largest finite element; zero blocks get scale byte 0 and
    zero codes; a float element that rounds to zero keeps its sign.
    """
    element = format.element
    size = format.block_size
    mantissa = value.mantissa.unflatten(-1, (-1, size))
    exponent = value.exponent.expand_as(value.mantissa).unflatten(-1, (-1, size))
    top = torch.where(mantissa == 0, _ZERO_EXPONENT, exponent + bit_length(mantissa) - 1)
    top = top.amax(-1, keepdim=True)
    zero = top == _ZERO_EXPONENT
    unit = (top - element.max_exponent).clamp(-SCALE_BIAS, SCALE_MAX - SCALE_BIAS)
    if element.is_integer:
        codes = shift_round(mantissa, unit - element.fraction_bits - exponent)
        codes = codes.clamp(-element.max_significand, element.max_significand)
    else:
        codes = _encode_float(format, Wide(mantissa, exponent), unit)
    scales = torch.where(zero, 0, unit + SCALE_BIAS).squeeze(-1)
    return MXTensor(torch.where(zero, 0, codes).flatten(-2), scales, format)


def quantize(x: torch.Tensor, format: BlockFormat, axis: int = -1) -> MXTensor:
    """Quantise a finite float tensor to MX blocks along ``axis``, which becomes the last axis.

    The axis is padded with zeros to whole blocks. The result is exact: one rounding from the
    float value to the element's grid (:func:`quantize_wide`). Magnitudes below 2**-149 do not
    exist in float32 and are treated as such in float64.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    x = x.detach().movedim(axis, -1).to(torch.float64)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("Tensor to quantise must be finite")
    short = -x.shape[-1] % format.block_size
    x = torch.nn.functional.pad(x, (0, short))
    fraction, exponent = torch.frexp(x)
    mantissa = torch.ldexp(fraction, torch.tensor(24)).to(torch.float32)
    return quantize_wide(Wide(mantissa.to(torch.int64), exponent.to(torch.int64) - 24), format)


def widen(x: MXTensor) -> Wide:
    """Exact values of a tensor, one exponent per element, ``[..., length]``."""
    significands = x.significands()
    exponents = x.exponents().unsqueeze(-1).expand_as(significands)
    return Wide(significands.flatten(-2), exponents.flatten(-2))
