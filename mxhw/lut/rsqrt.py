"""Reciprocal square root of a scaled positive integer: the factor of a normalisation."""

from amaranth.hdl import Cat, Const, Module, Mux, Value, signed, unsigned
from amaranth.lib import data

from mxhw.arith.pipeline import delay_value, register
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.lut.pwl import DSP, FunctionUnit, check_index_bits, table_latency, table_value
from mxhw.lut.reciprocal import NORMALISE_LATENCY, Scaled, check_input_bits, normalise
from mxhw.lut.uniform import VALUE_FRACTION_BITS, rsqrt_table

__all__ = ["Rsqrt", "Total", "rsqrt_latency", "rsqrt_value"]

_ONE = 1 << VALUE_FRACTION_BITS


class Total(data.StructLayout):
    """``mantissa * 2**exponent`` of a positive sum."""

    def __init__(self, *, mantissa_bits: int):
        super().__init__({"mantissa": unsigned(mantissa_bits), "exponent": signed(EXPONENT_BITS)})


def rsqrt_latency(inverse_mantissa: int) -> int:
    """Register stages of :func:`rsqrt_value`."""
    divide = 2 if inverse_mantissa != _ONE else 0
    return NORMALISE_LATENCY + divide + table_latency()


def rsqrt_value(
    m: Module,
    mantissa: Value,
    exponent: Value,
    inverse_mantissa: int,
    inverse_exponent: int,
    name: str,
    index_bits: int = 5,
) -> tuple[Value, Value]:
    """Mantissa and exponent of the factor, :func:`rsqrt_latency` cycles later."""
    top, highest = normalise(m, mantissa, name)
    exponent = register(m, exponent + inverse_exponent, f"{name}_exponent")
    exponent = register(m, exponent, f"{name}_exponent_1")
    exponent = (exponent + highest)[:EXPONENT_BITS].as_signed()
    if inverse_mantissa != _ONE:
        product = DSP.product(m, top, Const(inverse_mantissa), f"{name}_scaled")
        product = product[VALUE_FRACTION_BITS:]
        carry = product[VALUE_FRACTION_BITS + 1]
        top = register(m, Mux(carry, product[1:], product), f"{name}_top_1")
        exponent = register(m, exponent, f"{name}_exponent_2")
        exponent = register(m, (exponent + carry)[:EXPONENT_BITS].as_signed(), f"{name}_exponent_3")
    table = rsqrt_table(index_bits)
    code = Cat(top[:VALUE_FRACTION_BITS], exponent[0])
    value = table_value(m, table, code, f"{name}_root")
    half = register(m, exponent >> 1, f"{name}_half")
    half = register(m, -VALUE_FRACTION_BITS - half, f"{name}_exponent_root")
    stages = table_latency()
    return value, delay_value(m, half, stages - 2, f"{name}_exponent_root")


class Rsqrt(FunctionUnit):
    """``1 / sqrt(x * inverse)``: bit for bit ``golden.norm.rms_factor``.

    The 16 bits of the mantissa from its highest set bit on (floor) times ``inverse_mantissa``, 15
    bits cut, are one 16-bit mantissa ``m`` with the exponent ``e`` of a value in [1, 2). The
    result is the table's value of the low 15 bits of ``m``, plus 2**15 if ``e`` is odd, at the
    exponent ``-floor(e / 2) - 15``. A mantissa of 0 gives no meaningful result.

    Parameters
    ----------
    input_bits : int
        Width of the mantissa, 2 to 64.
    inverse_mantissa, inverse_exponent : int
        Factor below the root, ``inverse_mantissa * 2**(inverse_exponent - 15)``, the mantissa
        between 2**15 and 2**16 - 1: the reciprocal of a vector's length.
    index_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(Total(mantissa_bits=input_bits)))``
    o : ``Out(stream.Signature(Scaled()))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not an integer or out of range.

    Timing: latency 7, or 9 for a factor that is no power of two; interval 1.

    Cost: one DSP slice, or two for a factor that is no power of two; 32 entries of 26 bits in LUTs
    and one shifter.
    """

    def __init__(
        self,
        *,
        input_bits: int,
        inverse_mantissa: int = _ONE,
        inverse_exponent: int = 0,
        index_bits: int = 5,
    ):
        self._input_bits = check_input_bits(input_bits, "root")
        self._index_bits = check_index_bits(index_bits, "a root")
        for name, value in (("mantissa", inverse_mantissa), ("exponent", inverse_exponent)):
            if not isinstance(value, int):
                raise TypeError(f"Inverse {name} of a root must be an integer, not {value!r}")
        if not _ONE <= inverse_mantissa < 2 * _ONE:
            raise ValueError(
                f"Inverse mantissa of a root must be between {_ONE} and {2 * _ONE - 1}, "
                f"not {inverse_mantissa}"
            )
        if not -64 <= inverse_exponent <= 64:
            raise ValueError(
                f"Inverse exponent of a root must be between -64 and 64, not {inverse_exponent}"
            )
        self._inverse_mantissa = inverse_mantissa
        self._inverse_exponent = inverse_exponent
        super().__init__(
            i_shape=Total(mantissa_bits=input_bits),
            o_shape=Scaled(),
            stages=rsqrt_latency(inverse_mantissa) + 1,
        )

    @property
    def input_bits(self) -> int:
        """Width of the mantissa."""
        return self._input_bits

    @property
    def inverse_mantissa(self) -> int:
        """Mantissa of the factor below the root."""
        return self._inverse_mantissa

    @property
    def inverse_exponent(self) -> int:
        """Exponent of the factor below the root."""
        return self._inverse_exponent

    @property
    def index_bits(self) -> int:
        """Logarithm of the table's entries."""
        return self._index_bits

    @property
    def multipliers(self) -> int:
        """DSP slices."""
        return 1 if self._inverse_mantissa == _ONE else 2

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Mantissa and exponent of the factor."""
        mantissa, exponent = rsqrt_value(
            m,
            register(m, payload.mantissa, "mantissa"),
            register(m, payload.exponent, "exponent"),
            self._inverse_mantissa,
            self._inverse_exponent,
            "total",
            self._index_bits,
        )
        return {"mantissa": mantissa, "exponent": exponent}
