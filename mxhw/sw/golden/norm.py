"""RMSNorm on wide MX blocks."""

import dataclasses
import math

import torch

from mxhw.formats import BlockFormat
from mxhw.lut.uniform import UniformTable, rsqrt_table
from mxhw.sw.golden.integer import accumulate, bit_length, shift_floor
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide

__all__ = ["NormConstants", "rms_factor", "rms_norm"]

_MANTISSA_BITS = 16


@dataclasses.dataclass(frozen=True)
class NormConstants:
    """Integers that a normalisation of ``dim`` elements needs.

    Members
    -------
    epsilon_mantissa, epsilon_exponent : int
        ``dim * epsilon``, 16 bits, normalised.
    inverse_mantissa, inverse_exponent : int
        ``1 / dim = inverse_mantissa * 2**(inverse_exponent - 15)``, the mantissa in [2**15, 2**16).
    """

    epsilon_mantissa: int
    epsilon_exponent: int
    inverse_mantissa: int
    inverse_exponent: int

    @classmethod
    def of(cls, dim: int, epsilon: float) -> "NormConstants":
        """Constants of a dimension and an epsilon > 0."""

        def normalise(value: float) -> tuple[int, int]:
            fraction, exponent = math.frexp(value)
            mantissa = round(fraction * (1 << _MANTISSA_BITS))
            if mantissa == 1 << _MANTISSA_BITS:
                return mantissa >> 1, exponent + 1 - _MANTISSA_BITS
            return mantissa, exponent - _MANTISSA_BITS

        epsilon_mantissa, epsilon_exponent = normalise(dim * epsilon)
        inverse_mantissa, inverse_exponent = normalise(1 / dim)
        return cls(
            epsilon_mantissa,
            epsilon_exponent,
            inverse_mantissa,
            inverse_exponent + _MANTISSA_BITS - 1,
        )


def rms_factor(total: Wide, constants: NormConstants, table: UniformTable) -> Wide:
    """``1 / sqrt(total / dim)``: mantissa with 15 fraction bits from the table, and its exponent.

    Contract: ``total`` (> 0) is cut to a 16-bit mantissa ``m`` (floor), ``m * 2**e``. With
    ``m = (m * inverse_mantissa) >> 15`` and one more right shift if that reaches 2**16, the
    exponent ``e`` of a mantissa in [1, 2) follows. The table's code is the low 15 bits of ``m``,
    plus 2**15 if ``e`` is odd; the result's exponent is ``-floor(e / 2) - 15``.
    """
    length = bit_length(total.mantissa)
    mantissa = shift_floor(total.mantissa, length - _MANTISSA_BITS)
    exponent = total.exponent + length - 1 + constants.inverse_exponent
    mantissa = (mantissa * constants.inverse_mantissa) >> (_MANTISSA_BITS - 1)
    carry = mantissa >> _MANTISSA_BITS
    mantissa = mantissa >> carry
    exponent = exponent + carry
    code = (mantissa & 0x7FFF) + ((exponent & 1) << 15)
    return Wide(table.evaluate(code), -(exponent >> 1) - 15)


def rms_norm(
    x: MXTensor,
    weight: MXTensor | None,
    epsilon: float,
    dim: int,
    format: BlockFormat,
    rsqrt_bits: int = 5,
) -> MXTensor:
    """``x / sqrt(mean(x**2) + epsilon) * weight``, requantised.

    Contract: ``total = accumulate([dim * epsilon, q_0, q_1, ...])`` without guard bits, where
    ``q_b`` is the exact sum of squares of block ``b`` at twice its unit's exponent. The factor
    ``r`` is :func:`rms_factor`. ``y = x * r`` exact; with a weight ``y = ((x * r) >> 15) * w``.

    Parameters
    ----------
    x : MXTensor ``[..., dim]`` in a wide integer format
    weight : MXTensor ``[dim]`` in the same format, or None for all ones
    rsqrt_bits : int
        Logarithm of the table's entries.
    """
    constants = NormConstants.of(dim, epsilon)
    values = x.significands()
    squares = (values * values).sum(-1)
    head = torch.full_like(squares[..., :1], constants.epsilon_mantissa)
    head_exponent = torch.full_like(head, constants.epsilon_exponent)
    total, exponent = accumulate(
        torch.cat([head, squares], -1),
        torch.cat([head_exponent, 2 * x.exponents()], -1),
        guard_bits=0,
    )
    factor = rms_factor(Wide(total, exponent), constants, rsqrt_table(rsqrt_bits))
    product = values * factor.mantissa[..., None, None]
    unit = (x.exponents() + factor.exponent.unsqueeze(-1)).unsqueeze(-1)
    if weight is not None:
        product = (product >> 15) * weight.significands()
        unit = unit + 15 + weight.exponents().unsqueeze(-1)
    unit = unit.expand_as(product)
    return quantize_wide(Wide(product.flatten(-2), unit.flatten(-2)), format)
