"""MX tensors and the one quantiser: integer codes, scale bytes, exact rounding."""

import dataclasses
import math
from typing import Any

import torch

from mxhw.formats import SCALE_BIAS, SCALE_MAX, SCALE_NAN, BlockFormat, ElementFormat
from mxhw.sw.golden.integer import bit_length, shift_round

__all__ = [
    "NON_FINITE",
    "MXTensor",
    "Wide",
    "encode_float",
    "quantize",
    "quantize_wide",
    "sign_of_zero",
    "widen",
]

NON_FINITE = ("error", "scale", "element")
"""What :func:`quantize` does with NaN and infinities."""

_ZERO_EXPONENT = -(1 << 20)
_FLOAT64_BITS = 53


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
    scales : uint8 tensor ``[..., length / block_size]``
        E8M0 bytes; 255 makes the whole block NaN. Other integer types are converted.
    format : BlockFormat
    axis : int
        Axis of the quantised tensor that became the last one.
    length : int, optional
        Its length without padding.
    """

    elements: torch.Tensor
    scales: torch.Tensor
    format: BlockFormat
    axis: int = -1
    length: int | None = None

    def __post_init__(self) -> None:
        if self.scales.dtype != torch.uint8:
            object.__setattr__(self, "scales", self.scales.to(torch.uint8))

    @property
    def blocks(self) -> int:
        """Blocks along the last axis."""
        return self.scales.shape[-1]

    def significands(self) -> torch.Tensor:
        """Decoded integers ``[..., blocks, block_size]`` (see :class:`ElementFormat`)."""
        element = self.format.element
        blocked = self._blocked()
        if element.is_integer:
            return blocked
        return torch.from_numpy(element.decode_table())[blocked]

    def exponents(self) -> torch.Tensor:
        """Exponent of a significand's unit, ``[..., blocks]``, int64."""
        return self.scales.to(torch.int64) - (SCALE_BIAS + self.format.element.fraction_bits)

    def is_nan(self) -> torch.Tensor:
        """Which blocks have a NaN scale, an element that is NaN or an infinite one."""
        nan = self.scales == SCALE_NAN
        element = self.format.element
        if element.has_nan:
            special = ~torch.isfinite(torch.from_numpy(element.value_table()))
            nan = nan | special[self._blocked()].any(-1)
        return nan

    def dequantize(self) -> torch.Tensor:
        """Values as float32, in the shape and order of axes of the tensor that was quantised.

        Exact for every format of at most 24 significand bits whose values float32 can hold. A NaN
        scale makes its block NaN; NaN and infinite elements are what they mean.
        """
        element = self.format.element
        value = self.significands().to(torch.float64)
        if element.has_nan:
            table = torch.from_numpy(element.value_table()) * 2.0**element.fraction_bits
            value = table[self._blocked()]
        value = torch.ldexp(value, self.exponents().unsqueeze(-1))
        value = torch.where((self.scales == SCALE_NAN).unsqueeze(-1), math.nan, value)
        value = value.flatten(-2)[..., : self.length]
        return value.to(torch.float32).movedim(-1, self.axis)

    def __getitem__(self, index: Any) -> "MXTensor":
        """Index the leading axes; the blocked axis stays whole, and last."""
        return MXTensor(self.elements[index], self.scales[index], self.format, length=self.length)

    def _blocked(self) -> torch.Tensor:
        return self.elements.unflatten(-1, (self.blocks, self.format.block_size))


def _exceeds(mantissa: torch.Tensor, limit: int) -> torch.Tensor:
    """Whether a magnitude is above ``limit`` when both are scaled to the same highest bit."""
    limit >>= (limit & -limit).bit_length() - 1
    extra = bit_length(mantissa) - limit.bit_length()
    high = (mantissa >> extra.clamp(min=0)) << (-extra).clamp(min=0)
    rest = mantissa - (high << extra.clamp(min=0))
    return (high > limit) | ((high == limit) & (rest > 0) & (extra > 0))


def _rule_exponent(mantissa: torch.Tensor, format: BlockFormat) -> torch.Tensor:
    """How far above its highest bit the scale rule sees a magnitude: 0 or 1."""
    element = format.element
    mantissa = mantissa.abs()
    if format.scale_rule == "rceil":
        return _exceeds(mantissa, element.max_significand).to(torch.int64)
    # Rounded half up to the element's precision it reaches the next power of two.
    precision = element.fraction_bits if element.is_integer else element.mantissa_bits
    length = bit_length(mantissa)
    ones = (1 << (precision + 2)) - 1
    top = torch.where(
        length >= precision + 2,
        mantissa >> (length - precision - 2).clamp(min=0),
        mantissa << (precision + 2 - length).clamp(min=0),
    )
    return (top == ones).to(torch.int64)


def encode_float(element: ElementFormat, value: Wide, unit: torch.Tensor) -> torch.Tensor:
    """Codes of float elements; ``unit`` is the exponent that the shared scale stands for."""
    exponent = bit_length(value.mantissa) - 1 + value.exponent - unit
    outgrown = (exponent > element.max_exponent) & (value.mantissa != 0)
    exponent = exponent.clamp(min=element.min_exponent, max=element.max_exponent)
    quantum = exponent - element.mantissa_bits
    right = torch.where(outgrown, 0, quantum + unit - value.exponent)
    steps = shift_round(value.mantissa.abs(), right)
    significand = torch.where(outgrown, 0, steps) << (quantum + element.fraction_bits)
    significand = torch.where(outgrown, element.max_significand, significand)
    significand = significand.clamp(max=element.max_significand)
    exponent = (bit_length(significand) - 1 - element.fraction_bits).clamp(min=element.min_exponent)
    steps = significand >> (exponent - element.mantissa_bits + element.fraction_bits)
    code = steps + ((exponent - element.min_exponent) << element.mantissa_bits)
    return code + ((value.mantissa < 0).to(torch.int64) << (element.bits - 1))


def _encode_integer(element: ElementFormat, value: Wide, unit: torch.Tensor) -> torch.Tensor:
    """Codes of integer elements; ``unit`` is the exponent that the shared scale stands for."""
    limit = element.max_significand
    right = unit - element.fraction_bits - value.exponent
    if not bool((unit == SCALE_MAX - SCALE_BIAS).any()):
        return shift_round(value.mantissa, right).clamp(-limit, limit)
    # At the largest scale a value may be too large even for the shift.
    exponent = bit_length(value.mantissa) - 1 + value.exponent - unit
    outgrown = (exponent > element.max_exponent) & (value.mantissa != 0)
    codes = shift_round(value.mantissa, torch.where(outgrown, 0, right)).clamp(-limit, limit)
    return torch.where(outgrown, limit * value.mantissa.sign(), codes)


def quantize_wide(value: Wide, format: BlockFormat) -> MXTensor:
    """Round exact values to blocks along the last axis, whose length must be whole blocks.

    Contract: ``T = max(floor(log2 |v|))`` over the block, scale exponent
    ``S = clamp(T - max_exponent, -127, 127)``, element ``= round_to_nearest_even(v * 2**-S)`` on
    the element's grid, saturated to the largest finite element; zero blocks get scale byte 0 and
    zero codes; a float element that rounds to zero keeps its sign. The scale rules ``even`` and
    ``rceil`` may make ``T`` one larger (:class:`BlockFormat`).

    Magnitudes of the mantissas stay below 2**53; exponents may be anything.
    """
    element = format.element
    size = format.block_size
    mantissa = value.mantissa.unflatten(-1, (-1, size))
    exponent = value.exponent.expand_as(value.mantissa).unflatten(-1, (-1, size))
    top = exponent + bit_length(mantissa)
    if format.scale_rule != "floor":
        top = top + _rule_exponent(mantissa, format)
    top = torch.where(mantissa == 0, _ZERO_EXPONENT, top).amax(-1, keepdim=True)
    zero = top == _ZERO_EXPONENT
    unit = (top - 1 - element.max_exponent).clamp(-SCALE_BIAS, SCALE_MAX - SCALE_BIAS)
    encode = _encode_integer if element.is_integer else encode_float
    codes = encode(element, Wide(mantissa, exponent), unit)
    # Of a zero block the codes are zero by themselves.
    scales = torch.where(zero, 0, unit + SCALE_BIAS).squeeze(-1)
    return MXTensor(codes.flatten(-2), scales, format)


def quantize(
    x: torch.Tensor, format: BlockFormat, axis: int = -1, *, non_finite: str = "error"
) -> MXTensor:
    """Quantise a float tensor to MX blocks along ``axis``, which becomes the last axis.

    The axis is padded with zeros to whole blocks. The result is exact: one rounding from the
    float value to the element's grid (:func:`quantize_wide`), of float64 values too. A negative
    zero keeps its sign in a float element.

    Parameters
    ----------
    x : float tensor of any shape with at least one axis
    format : BlockFormat
    axis : int
        Axis along which 32 (or another block size) elements make a block.
    non_finite : str
        What becomes of NaN and infinities, which the specification leaves open: ``"error"``
        refuses them; ``"scale"`` gives their blocks the scale 255 (NaN) and zero codes;
        ``"element"`` gives them the element's own NaN or infinity (NaN where there is no infinity)
        and scales the block by its finite values.

    Raises
    ------
    ValueError
        If a value is not finite and ``non_finite`` is ``"error"``, or the element format has no
        code for it.
    """
    if non_finite not in NON_FINITE:
        raise ValueError(
            f"Treatment of non-finite values must be one of {', '.join(NON_FINITE)}, "
            f"not {non_finite!r}"
        )
    length = x.shape[axis]
    x = x.detach().movedim(axis, -1).to(torch.float64)
    finite = torch.isfinite(x)
    if non_finite == "error" and not bool(finite.all()):
        raise ValueError("Tensor to quantise must be finite")
    short = -length % format.block_size
    x = torch.nn.functional.pad(x, (0, short))
    fraction, exponent = torch.frexp(torch.where(torch.isfinite(x), x, 0.0))
    mantissa = (fraction * 2.0**_FLOAT64_BITS).to(torch.int64)
    result = quantize_wide(Wide(mantissa, exponent.to(torch.int64) - _FLOAT64_BITS), format)
    elements = result.elements
    if not format.element.is_integer:
        elements = elements | sign_of_zero(x, format.element)
    result = dataclasses.replace(result, elements=elements, axis=axis, length=length)
    return result if bool(finite.all()) else _mark(result, x, non_finite)


def sign_of_zero(x: torch.Tensor, element: ElementFormat) -> torch.Tensor:
    """Sign bit of a negative zero, which exact values do not have."""
    return ((x == 0) & x.signbit()).to(torch.int64) << (element.bits - 1)


def _mark(result: MXTensor, x: torch.Tensor, non_finite: str) -> MXTensor:
    """Put NaN and infinities into a tensor whose finite values are quantised."""
    element = result.format.element
    if non_finite == "element":
        nan = element.code_of(math.nan)
        infinity = element.code_of(math.inf) if element.has_infinity else nan
        codes = torch.where(torch.isnan(x), nan, infinity)
        codes = codes + ((x < 0).to(torch.int64) << (element.bits - 1))
        elements = torch.where(torch.isfinite(x), result.elements, codes)
        return dataclasses.replace(result, elements=elements)
    bad = ~torch.isfinite(x).unflatten(-1, (result.blocks, -1)).all(-1)
    elements = torch.where(bad.repeat_interleave(result.format.block_size, -1), 0, result.elements)
    return dataclasses.replace(
        result, elements=elements, scales=torch.where(bad, SCALE_NAN, result.scales)
    )


def widen(x: MXTensor) -> Wide:
    """Exact values of a tensor, one exponent per element, ``[..., length]``."""
    significands = x.significands()
    exponents = x.exponents().unsqueeze(-1).expand_as(significands)
    return Wide(significands.flatten(-2), exponents.flatten(-2))
