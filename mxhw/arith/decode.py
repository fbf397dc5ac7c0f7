"""From an element's code to its integer significand."""

from amaranth.hdl import Cat, Mux, Value

from mxhw.arith.pipeline import negate_if
from mxhw.formats import BlockFormat, ElementFormat

__all__ = ["MAX_SIGNIFICAND_BITS", "check_decodable", "decode", "decode_parts"]

MAX_SIGNIFICAND_BITS = 18
"""Widest significand that fits one multiplier of the usual devices."""


def check_decodable(format: BlockFormat, max_bits: int = MAX_SIGNIFICAND_BITS) -> BlockFormat:
    """Return the format if its significands have at most so many bits.

    Raises
    ------
    TypeError
        If it is no block format.
    ValueError
        If its significands have more: than 18 are those of E4M3, E5M2 and MXINT above 18.
    """
    if not isinstance(format, BlockFormat):
        raise TypeError(f"Format to decode must be a BlockFormat, not {format!r}")
    bits = format.element.significand_bits
    if bits > max_bits:
        raise ValueError(
            f"Significands must have at most {max_bits} bits, not {bits} (format {format.name})"
        )
    return format


def decode(format: BlockFormat, code: Value, max_bits: int = MAX_SIGNIFICAND_BITS) -> Value:
    """Signed significand of a code, as :meth:`mxhw.formats.ElementFormat.decode_table` has it.

    The logic is combinational: none for integers, a short shift and a negation for floats.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_decodable`.
    """
    element = check_decodable(format, max_bits).element
    code = Value.cast(code)
    if element.is_integer:
        return code.as_signed()
    mantissa = code[: element.mantissa_bits]
    exponent = code[element.mantissa_bits : element.bits - 1]
    normal = exponent.any()
    value = negate_if(code[-1], Cat(mantissa, normal))
    # The exponent less 1, of a normal number; a carry chain would be longer than the sum is wide.
    lower = [exponent[:index] for index in range(len(exponent))]
    amount = [normal & (exponent[index] ^ ~lower[index].any()) for index in range(len(exponent))]
    for index, bit in enumerate(amount):
        value = Mux(bit, value << (1 << index), value)[: element.significand_bits].as_signed()
    return value


def decode_parts(element: ElementFormat, code: Value) -> tuple[Value, Value | None]:
    """A code as ``significand * 2**shift`` in units of the element: both factors, short.

    The significand is signed; integers have no shift.
    """
    code = Value.cast(code)
    if element.is_integer:
        return code.as_signed(), None
    exponent = code[element.mantissa_bits : element.bits - 1]
    normal = exponent.any()
    significand = negate_if(code[-1], Cat(code[: element.mantissa_bits], normal))
    return significand, (exponent - normal)[: len(exponent)]
