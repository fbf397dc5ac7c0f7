"""Piecewise-linear unit for integer codes, with free breakpoints, fixed or loaded at run time."""

from collections.abc import Callable

from amaranth.hdl import Cat, Const, Module, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.dot import queue_depth
from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register
from mxhw.lut.pwl import DSP, Multiplier
from mxhw.lut.search import (
    FixedPoints,
    LoadedTable,
    PointReader,
    find_segment,
    levels_of,
    read_constants,
)
from mxhw.lut.table import PwlTable
from mxhw.sw.golden.pwl import PwlWords

__all__ = [
    "CODE_BITS",
    "ENTRIES",
    "LoadablePwlUnit",
    "PwlUnit",
    "ScaledCode",
    "TableWord",
    "check_choice",
]

CODE_BITS = (8, 16, 32)
ENTRIES = (8, 16, 32)

_MOST_SHIFT = 15


class ScaledCode(data.StructLayout):
    """A code, and how many places it is shifted to the left: the finest scale less its own."""

    def __init__(self, *, code_bits: int, most_shift: int):
        super().__init__({"code": signed(code_bits), "shift": unsigned(bits_for(most_shift))})


class TableWord(data.StructLayout):
    """One entry of a table and the breakpoint below it."""

    def __init__(
        self, *, point_bits: int, slope_bits: int, most_product_shift: int, intercept_bits: int
    ):
        super().__init__(
            {
                "breakpoint": signed(point_bits),
                "slope": signed(slope_bits),
                "shift": unsigned(bits_for(most_product_shift) if most_product_shift else 0),
                "intercept": signed(intercept_bits),
            }
        )


def check_choice(value: object, name: str, choices: tuple[int, ...]) -> int:
    """The value if it is one of several integers, or an error that calls it ``name``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} of a piecewise-linear unit must be an integer, not {value!r}")
    if value not in choices:
        text = ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}"
        raise ValueError(f"{name} of a piecewise-linear unit must be {text}, not {value}")
    return value


class _PwlBase(wiring.Component):
    """Pipeline and ports that the units share: search, coefficients, product, sum."""

    def __init__(
        self,
        *,
        code_bits: int,
        entries: int,
        most_shift: int,
        most_product_shift: int,
        output_bits: int,
        multiplier: Multiplier,
        ports: dict | None = None,
    ):
        if not isinstance(multiplier, Multiplier):
            raise TypeError(
                f"Multiplier of a piecewise-linear unit must be a DspMultiplier or a "
                f"LutMultiplier, not {multiplier!r}"
            )
        self._code_bits = code_bits
        self._entries = entries
        self._most_shift = most_shift
        self._most_product_shift = most_product_shift
        self._multiplier = multiplier
        self._output_shape = signed(output_bits)
        if most_shift:
            self._input_shape = ScaledCode(code_bits=code_bits, most_shift=most_shift)
        else:
            self._input_shape = signed(code_bits)
        super().__init__(
            {
                "i": In(stream.Signature(self._input_shape)),
                "o": Out(stream.Signature(self._output_shape)),
                **(ports or {}),
            }
        )

    @property
    def entries(self) -> int:
        """Segments."""
        return self._entries

    @property
    def code_bits(self) -> int:
        """Width of a code."""
        return self._code_bits

    @property
    def multiplier(self) -> Multiplier:
        """Strategy of the slope's product."""
        return self._multiplier

    @property
    def _stages(self) -> int:
        """Registers from an input to the queue: input, search, coefficients, product, sum."""
        return 1 + levels_of(self._entries) + 1 + self._multiplier.latency + 1

    @property
    def latency(self) -> int:
        """Cycles from the transfer of an input to the transfer of its output."""
        return self._stages + 1

    @property
    def interval(self) -> int:
        """Cycles from one input to the next."""
        return 1

    @property
    def _point_bits(self) -> int:
        """Width of a breakpoint, which is an input."""
        return self._code_bits + self._most_shift

    def cost(self) -> dict[str, int]:
        """DSP slices (for codes of up to 16 bits), bits of distributed memory and block RAMs."""
        return {
            "multipliers": self._multiplier.multipliers,
            "memory_bits": queue_depth(self._stages) * self._output_shape.width,
            "block_rams": 0,
        }

    def _pipeline(
        self,
        m: Module,
        allowed: Value,
        points: PointReader,
        coefficients: Callable[[Module, Value], tuple[Value, Value, Value]],
    ) -> Value:
        """Everything between the ports; returns whether no code is before its coefficients."""
        depth = queue_depth(self._stages)
        m.submodules.queue = queue = OutputQueue(shape=self._output_shape, depth=depth)
        ready = allowed & queue.free
        taken = Signal()
        m.d.comb += [taken.eq(self.i.valid & ready), self.i.ready.eq(ready)]
        payload = self.i.payload
        levels, later = levels_of(self._entries), self._multiplier.latency
        code = register(m, payload.code if self._most_shift else payload, "code")
        x, places = code, Const(0, 0)
        if self._most_shift:
            places = register(m, payload.shift, "places")
            x = (code << places)[: self._code_bits + self._most_shift].as_signed()
            places = delay_value(m, places, levels, "places")
        segment, _ = find_segment(m, x, self._entries, points, "search")
        code = delay_value(m, code, levels + 1, "code")
        slope, shift, intercept = coefficients(m, segment)
        shift = delay_value(m, shift + places, 1 + later, "shift")
        intercept = delay_value(m, intercept, 1 + later, "intercept")
        product = self._multiplier.product(m, code, register(m, slope, "slope"), "product")
        if self._most_shift or self._most_product_shift:
            shifted = (product << shift)[: self._output_shape.width].as_signed()
        else:
            shifted = product
        total = register(m, (shifted + intercept)[: self._output_shape.width], "total")
        on_the_way: list[Value] = [taken]
        for _ in range(self._stages):
            on_the_way.append(delay(m, on_the_way[-1], 1, f"taken_{len(on_the_way)}"))
        m.d.comb += [
            queue.reserve.eq(taken),
            queue.i.valid.eq(on_the_way[-1]),
            queue.i.payload.eq(total),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        # What has read its coefficients does not need the table any more.
        return ~Cat(on_the_way[1 : 2 + levels]).any()


class PwlUnit(_PwlBase):
    """A piecewise-linear table of integer codes: bit for bit ``golden.pwl.pwl_values``.

    The output is exact: ``((slope * x) << shift) + intercept`` with :attr:`output_frac` fraction
    bits, where ``x`` is the code at the table's finest scale. The segment is found by a binary
    search with one comparator a level.

    Parameters
    ----------
    table : PwlTable
        8, 16 or 32 entries.
    code_bits : int
        8, 16 or 32.
    scale : int, optional
        Exponent ``j`` of the codes' scale ``2**-j``. Without it every payload has its own, and the
        table must have the breakpoint mode ``ceil``.
    multiplier : DspMultiplier or LutMultiplier

    Members
    -------
    i : ``In(stream.Signature(signed(code_bits)))`` or ``ScaledCode``
        A code; for all scales also how many places it is shifted to the left.
    o : ``Out(stream.Signature(signed))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: latency 4 + log2 of the entries + that of the multiplier, interval 1.

    Cost: one product of ``code_bits`` by the table's bits, a comparator a level, the table in LUTs.

    Source: the unit of GQA-LUT (arXiv 2403.19591), with a search instead of parallel comparators.
    """

    def __init__(
        self,
        *,
        table: PwlTable,
        code_bits: int = 8,
        scale: int | None = None,
        multiplier: Multiplier = DSP,
    ):
        if not isinstance(table, PwlTable):
            raise TypeError(f"Table of a piecewise-linear unit must be a PwlTable, not {table!r}")
        check_choice(table.entries, "Entries", ENTRIES)
        check_choice(code_bits, "Code width", CODE_BITS)
        self._table = table
        self._words = words = PwlWords.of(table, code_bits=code_bits, scale=scale)
        super().__init__(
            code_bits=code_bits,
            entries=words.entries,
            most_shift=words.most_shift,
            most_product_shift=max(words.shifts),
            output_bits=_output_bits(words),
            multiplier=multiplier,
        )

    @property
    def table(self) -> PwlTable:
        """The table."""
        return self._table

    @property
    def words(self) -> PwlWords:
        """The table as integers."""
        return self._words

    @property
    def output_frac(self) -> int:
        """Fraction bits of the output."""
        return self._words.output_frac

    def elaborate(self, platform):
        """Put the table between the ports."""
        m = Module()
        words = self._words
        intercept_bits = max(bits_for(value, True) for value in words.intercepts)

        def coefficients(m: Module, segment: Value) -> tuple[Value, Value, Value]:
            shifts = unsigned(bits_for(max(words.shifts)) if any(words.shifts) else 0)
            return (
                read_constants(m, segment, words.slopes, signed(words.slope_bits), "slopes"),
                read_constants(m, segment, words.shifts, shifts, "shifts"),
                read_constants(m, segment, words.intercepts, signed(intercept_bits), "intercepts"),
            )

        points = FixedPoints(words.breakpoints, self._point_bits)
        self._pipeline(m, Const(1, 1), points, coefficients)
        return m


def _output_bits(words: PwlWords) -> int:
    """Width of the signed output: its extremes are at the ends of the segments."""
    limit = 1 << (words.code_bits - 1 + words.most_shift)
    ends = [-limit, *words.breakpoints, limit]
    extremes = [0]
    rows = zip(words.slopes, words.shifts, words.intercepts, strict=True)
    for index, (slope, shift, intercept) in enumerate(rows):
        first, last = ends[index], ends[index + 1] - 1
        extremes += [((slope * x) << shift) + intercept for x in (first, last) if first <= last]
    return max(bits_for(value, True) for value in extremes)


class LoadablePwlUnit(_PwlBase):
    """A piecewise-linear table that is loaded at run time: else a :class:`PwlUnit`.

    A table is ``entries`` transfers on ``i_table``, from the lowest segment on. No code is taken
    before the first table is complete, nor while a further one is loading; codes taken before see
    the old table.

    Parameters
    ----------
    entries : int
        8, 16 or 32.
    code_bits : int
        8, 16 or 32.
    slope_bits, intercept_bits : int
        Widths of the coefficients, 2 to 64; by default the code's and twice that.
    intercept_shift : int
        Zeros below a stored intercept, 0 to 31. With common exponents this is the scale's: then
        8 bits hold an intercept of the published storage.
    most_shift : int
        Most places that a code may be shifted to the left (its scale); 0 to 15.
    most_product_shift : int
        Most places that an entry may shift its product; 0 to 15.
    multiplier : DspMultiplier or LutMultiplier

    Members
    -------
    i : ``In(stream.Signature(signed(code_bits)))`` or ``ScaledCode``
    i_table : ``In(stream.Signature(TableWord))``
    o : ``Out(stream.Signature(signed))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: latency as :class:`PwlUnit`, interval 1; a table takes its entries, and waits until the
    codes before it have their coefficients.

    Cost: as :class:`PwlUnit`, the table in distributed memory but for three breakpoints, which are
    registers.
    """

    def __init__(
        self,
        *,
        entries: int = 8,
        code_bits: int = 8,
        slope_bits: int | None = None,
        intercept_bits: int | None = None,
        intercept_shift: int = 0,
        most_shift: int = 0,
        most_product_shift: int = 0,
        multiplier: Multiplier = DSP,
    ):
        check_choice(entries, "Entries", ENTRIES)
        check_choice(code_bits, "Code width", CODE_BITS)
        slope_bits = code_bits if slope_bits is None else slope_bits
        intercept_bits = 2 * code_bits if intercept_bits is None else intercept_bits
        for value, name, low, high in (
            (slope_bits, "Slope width", 2, 64),
            (intercept_bits, "Intercept width", 2, 64),
            (intercept_shift, "Intercept shift", 0, 31),
            (most_shift, "Largest shift", 0, _MOST_SHIFT),
            (most_product_shift, "Largest product shift", 0, _MOST_SHIFT),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(
                    f"{name} of a piecewise-linear unit must be an integer, not {value!r}"
                )
            if not low <= value <= high:
                raise ValueError(
                    f"{name} of a piecewise-linear unit must be between {low} and {high}, "
                    f"not {value}"
                )
        self._intercept_shift = intercept_shift
        self._word_shape = TableWord(
            point_bits=code_bits + most_shift,
            slope_bits=slope_bits,
            most_product_shift=most_product_shift,
            intercept_bits=intercept_bits,
        )
        # Both factors may be the lowest, so that the product is the largest.
        product = 1 << (code_bits + slope_bits - 2 + most_shift + most_product_shift)
        intercept = 1 << (intercept_bits - 1 + intercept_shift)
        super().__init__(
            code_bits=code_bits,
            entries=entries,
            most_shift=most_shift,
            most_product_shift=most_product_shift,
            output_bits=bits_for(product + intercept - (1 << intercept_shift), True),
            multiplier=multiplier,
            ports={"i_table": In(stream.Signature(self._word_shape))},
        )

    @property
    def word_shape(self) -> TableWord:
        """Shape of a table's entry."""
        return self._word_shape

    def table_words(self, words: PwlWords) -> list[dict[str, int]]:
        """Payloads for ``i_table`` that load a table.

        Raises
        ------
        ValueError
            If the table has another shape, or a coefficient does not fit.
        """
        if (words.entries, words.code_bits) != (self._entries, self._code_bits):
            raise ValueError(
                f"Table to load must have {self._entries} entries for codes of {self._code_bits} "
                f"bits, not {words.entries} for {words.code_bits}"
            )
        shift = self._intercept_shift
        if any(value % (1 << shift) for value in words.intercepts):
            raise ValueError(f"Intercepts of the table to load must be multiples of 2**{shift}")
        intercepts = [value >> shift for value in words.intercepts]
        rows = zip((0, *words.breakpoints), words.slopes, words.shifts, intercepts, strict=True)
        names = ("breakpoint", "slope", "shift", "intercept")
        result: list[dict[str, int]] = [dict(zip(names, row, strict=True)) for row in rows]
        for row in result:
            for name, value in row.items():
                shape = Shape.cast(self._word_shape[name].shape)
                if bits_for(value, shape.signed) > max(shape.width, not value):
                    raise ValueError(
                        f"{name.capitalize()} {value} of the table to load does not fit "
                        f"{shape.width} bits"
                    )
        return result

    def elaborate(self, platform):
        """Put the table's memories between the ports."""
        m = Module()
        idle = Signal()
        table = LoadedTable(m, self.i_table, self._entries, self._point_bits, idle)

        def coefficients(m: Module, segment: Value) -> tuple[Value, Value, Value]:
            row = table.row(m, segment)
            zeros = Const(0, self._intercept_shift)
            return row.slope, row.shift, Cat(zeros, row.intercept).as_signed()

        m.d.comb += idle.eq(self._pipeline(m, table.allowed, table.points, coefficients))
        table.connect_points(m, self.i_table.payload.breakpoint)
        return m
