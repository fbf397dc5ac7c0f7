"""Reciprocal of a positive integer: normalise to 16 bits, table mantissa, exponent."""

from amaranth.hdl import Cat, Const, Module, Value, signed, unsigned
from amaranth.lib import data

from mxhw.arith.pipeline import bit_index, delay_value, register
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.lut.pwl import FunctionUnit, check_index_bits, table_latency, table_value
from mxhw.lut.uniform import VALUE_FRACTION_BITS, reciprocal_table

__all__ = [
    "NORMALISE_LATENCY",
    "Reciprocal",
    "Scaled",
    "check_input_bits",
    "normalise",
]

NORMALISE_LATENCY = 2
"""Register stages of :func:`normalise`."""

NORMALISED_BITS = 16

_SMALLEST_BITS = 2
_LARGEST_BITS = 64


class Scaled(data.StructLayout):
    """``mantissa * 2**exponent`` of a factor in [2**14, 2**15]."""

    def __init__(self):
        super().__init__({"mantissa": unsigned(16), "exponent": signed(EXPONENT_BITS)})


def check_input_bits(input_bits: object, name: str) -> int:
    """The width of a unit's input, or an error that calls the unit ``name``."""
    if not isinstance(input_bits, int):
        raise TypeError(f"Input width of a {name} must be an integer, not {input_bits!r}")
    if not _SMALLEST_BITS <= input_bits <= _LARGEST_BITS:
        raise ValueError(
            f"Input width of a {name} must be between {_SMALLEST_BITS} and {_LARGEST_BITS}, "
            f"not {input_bits}"
        )
    return input_bits


def normalise(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """Top 16 bits from the highest set bit on (zeros below bit 0), and that bit's position.

    Both :data:`NORMALISE_LATENCY` cycles after ``value``, which must not be 0.
    """
    width = 1 << (max(len(value), NORMALISED_BITS) - 1).bit_length()
    # Padding below makes the shift the complement of the position, without a subtraction.
    padding = width - len(value)
    aligned = Cat(Const(0, padding), value)
    position, _ = bit_index(m, aligned, f"{name}_index")
    position = register(m, position, f"{name}_position")
    aligned = register(m, aligned, f"{name}_aligned")
    shifted = (aligned << ~position)[:width]
    top = register(m, shifted[width - NORMALISED_BITS :], f"{name}_top")
    return top, register(m, position, f"{name}_position_1") - padding


class Reciprocal(FunctionUnit):
    """``1 / x`` of a positive integer: the reciprocal of ``golden.attention.values``.

    The 16 bits of ``x`` from its highest set bit ``h`` on (floor) are ``m``; the mantissa is the
    table's value of the low 15 bits of ``m``, the exponent ``-15 - h``. 0 has no meaningful result.

    Parameters
    ----------
    input_bits : int
        Width of ``x``, 2 to 64.
    index_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(unsigned(input_bits)))``
    o : ``Out(stream.Signature(Scaled()))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not an integer or out of range.

    Timing: latency 7, interval 1.

    Cost: one DSP slice; 32 entries of 26 bits in LUTs and one shifter.
    """

    def __init__(self, *, input_bits: int, index_bits: int = 5):
        self._input_bits = check_input_bits(input_bits, "reciprocal")
        self._index_bits = check_index_bits(index_bits, "a reciprocal")
        super().__init__(
            i_shape=unsigned(input_bits),
            o_shape=Scaled(),
            stages=NORMALISE_LATENCY + table_latency() + 1,
        )

    @property
    def input_bits(self) -> int:
        """Width of the input."""
        return self._input_bits

    @property
    def index_bits(self) -> int:
        """Logarithm of the table's entries."""
        return self._index_bits

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Mantissa and exponent."""
        table = reciprocal_table(self._index_bits)
        stages = table_latency()
        # The stream's payload may come from logic: the count is alone behind a register.
        value = register(m, payload, "value")
        top, highest = normalise(m, value, "value")
        mantissa = table_value(m, table, top[:VALUE_FRACTION_BITS], "reciprocal")
        exponent = register(m, -VALUE_FRACTION_BITS - highest, "exponent")
        return {
            "mantissa": mantissa,
            "exponent": delay_value(m, exponent, stages - 1, "exponent"),
        }
