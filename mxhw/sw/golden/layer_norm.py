"""The factor of a layer normalisation from a vector's sum and sum of squares."""

import torch

from mxhw.lut.uniform import rsqrt_table
from mxhw.sw.golden.integer import shift_floor
from mxhw.sw.golden.norm import NormConstants, rms_factor
from mxhw.sw.golden.tensor import Wide

__all__ = ["layer_norm_factor", "variance_bits"]

_EXACT_BITS = 50
_CUT_BITS = 12


def variance_bits(code_bits: int, dim: int) -> int:
    """Width of ``dim**2`` times a variance and its epsilon, for codes of a width."""
    return 2 * (code_bits + (dim - 1).bit_length()) + 1


def layer_norm_factor(
    total: torch.Tensor,
    squares: torch.Tensor,
    exponent: torch.Tensor,
    *,
    code_bits: int,
    dim: int,
    epsilon: float,
    index_bits: int = 5,
) -> Wide:
    """``1 / sqrt(variance + epsilon)`` of integer codes at the unit ``2**exponent``.

    Contract: ``v = dim * squares - total**2`` is exact, ``dim**2`` times the variance in units.
    ``dim**2 * epsilon`` is a 16-bit mantissa and an exponent. It is moved to the unit of ``v``
    (floor, at least 1); where it would exceed ``variance_bits - 1`` bits, both are moved to the
    right (floor) until it does not. The result is ``rms_factor`` of their sum at its exponent, with
    the mantissa of ``1 / dim**2``.

    Parameters
    ----------
    total, squares, exponent : int64 tensors
        Sum of the codes, sum of their squares, exponent of their unit (-256 to 255).
    index_bits : int
        The table has ``2**index_bits`` entries.
    """
    constants = NormConstants.of(dim * dim, epsilon)
    reach = variance_bits(code_bits, dim) - 1 - constants.epsilon_mantissa.bit_length()
    places = constants.epsilon_exponent - 2 * exponent
    over = (places - reach).clamp(min=0)
    mantissa = torch.full_like(total, constants.epsilon_mantissa)
    small = shift_floor(mantissa, -places.clamp(max=reach)).clamp(min=1)
    v = shift_floor(dim * squares - total * total, over) + small
    # Only the top 16 bits count, and the length of more than 53 bits is not exact in float64.
    cut = torch.where(v >> _EXACT_BITS > 0, _CUT_BITS, 0)
    return rms_factor(Wide(v >> cut, 2 * exponent + over + cut), constants, rsqrt_table(index_bits))
