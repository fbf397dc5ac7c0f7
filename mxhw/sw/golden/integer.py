"""Integer arithmetic that the contracts are written in, on torch int64 tensors.

Every function is exact for magnitudes below 2**53, of operands and results: a left shift beyond
that is a mistake of the caller, who saturates first.
"""

import torch

__all__ = ["accumulate", "bit_length", "shift_floor", "shift_round"]

_LONGEST_SHIFT = 62


def bit_length(value: torch.Tensor) -> torch.Tensor:
    """Number of bits of ``|value|``: 0 for 0, 1 for 1, 2 for 2 and 3."""
    return torch.frexp(value.to(torch.float64)).exponent.to(torch.int64)


def shift_floor(value: torch.Tensor, right: torch.Tensor | int) -> torch.Tensor:
    """``floor(value * 2**-right)``; a negative ``right`` shifts left."""
    right = torch.as_tensor(right, dtype=torch.int64)
    down = torch.bitwise_right_shift(value, right.clamp(0, _LONGEST_SHIFT))
    return torch.bitwise_left_shift(down, (-right).clamp(0, _LONGEST_SHIFT))


def shift_round(value: torch.Tensor, right: torch.Tensor | int) -> torch.Tensor:
    """``value * 2**-right`` rounded to nearest, ties to even; a negative ``right`` shifts left."""
    right = torch.as_tensor(right, dtype=torch.int64)
    shift = right.clamp(0, _LONGEST_SHIFT)
    whole = torch.bitwise_right_shift(value, shift)
    rest = value - torch.bitwise_left_shift(whole, shift)
    # A tie goes up where the whole part is odd: both sides are even but for that bit.
    whole = whole + (2 * rest + (whole & 1) > torch.bitwise_left_shift(1, shift))
    return torch.bitwise_left_shift(whole, (-right).clamp(0, _LONGEST_SHIFT))


def accumulate(
    terms: torch.Tensor, exponents: torch.Tensor, *, guard_bits: int, align_bits: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum terms of different exponents in order, aligned to the running maximum exponent.

    Term ``b`` has the value ``terms[..., b] * 2**exponents[..., b]``. The accumulator starts as
    ``terms[..., 0] << guard_bits`` at ``exponents[..., 0]``. Each further term ``p`` at ``e``
    moves the accumulator ``a`` at ``E`` to ``E' = max(E, e)`` and
    ``a' = floor(a * 2**(E - E')) + floor((p << guard_bits) * 2**(e - E'))``.

    With ``align_bits`` a term ``p`` at ``e`` counts as ``p << (e % 2**align_bits)`` at the multiple
    of ``2**align_bits`` at or below ``e``; all exponents of the accumulator are such multiples.

    Returns
    -------
    tuple
        The accumulator and its exponent, ``guard_bits`` below the largest exponent of the terms.
    """
    if align_bits:
        aligned = exponents >> align_bits << align_bits
        terms, exponents = terms << (exponents - aligned), aligned
    terms = terms << guard_bits
    total = terms[..., 0]
    exponent = exponents[..., 0].expand_as(total)
    for index in range(1, terms.shape[-1]):
        own = exponents[..., index]
        new = torch.maximum(exponent, own)
        # Both shifts go to the right.
        term = terms[..., index] >> (new - own).clamp(max=_LONGEST_SHIFT)
        total = (total >> (new - exponent).clamp(max=_LONGEST_SHIFT)) + term
        exponent = new
    return total, exponent - guard_bits
