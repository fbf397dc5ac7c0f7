"""Piecewise-linear unit for float32: the baseline that integer units are compared with."""

from collections.abc import Callable
from struct import pack, unpack

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.dot import queue_depth
from mxhw.arith.pipeline import (
    OutputQueue,
    bit_index,
    delay,
    delay_value,
    register,
)
from mxhw.lut.pwl import DSP, Multiplier
from mxhw.lut.pwl_unit import ENTRIES, check_choice
from mxhw.lut.search import (
    FixedPoints,
    LoadedTable,
    PointReader,
    find_segment,
    levels_of,
    read_constants,
)
from mxhw.lut.table import PwlTable
from mxhw.sw.golden.pwl import FloatWords

__all__ = ["FloatPwlUnit", "FloatTableWord", "LoadableFloatPwlUnit"]

_BITS = 32
_FRACTION_BITS = 23
_BIAS = 127
_GUARD_BITS = 3
_NAN = 0x7FC00000
_INFINITY = 0x7F800000
_SUM_STAGES = 5
_UNPACK_STAGES = 1
_ROUND_STAGES = 1


def _bits(value: float) -> int:
    """Bit pattern of a float32 number; zero is positive."""
    return unpack("<I", pack("<f", value + 0.0))[0]


def _key(bits: int) -> int:
    """Signed integer that orders as the float does."""
    magnitude = bits & 0x7FFFFFFF
    return -magnitude if bits >> 31 else magnitude


class FloatTableWord(data.StructLayout):
    """One entry of a float32 table and the breakpoint below it, as bit patterns.

    The breakpoint is a key: the pattern without its sign, negated if that is set.
    """

    def __init__(self):
        super().__init__(
            {
                "breakpoint": signed(_BITS),
                "slope": unsigned(_BITS),
                "intercept": unsigned(_BITS),
            }
        )


class _Parts:
    """Fields of a float32 pattern; subnormal numbers are zero."""

    def __init__(self, bits: Value):
        self.sign = bits[31]
        self.exponent = bits[_FRACTION_BITS:31]
        self.zero = ~self.exponent.any()
        self.special = self.exponent.all()
        self.significand = Cat(bits[:_FRACTION_BITS], Const(1, 1))


def _round(m: Module, significand: Value, rest: Value, exponent: Value) -> tuple[Value, Value]:
    """24 bits rounded to nearest even by what follows them; a signed exponent that may grow."""
    up = rest[-1] & (rest[:-1].any() | significand[0])
    total = Signal(_FRACTION_BITS + 2)
    m.d.comb += total.eq(significand + up)
    # A carry leaves a significand of zeros, whose fraction is right as it is.
    return total[:_FRACTION_BITS], exponent + total[-1]


def _pattern(sign: Value, exponent: Value, fraction: Value, zero: Value) -> Value:
    """Pattern of a rounded result: zero, infinite above the largest exponent, or normal."""
    infinite = ~exponent[-1] & (exponent >= 255)
    normal = Cat(fraction, exponent[:8])
    return Mux(zero, 0, Cat(Mux(infinite, Const(_INFINITY, 31), normal), sign))


def _multiply(m: Module, x: Value, slope: Value, multiplier: Multiplier) -> Value:
    """Rounded product of two patterns; zero if either is zero."""
    a, b = _Parts(x), _Parts(slope)
    later = multiplier.latency
    product = multiplier.product(m, a.significand, b.significand, "product")
    exponent = delay_value(m, a.exponent + b.exponent - _BIAS, later, "product_exponent")
    sign = delay_value(m, a.sign ^ b.sign, later, "product_sign")
    zero = delay_value(m, a.zero | b.zero, later, "product_zero")
    infinite = delay_value(m, a.special, later, "product_infinite")
    high = product[-1]
    normalised = Mux(high, product, Cat(Const(0, 1), product[:-1]))
    exponent = (exponent + high).as_signed()
    split = _FRACTION_BITS + 1
    fraction, rounded = _round(m, normalised[split:], normalised[:split], exponent)
    flushed = zero | (exponent <= 0)
    pattern = _pattern(sign, rounded, fraction, flushed)
    pattern = Mux(infinite & ~zero, Cat(Const(_INFINITY, 31), sign), pattern)
    return register(m, pattern, "product_rounded")


def _add(m: Module, left: Value, right: Value) -> Value:
    """Rounded sum of two patterns, of which only the left one may be infinite; 5 stages."""
    swap = left[:31] < right[:31]
    big, small = _Parts(Mux(swap, right, left)), _Parts(Mux(swap, left, right))
    subtract = register(m, big.sign ^ small.sign, "sum_subtract")
    distance = register(m, (big.exponent - small.exponent)[:8], "sum_distance")
    larger = register(m, Mux(big.zero, 0, big.significand), "sum_larger")
    smaller = register(m, Mux(small.zero, 0, small.significand), "sum_smaller")
    sign = delay_value(m, big.sign, _SUM_STAGES - 1, "sum_sign")
    exponent = delay_value(m, big.exponent, 3, "sum_exponent")
    infinite = delay_value(m, big.special, _SUM_STAGES - 1, "sum_infinite")

    width = _FRACTION_BITS + 1 + _GUARD_BITS
    wide = Cat(Const(0, _GUARD_BITS), smaller)
    far = distance[5:].any()
    places = distance[:5]
    moved = Mux(far, 0, wide >> places)[:width]
    mask = ((Const(1, width + 6) << places) - 1)[:width]
    lost = Mux(far, smaller.any(), (wide & mask).any())
    aligned = register(m, Cat(moved[0] | lost, moved[1:]), "sum_aligned")
    larger = register(m, larger, "sum_larger_1")
    subtract = register(m, subtract, "sum_subtract_1")

    wide_larger = Cat(Const(0, _GUARD_BITS), larger)
    total = Mux(subtract, wide_larger - aligned, wide_larger + aligned)[: width + 1]
    total = register(m, total, "sum_total")

    position, some = bit_index(m, total, "sum_top")
    shifted = register(m, (total << (width - position)[:5])[: width + 1], "sum_shifted")
    exponent = register(m, exponent + position - (width - 1), "sum_unrounded")
    none = register(m, ~some, "sum_none")

    split = _GUARD_BITS + 1
    fraction, rounded = _round(m, shifted[split:], shifted[:split], exponent)
    pattern = _pattern(sign, rounded, fraction, none | (exponent <= 0))
    pattern = Mux(infinite, Cat(Const(_INFINITY, 31), sign), pattern)
    return register(m, pattern, "sum_rounded")


class _FloatBase(wiring.Component):
    """Pipeline and ports that both units share."""

    def __init__(self, *, entries: int, multiplier: Multiplier, ports: dict | None = None):
        check_choice(entries, "Entries", ENTRIES)
        if not isinstance(multiplier, Multiplier):
            raise TypeError(
                f"Multiplier of a piecewise-linear unit must be a DspMultiplier or a "
                f"LutMultiplier, not {multiplier!r}"
            )
        self._entries = entries
        self._multiplier = multiplier
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(_BITS))),
                "o": Out(stream.Signature(unsigned(_BITS))),
                **(ports or {}),
            }
        )

    @property
    def entries(self) -> int:
        """Segments."""
        return self._entries

    @property
    def multiplier(self) -> Multiplier:
        """Strategy of the significands' product."""
        return self._multiplier

    @property
    def _stages(self) -> int:
        """Registers from an input to the queue."""
        product = self._multiplier.latency + _ROUND_STAGES
        return _UNPACK_STAGES + levels_of(self._entries) + 1 + product + _SUM_STAGES

    @property
    def latency(self) -> int:
        """Cycles from the transfer of an input to the transfer of its output."""
        return self._stages + 1

    @property
    def interval(self) -> int:
        """Cycles from one input to the next."""
        return 1

    def _pipeline(
        self,
        m: Module,
        allowed: Value,
        points: PointReader,
        coefficients: Callable[[Module, Value], tuple[Value, Value]],
    ) -> Value:
        """Everything between the ports; returns whether no code is before its coefficients."""
        m.submodules.queue = queue = OutputQueue(
            shape=unsigned(_BITS), depth=queue_depth(self._stages)
        )
        taken = Signal()
        ready = allowed & queue.free
        m.d.comb += [self.i.ready.eq(ready), taken.eq(self.i.valid & ready)]
        x = register(m, self.i.payload, "x")
        magnitude = Mux(_Parts(x).zero, 0, x[:31])
        key = Mux(x[31], -magnitude, magnitude)
        segment, _ = find_segment(m, key, self._entries, points, "search")
        x = delay_value(m, x, levels_of(self._entries) + 1, "x")
        slope, intercept = coefficients(m, segment)
        slope = register(m, slope, "slope")
        later = self._multiplier.latency + _ROUND_STAGES
        intercept = delay_value(m, intercept, 1 + later, "intercept")
        product = _multiply(m, x, slope, self._multiplier)
        nan = delay_value(
            m, _Parts(x).special & x[:_FRACTION_BITS].any(), later + _SUM_STAGES, "nan"
        )
        on_the_way: list[Value] = [taken]
        for number in range(self._stages):
            on_the_way.append(delay(m, on_the_way[-1], 1, f"taken_{number}"))
        m.d.comb += [
            queue.reserve.eq(taken),
            queue.i.valid.eq(on_the_way[-1]),
            queue.i.payload.eq(Mux(nan, _NAN, _add(m, product, intercept))),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        return ~Cat(on_the_way[1 : 2 + levels_of(self._entries)]).any()


class FloatPwlUnit(_FloatBase):
    """A piecewise-linear table of float32 numbers: bit for bit ``golden.pwl.float_pwl_values``.

    Product and sum are rounded to nearest even, each; subnormal numbers count as zero; a slope of
    0 gives the intercept; NaN gives NaN.

    Parameters
    ----------
    table : PwlTable
        8, 16 or 32 entries.
    multiplier : DspMultiplier or LutMultiplier

    Members
    -------
    i, o : ``stream.Signature(unsigned(32))``
        Bit patterns.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported or a number of the table is no float32 number.

    Timing: latency 9 + log2 of the entries + that of the multiplier, interval 1.

    Cost: a product of 24 x 24 bits, a comparator a level, two shifters.
    """

    def __init__(self, *, table: PwlTable, multiplier: Multiplier = DSP):
        if not isinstance(table, PwlTable):
            raise TypeError(f"Table of a piecewise-linear unit must be a PwlTable, not {table!r}")
        super().__init__(entries=table.entries, multiplier=multiplier)
        self._words = FloatWords.of(table)

    @property
    def words(self) -> FloatWords:
        """The table's numbers."""
        return self._words

    def elaborate(self, platform):
        """Put the table between the ports."""
        m = Module()
        words, shape = self._words, unsigned(_BITS)
        slopes = [_bits(value) for value in words.slopes]
        intercepts = [_bits(value) for value in words.intercepts]

        def coefficients(m: Module, segment: Value) -> tuple[Value, Value]:
            return (
                read_constants(m, segment, slopes, shape, "slopes"),
                read_constants(m, segment, intercepts, shape, "intercepts"),
            )

        points = FixedPoints([_key(_bits(value)) for value in words.breakpoints], _BITS)
        self._pipeline(m, Const(1, 1), points, coefficients)
        return m


class LoadableFloatPwlUnit(_FloatBase):
    """A :class:`FloatPwlUnit` whose table is loaded as that of ``LoadablePwlUnit``.

    Parameters
    ----------
    entries : int
        8, 16 or 32.
    multiplier : DspMultiplier or LutMultiplier

    Members
    -------
    i, o : ``stream.Signature(unsigned(32))``
    i_table : ``In(stream.Signature(FloatTableWord()))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: as :class:`FloatPwlUnit`.

    Cost: as :class:`FloatPwlUnit`, the table in distributed memory.
    """

    def __init__(self, *, entries: int = 8, multiplier: Multiplier = DSP):
        super().__init__(
            entries=entries,
            multiplier=multiplier,
            ports={"i_table": In(stream.Signature(FloatTableWord()))},
        )

    def table_words(self, words: FloatWords) -> list[dict[str, int]]:
        """Payloads for ``i_table`` that load a table."""
        if len(words.slopes) != self._entries:
            raise ValueError(
                f"Table to load must have {self._entries} entries, not {len(words.slopes)}"
            )
        rows = zip((0.0, *words.breakpoints), words.slopes, words.intercepts, strict=True)
        return [
            {"breakpoint": _key(_bits(point)), "slope": _bits(slope), "intercept": _bits(constant)}
            for point, slope, constant in rows
        ]

    def elaborate(self, platform):
        """Put the table's memories between the ports."""
        m = Module()
        idle = Signal()
        table = LoadedTable(m, self.i_table, self._entries, _BITS, idle)

        def coefficients(m: Module, segment: Value) -> tuple[Value, Value]:
            row = table.row(m, segment)
            return row.slope, row.intercept

        m.d.comb += idle.eq(self._pipeline(m, table.allowed, table.points, coefficients))
        table.connect_points(m, self.i_table.payload.breakpoint)
        return m
