"""Sigmoid and SiLU of fixed point by range reduction: power of two, reciprocal, product."""

from amaranth.hdl import Cat, Const, Module, Mux, Value, signed
from amaranth.lib import data
from amaranth.utils import bits_for

from mxhw.arith.pipeline import delay_value, register
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.lut.pwl import DSP, LUT, FunctionUnit, table_latency, table_value
from mxhw.lut.reciprocal import Scaled
from mxhw.lut.uniform import (
    EXP2_FRACTION_BITS,
    VALUE_FRACTION_BITS,
    exp2_table,
    reciprocal_table,
)
from mxhw.sw.golden.reduced import LOG2_E, LOG2_E_FRAC

__all__ = ["FixedSilu", "Product", "Sigmoid"]

_MOST_BITS = 16
_INDEX_BITS = (3, 4, 5)
_MOST_WHOLE_BITS = 11
"""exp(-1024) is 2**-1478, which the exponent of the result holds."""
_FAR = 17
_POWER_STAGE = 3 + table_latency(LUT)
_WEIGHT_STAGE = _POWER_STAGE + 1 + table_latency() + DSP.latency


class Product(data.StructLayout):
    """``mantissa * 2**exponent``, signed."""

    def __init__(self, *, mantissa_bits: int):
        super().__init__({"mantissa": signed(mantissa_bits), "exponent": signed(EXPONENT_BITS)})


def _sigmoid(m: Module, code: Value, frac: int, index_bits: int) -> tuple[Value, Value]:
    """Mantissa and exponent of the sigmoid, ``_WEIGHT_STAGE`` cycles after a registered code."""
    bits = len(code)
    magnitude = register(m, Mux(code[-1], -code, code)[:bits], "magnitude")
    product = DSP.product(m, magnitude, Const(LOG2_E), "log2")
    # At least one whole bit, which is 0 for a short code.
    t = Cat(product, Const(0, bits))[frac + LOG2_E_FRAC - EXP2_FRACTION_BITS :]
    power = register(m, -t, "power")
    fraction = power[:EXP2_FRACTION_BITS]
    mantissa = table_value(m, exp2_table(index_bits), fraction, "exp2", LUT)
    whole = (-power[EXP2_FRACTION_BITS:].as_signed()).as_unsigned()
    places = delay_value(m, whole, table_latency(LUT), "places")
    negative = delay_value(m, code[-1], _POWER_STAGE, "negative")

    near = Mux(places > _FAR, _FAR, places)[: bits_for(_FAR)]
    rest = register(m, (mantissa >> near)[:VALUE_FRACTION_BITS], "rest")
    one = Const(1 << VALUE_FRACTION_BITS, VALUE_FRACTION_BITS + 1)
    # For a power of 1 the denominator is 2; the table sees 1, and half the numerator makes up.
    numerator = Mux(places == 0, one >> 1, Mux(negative, mantissa, one))
    numerator = register(m, numerator, "numerator")
    numerator = delay_value(m, numerator, table_latency(), "numerator")
    reciprocal = table_value(m, reciprocal_table(index_bits), rest, "reciprocal")
    weight = DSP.product(m, reciprocal, numerator, "weight")
    weight = weight[VALUE_FRACTION_BITS:][: VALUE_FRACTION_BITS + 1]

    exponent = register(m, -VALUE_FRACTION_BITS - Mux(negative, places, 0), "exponent")
    later = _WEIGHT_STAGE - _POWER_STAGE - 1
    return weight, delay_value(m, exponent, later, "exponent")


class _SigmoidUnit(FunctionUnit):
    """Parameters that both units share."""

    def __init__(self, *, input_bits: int, input_frac: int, index_bits: int, o_shape, stages: int):
        self._input_bits = input_bits
        self._input_frac = input_frac
        self._index_bits = index_bits
        super().__init__(i_shape=signed(input_bits), o_shape=o_shape, stages=stages)

    @property
    def input_bits(self) -> int:
        """Width of the code."""
        return self._input_bits

    @property
    def input_frac(self) -> int:
        """Fraction bits of the code."""
        return self._input_frac

    @property
    def index_bits(self) -> int:
        """Logarithm of the tables' entries."""
        return self._index_bits


def _check(input_bits: object, input_frac: object, index_bits: object, name: str) -> None:
    limits = (
        (input_bits, "Input width", 4, _MOST_BITS),
        (input_frac, "Fraction bits", 0, _MOST_BITS - 1),
        (index_bits, "Index width", _INDEX_BITS[0], _INDEX_BITS[-1]),
    )
    for value, title, low, high in limits:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{title} of a {name} must be an integer, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{title} of a {name} must be between {low} and {high}, not {value}")
    if isinstance(input_bits, int) and isinstance(input_frac, int):
        whole = input_bits - input_frac
        if whole > _MOST_WHOLE_BITS:
            raise ValueError(
                f"Whole bits of a {name} must be at most {_MOST_WHOLE_BITS}, not {whole}"
            )


class Sigmoid(_SigmoidUnit):
    """``1 / (1 + exp(-x))`` of fixed point: bit for bit ``golden.reduced.sigmoid_fixed``.

    Maximum relative error, over all 16-bit codes with 8 fraction bits (both tails, to 2**-184):
    2.4e-3, 7.2e-4 and 4.3e-4 with tables of 8, 16 and 32 entries.

    Parameters
    ----------
    input_bits : int
        Width of the code, 4 to 16.
    input_frac : int
        Its fraction bits, 0 to 15.
    index_bits : int
        3, 4 or 5: logarithm of the tables' entries.

    Members
    -------
    i : ``In(stream.Signature(signed(input_bits)))``
    o : ``Out(stream.Signature(Scaled()))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not an integer or out of range.

    Timing: latency 13, interval 1.

    Cost: three DSP slices, two tables in LUTs, a shifter.
    """

    def __init__(self, *, input_bits: int = 16, input_frac: int = 8, index_bits: int = 5):
        _check(input_bits, input_frac, index_bits, "sigmoid")
        super().__init__(
            input_bits=input_bits,
            input_frac=input_frac,
            index_bits=index_bits,
            o_shape=Scaled(),
            stages=_WEIGHT_STAGE + 1,
        )

    @property
    def multipliers(self) -> int:
        """DSP slices: log2(e), the reciprocal's slope, the quotient."""
        return 3

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Mantissa and exponent."""
        code = register(m, payload, "code")
        mantissa, exponent = _sigmoid(m, code, self._input_frac, self._index_bits)
        return {"mantissa": mantissa, "exponent": exponent}


class FixedSilu(_SigmoidUnit):
    """``x * sigmoid(x)`` of fixed point: bit for bit ``golden.reduced.silu_fixed``.

    The relative error is that of :class:`Sigmoid`; the product is exact.

    Parameters
    ----------
    input_bits, input_frac, index_bits : int
        As of :class:`Sigmoid`.

    Members
    -------
    i : ``In(stream.Signature(signed(input_bits)))``
    o : ``Out(stream.Signature(Product(mantissa_bits=input_bits + 16)))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not an integer or out of range.

    Timing: latency 14, interval 1.

    Cost: four DSP slices, two tables in LUTs, a shifter.
    """

    def __init__(self, *, input_bits: int = 16, input_frac: int = 8, index_bits: int = 5):
        _check(input_bits, input_frac, index_bits, "SiLU")
        super().__init__(
            input_bits=input_bits,
            input_frac=input_frac,
            index_bits=index_bits,
            o_shape=Product(mantissa_bits=input_bits + VALUE_FRACTION_BITS + 1),
            stages=_WEIGHT_STAGE + 1 + DSP.latency,
        )

    @property
    def multipliers(self) -> int:
        """DSP slices: those of a sigmoid and the product."""
        return 4

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Mantissa and exponent."""
        code = register(m, payload, "code")
        weight, exponent = _sigmoid(m, code, self._input_frac, self._index_bits)
        late = delay_value(m, code, _WEIGHT_STAGE, "code")
        product = DSP.product(m, late, weight, "product")
        exponent = register(m, exponent - self._input_frac, "product_exponent")
        return {"mantissa": product, "exponent": exponent}
