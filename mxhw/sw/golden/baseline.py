"""Number formats without a block scale, which MX formats are compared with."""

import dataclasses

import torch

from mxhw.formats import ElementFormat, FixedFormat
from mxhw.sw.golden.tensor import Wide, encode_float, sign_of_zero

__all__ = ["FixedTensor", "dequantize_minifloat", "quantize_fixed", "quantize_minifloat"]


@dataclasses.dataclass(frozen=True)
class FixedTensor:
    """A tensor in fixed point.

    Members
    -------
    elements : int64 tensor
        Signed codes, in the shape of the quantised tensor.
    scales : float32 tensor
        One value, or one for each row with the quantised axis kept as 1.
    format : FixedFormat
    """

    elements: torch.Tensor
    scales: torch.Tensor
    format: FixedFormat

    def dequantize(self) -> torch.Tensor:
        """Values as float32: code times scale, rounded once."""
        return self.elements.to(torch.float32) * self.scales


def quantize_fixed(x: torch.Tensor, format: FixedFormat, axis: int = -1) -> FixedTensor:
    """Quantise a finite float tensor to fixed point (:class:`FixedFormat`).

    Contract: ``scale = max|x| / max_code`` in float32, over the tensor or over ``axis``; a code is
    ``x / scale`` in float64, rounded to nearest even and limited to ``+-max_code``.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("Tensor to quantise must be finite")
    largest = x.abs().amax(axis, keepdim=True) if format.granularity == "row" else x.abs().amax()
    scales = (largest.to(torch.float64) / format.max_code).to(torch.float32)
    safe = torch.where(scales > 0, scales, 1.0).to(torch.float64)
    codes = (x.to(torch.float64) / safe).round().clamp(-format.max_code, format.max_code)
    codes = torch.where(scales > 0, codes, 0.0)
    return FixedTensor(codes.to(torch.int64), scales, format)


def quantize_minifloat(x: torch.Tensor, element: ElementFormat) -> torch.Tensor:
    """Codes of a plain minifloat, without any scale: nearest even, saturated to the largest finite.

    Raises
    ------
    ValueError
        If the format is no float or a value is not finite.
    """
    if element.is_integer:
        raise ValueError(f"Format of a minifloat must be a float, not {element.name}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("Tensor to quantise must be finite")
    fraction, exponent = torch.frexp(x.detach().to(torch.float64))
    value = Wide((fraction * 2.0**53).to(torch.int64), exponent.to(torch.int64) - 53)
    codes = encode_float(element, value, torch.zeros((), dtype=torch.int64))
    return codes | sign_of_zero(x, element)


def dequantize_minifloat(codes: torch.Tensor, element: ElementFormat) -> torch.Tensor:
    """Values of minifloat codes as float32."""
    return torch.from_numpy(element.value_table()).to(torch.float32)[codes]
