"""Highest bits of signed mantissas, and exponents and distances that are limited."""

from amaranth.hdl import Cat, Const, Module, Value

from mxhw.arith.pipeline import wire
from mxhw.formats import SCALE_BITS

__all__ = [
    "add_carry",
    "clamp_amount",
    "clamp_scale",
    "is_low",
    "is_negative_power",
    "magnitude_bits",
    "ones_complement",
]


def ones_complement(value: Value) -> Value:
    """Bits of ``value``, or of ``-value - 1`` if it is negative, without the sign."""
    width = len(value) - 1
    return value[:width] ^ value[-1].replicate(width)


def is_negative_power(value: Value) -> Value:
    """Whether ``value`` is -1, -2, -4...: ones, then only zeros, from the sign down."""
    rises = value[:-1] & ~value[1:]
    return value[-1] & ~rises.any()


def magnitude_bits(value: Value) -> Value:
    """A word whose highest set bit is that of ``|value|``."""
    width = len(value)
    power = is_negative_power(value)
    fall = value & ~Cat(Const(0, 1), value[:-1])
    return Cat(ones_complement(value), Const(0, 1)) | (fall & power.replicate(width))


def add_carry(left: Value, right: Value, carry: Value) -> Value:
    """``left + right + carry`` in one carry chain; ``left`` is signed, ``right`` is not."""
    total = Cat(carry, left).as_signed() + Cat(carry, right)
    return total[1:].as_signed()


def is_low(value: Value) -> Value:
    """Whether a signed exponent is below -127."""
    rest = value[SCALE_BITS - 1 :]
    return value[-1] & (~rest.all() | ~value[: SCALE_BITS - 1].any())


def clamp_scale(value: Value, zero: Value) -> tuple[Value, Value]:
    """A signed exponent limited to -127 to 127 (the least for zero), and whether it was higher."""
    low = zero | is_low(value)
    high = ~value[-1] & value[SCALE_BITS - 1 :].any() & ~zero
    body = (value[1 : SCALE_BITS - 1] | high.replicate(SCALE_BITS - 2)) & ~low.replicate(
        SCALE_BITS - 2
    )
    return Cat(value[0] | high | low, body, low | (value[-1] & ~high)).as_signed(), high


def clamp_amount(m: Module, value: Value, bits: int) -> Value:
    """A signed value limited to an unsigned range of ``bits`` bits."""
    value = wire(m, value, "amount")
    high = value[bits:-1].any()
    return (value[:bits] | high.replicate(bits)) & (~value[-1]).replicate(bits)
