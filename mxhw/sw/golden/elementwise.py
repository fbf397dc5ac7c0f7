"""Elementwise arithmetic on MX tensors: another format, and products. Sums are in ``pointwise``."""

from mxhw.formats import BlockFormat
from mxhw.sw.golden.integer import bit_length
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide, widen

__all__ = ["multiply", "requantize"]


def requantize(x: MXTensor, format: BlockFormat) -> MXTensor:
    """The same values in another format, also of another block size: one rounding."""
    return quantize_wide(widen(x), format)


def multiply(x: MXTensor, y: MXTensor, format: BlockFormat) -> MXTensor:
    """Products of elements: exact, then rounded once."""
    left, right = _reduced(widen(x)), _reduced(widen(y))
    product = Wide(left.mantissa * right.mantissa, left.exponent + right.exponent)
    return quantize_wide(product, format)


def _reduced(value: Wide) -> Wide:
    """The same values without trailing zeros, so that products of floats stay short."""
    zeros = (bit_length(value.mantissa & -value.mantissa) - 1).clamp(min=0)
    return Wide(value.mantissa >> zeros, value.exponent + zeros)
