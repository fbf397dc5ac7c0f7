"""Piecewise-linear table with uniform segments: three registers, one product, no comparator."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.dot import queue_depth
from mxhw.arith.multiply import DspMultiplier, LutMultiplier
from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register
from mxhw.lut.uniform import UniformTable

__all__ = [
    "DSP",
    "LUT",
    "FunctionUnit",
    "Multiplier",
    "UniformPwl",
    "check_index_bits",
    "check_table",
    "table_latency",
    "table_value",
    "value_shape",
]

Multiplier = DspMultiplier | LutMultiplier

DSP = DspMultiplier()
LUT = LutMultiplier()


def check_table(table: object, name: str = "Table") -> UniformTable:
    """The table, or a TypeError that calls it ``name``."""
    if not isinstance(table, UniformTable):
        raise TypeError(f"{name} must be a uniform table, not {table!r}")
    return table


def check_index_bits(index_bits: object, name: str) -> int:
    """Logarithm of a table's entries, or an error that calls the unit ``name``."""
    if not isinstance(index_bits, int) or isinstance(index_bits, bool):
        raise TypeError(f"Index width of {name} must be an integer, not {index_bits!r}")
    if not 3 <= index_bits <= 5:
        raise ValueError(f"Index width of {name} must be between 3 and 5, not {index_bits}")
    return index_bits


def value_shape(table: UniformTable):
    """Shape of a table's value: unsigned, wide enough for every code."""
    low = (1 << table.low_bits) - 1
    half = 1 << (table.slope_shift - 1)
    ends = [
        base + ((slope * code + half) >> table.slope_shift)
        for base, slope in zip(table.base, table.slope, strict=True)
        for code in (0, low)
    ] + [table.first or 0]
    if min(ends) < 0:
        raise ValueError(f"Values of table '{table.name}' must not be negative")
    return unsigned(bits_for(max(ends)))


def table_latency(multiplier: Multiplier = DSP) -> int:
    """Register stages of :func:`table_value`."""
    return 2 + multiplier.latency


def _lookup(m: Module, index: Value, entries: Sequence[int], name: str) -> Signal:
    """A constant table in LUTs, read and registered."""
    width = max(bits_for(entry, min(entries) < 0) for entry in entries)
    shape = signed(width) if min(entries) < 0 else unsigned(width)
    result = Signal(shape, name=name, reset_less=True)
    with m.Switch(index):
        for number, entry in enumerate(entries):
            with m.Case(number):
                m.d.sync += result.eq(entry)
    return result


def table_value(
    m: Module, table: UniformTable, code: Value, name: str, multiplier: Multiplier = DSP
) -> Value:
    """Value of a table, :func:`table_latency` cycles after ``code``: the part to embed.

    The code should come from a register.
    """
    low = register(m, code[: table.low_bits], f"{name}_low")
    base = _lookup(m, code[table.low_bits :], table.base, f"{name}_base")
    # Slopes of one sign are kept as magnitudes, which saves a bit of the product.
    falling = max(table.slope) < 0
    entries = [-entry for entry in table.slope] if falling else table.slope
    slope = _lookup(m, code[table.low_bits :], entries, f"{name}_slope")
    product = multiplier.product(m, slope, low, f"{name}_product")
    base = delay_value(m, base, multiplier.latency, f"{name}_base")
    # The rounding half and the base are one constant: a single addition gives the value.
    line = Cat(Const(1 << (table.slope_shift - 1), table.slope_shift), base)
    total = line - product if falling else line + product
    value = total[table.slope_shift :][: value_shape(table).width]
    if table.first is not None:
        is_first = delay_value(m, ~code.any(), 1 + multiplier.latency, f"{name}_is_first")
        value = Mux(is_first, table.first, value)
    return register(m, value, f"{name}_value")


class FunctionUnit(wiring.Component):
    """A function of one payload as a stream unit: a free-running pipeline and its output queue.

    Subclasses give :meth:`compute` and the number of its register stages.
    """

    def __init__(self, *, i_shape, o_shape, stages: int):
        self._stages = stages
        self._o_shape = o_shape
        super().__init__({"i": In(stream.Signature(i_shape)), "o": Out(stream.Signature(o_shape))})

    @property
    def latency(self) -> int:
        """Cycles from the transfer of an input to the transfer of its output."""
        return self._stages + 1

    @property
    def interval(self) -> int:
        """Cycles from one input to the next."""
        return 1

    @property
    def multipliers(self) -> int:
        """DSP slices."""
        return 1

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs."""
        return {
            "multipliers": self.multipliers,
            "memory_bits": queue_depth(self._stages) * Shape.cast(self._o_shape).width,
            "block_rams": 0,
        }

    def compute(self, m: Module, payload) -> Value | dict[str, Value]:
        """Value of the output, or of its members, the unit's stages after ``payload``."""
        raise NotImplementedError

    def elaborate(self, platform):
        """Put the stages between the ports."""
        m = Module()
        depth = queue_depth(self._stages)
        m.submodules.queue = queue = OutputQueue(shape=self._o_shape, depth=depth)
        take = self.i.valid & queue.free
        result = self.compute(m, self.i.payload)
        if isinstance(result, dict):
            for member, value in result.items():
                m.d.comb += queue.i.payload[member].eq(value)
        else:
            m.d.comb += queue.i.payload.eq(result)
        m.d.comb += [
            self.i.ready.eq(queue.free),
            queue.reserve.eq(take),
            queue.i.valid.eq(delay(m, take, self._stages, "taken")),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        return m


class UniformPwl(FunctionUnit):
    """Value of a piecewise-linear table: bit for bit :meth:`UniformTable.evaluate`.

    Parameters
    ----------
    table : UniformTable
    multiplier : DspMultiplier or LutMultiplier
        Strategy of the slope's product.

    Members
    -------
    i : ``In(stream.Signature(unsigned(table.input_bits)))``
        Code.
    o : ``Out(stream.Signature(value_shape(table)))``
        Value with 15 fraction bits.

    Raises
    ------
    TypeError, ValueError
        If the table is not a :class:`UniformTable` or has negative values, or the multiplier is no
        strategy.

    Timing: latency 4, interval 1.

    Cost: one DSP slice or none; 2**index_bits entries of base and slope in LUTs.
    """

    def __init__(self, *, table: UniformTable, multiplier: Multiplier = DSP):
        self._table = check_table(table)
        if not isinstance(multiplier, Multiplier):
            raise TypeError(
                f"Multiplier of a table must be a DspMultiplier or a LutMultiplier, "
                f"not {multiplier!r}"
            )
        self._multiplier = multiplier
        super().__init__(
            i_shape=unsigned(table.input_bits),
            o_shape=value_shape(table),
            stages=table_latency(multiplier),
        )

    @property
    def table(self) -> UniformTable:
        """The table."""
        return self._table

    @property
    def multiplier(self) -> Multiplier:
        """Strategy of the slope's product."""
        return self._multiplier

    @property
    def multipliers(self) -> int:
        """DSP slices."""
        return self._multiplier.multipliers

    def compute(self, m: Module, payload) -> Value:
        """The table's value."""
        return table_value(m, self._table, payload, "table", self._multiplier)
