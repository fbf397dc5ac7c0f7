"""From an element's code to its integer significand."""

from amaranth.hdl import Cat, Const, Mux, Value

from mxhw.formats import BlockFormat

__all__ = ["MAX_SIGNIFICAND_BITS", "check_decodable", "decode"]

MAX_SIGNIFICAND_BITS = 18
"""Widest significand that fits one multiplier of the usual devices."""


def check_decodable(format: BlockFormat) -> BlockFormat:
    """Return the format if :func:`decode` can serve it.

    Raises
    ------
    TypeError
        If it is no block format.
    ValueError
        If its significands have more than 18 bits (E4M3, E5M2, MXINT above 18).
    """
    if not isinstance(format, BlockFormat):
        raise TypeError(f"Format to decode must be a BlockFormat, not {format!r}")
    bits = format.element.significand_bits
    if bits > MAX_SIGNIFICAND_BITS:
        raise ValueError(
            f"Significands must have at most {MAX_SIGNIFICAND_BITS} bits, not {bits} "
            f"(format {format.name})"
        )
    return format


def decode(format: BlockFormat, code: Value) -> Value:
    """Signed significand of a code, as :meth:`mxhw.formats.ElementFormat.decode_table` has it.

    The logic is combinational: none for integers, a short shift and a negation for floats.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_decodable`.
    """
    element = check_decodable(format).element
    code = Value.cast(code)
    if element.is_integer:
        return code.as_signed()
    mantissa = code[: element.mantissa_bits]
    exponent = code[element.mantissa_bits : element.bits - 1]
    normal = exponent.any()
    significand = Cat(mantissa, normal)
    width = element.significand_bits - 1
    magnitude: Value = Cat(significand, Const(0, width - len(significand)))
    for value in range(2, 1 << element.exponent_bits):
        shifted = Cat(Const(0, value - 1), significand)
        magnitude = Mux(exponent == value, shifted, magnitude)
    signed = Cat(magnitude[:width], Const(0, 1)).as_signed()
    return Mux(code[-1], -signed, signed)[: width + 1].as_signed()
