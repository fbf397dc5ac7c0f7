"""Power of two of a fixed-point number: table mantissa and integer exponent."""

from amaranth.hdl import Module, Value, signed, unsigned
from amaranth.lib import data

from mxhw.arith.pipeline import delay_value
from mxhw.lut.pwl import LUT, FunctionUnit, check_index_bits, table_latency, table_value
from mxhw.lut.uniform import EXP2_FRACTION_BITS, exp2_table

__all__ = ["Exp2", "Power", "exp2_latency", "exp2_value"]

_SMALLEST_BITS = EXP2_FRACTION_BITS + 1
_LARGEST_BITS = 32


class Power(data.StructLayout):
    """``mantissa * 2**(exponent - 15)``, the mantissa in [2**15, 2**16)."""

    def __init__(self, *, exponent_bits: int):
        super().__init__({"mantissa": unsigned(16), "exponent": signed(exponent_bits)})


def exp2_latency() -> int:
    """Register stages of :func:`exp2_value`."""
    return table_latency(LUT)


def exp2_value(m: Module, exponent: Value, name: str, index_bits: int = 5) -> tuple[Value, Value]:
    """Mantissa and exponent of ``2**exponent``, :func:`exp2_latency` cycles later."""
    code = exponent[:EXP2_FRACTION_BITS]
    mantissa = table_value(m, exp2_table(index_bits), code, name, LUT)
    whole = exponent[EXP2_FRACTION_BITS:].as_signed()
    return mantissa, delay_value(m, whole, exp2_latency(), f"{name}_whole")


class Exp2(FunctionUnit):
    """``2**t`` of fixed point with 12 fraction bits: bit for bit ``golden.attention.exp2_fixed``.

    The exponent is ``t >> 12`` (floor), the mantissa the table's value of the 12 fraction bits.

    Parameters
    ----------
    input_bits : int
        Width of ``t``, two's complement, 13 to 32.
    index_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(signed(input_bits)))``
    o : ``Out(stream.Signature(Power(exponent_bits=input_bits - 12)))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not an integer or out of range.

    Timing: latency 4, interval 1.

    Cost: no DSP slice; 32 entries of 27 bits and a product of 10 x 7 bits in LUTs. Fewer entries
    make the product wider and take more LUTs of four inputs, not less.
    """

    def __init__(self, *, input_bits: int, index_bits: int = 5):
        if not isinstance(input_bits, int):
            raise TypeError(f"Input width of a power must be an integer, not {input_bits!r}")
        if not _SMALLEST_BITS <= input_bits <= _LARGEST_BITS:
            raise ValueError(
                f"Input width of a power must be between {_SMALLEST_BITS} and {_LARGEST_BITS}, "
                f"not {input_bits}"
            )
        self._input_bits = input_bits
        self._index_bits = check_index_bits(index_bits, "a power")
        super().__init__(
            i_shape=signed(input_bits),
            o_shape=Power(exponent_bits=input_bits - EXP2_FRACTION_BITS),
            stages=exp2_latency(),
        )

    @property
    def input_bits(self) -> int:
        """Width of the input."""
        return self._input_bits

    @property
    def index_bits(self) -> int:
        """Logarithm of the table's entries."""
        return self._index_bits

    @property
    def multipliers(self) -> int:
        """DSP slices."""
        return 0

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Mantissa and exponent."""
        mantissa, exponent = exp2_value(m, payload, "exp2", self._index_bits)
        return {"mantissa": mantissa, "exponent": exponent}
