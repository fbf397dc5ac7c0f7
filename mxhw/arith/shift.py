"""Shifts of aligned sums: amounts that are limited, steps of a chain, flat choices."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value

from mxhw.arith.pipeline import register, wire

__all__ = ["limit_shift", "select_shift", "shift_left", "shift_right"]

_PAIR = 2
"""Sources of a table of four inputs, which two flags choose."""


def limit_shift(m: Module, value: Value, enable: Value, bits: int, name: str) -> Value:
    """A value that counts only while ``enable`` is high (and then is not negative), clamped."""
    value = wire(m, value, f"{name}_distance")
    high = value[bits:-1].any()
    return (value[:bits] | high.replicate(bits)) & enable.replicate(bits)


def shift_right(m: Module, value: Value, amount: Value, steps: range, unit: int = 1) -> Value:
    """Arithmetic right shift by some bits of the amount, which counts units."""
    for step in steps:
        value = wire(m, Mux(amount[step], value >> (unit << step), value), f"shift_{step}")
    return value


def shift_left(m: Module, value: Value, amount: Value) -> Value:
    """Left shift of a signed value, without loss."""
    for step in range(len(amount)):
        value = wire(m, Mux(amount[step], value << (1 << step), value), f"shift_left_{step}")
    return value


def select_shift(m: Module, value: Value, amount: Value, clear: Value, unit: int) -> Value:
    """Arithmetic right shift by an amount that comes a cycle before the value, or 0.

    The amount counts units. It is decoded before, so that each bit is a flat choice among the bits
    that it can be and the sign: tables of four inputs, and behind them a function of up to three,
    which the carry cell of an adder has room for on some devices.

    Synthesis knows nothing of that room and would merge the two where that is as small without it;
    the forms here are those that it leaves alone.

    Cost: up to five bits to choose among, and the sign, in two tables a bit.
    """
    flags = _Flags(m, amount, clear)
    bits = []
    for index in range(len(value) - 1):
        sources = [value[place] for place in range(index, len(value) - 1, unit)]
        bits.append(_choose(m, sources, value[-1], flags, 0, f"bit_{index}"))
    bits.append(value[-1] & flags.among(above=0))
    return Cat(bits).as_signed()


class _Flags:
    """Comparisons of an amount with constants, in registers: all low if the value is cleared."""

    def __init__(self, m: Module, amount: Value, clear: Value):
        self._m = m
        self._amount = amount
        self._clear = clear
        self._made: dict[str, Value] = {}
        self._signs: dict[int, Value] = {}

    def among(self, *numbers: int, above: int | None = None) -> Value:
        """Whether the amount is one of the numbers, or at least ``above``."""
        tests = [self._amount == number for number in numbers]
        name = "".join(f"_{number}" for number in numbers)
        if above is not None:
            tests.append(self._amount >= above)
            name += f"_above_{above}"
        if name not in self._made:
            flag = Cat(tests).any() & ~self._clear
            self._made[name] = register(self._m, flag, f"moved{name}")
        return self._made[name]

    def sign(self, value: Value, above: int) -> Value:
        """The sign, where the amount is at least so much, else 0: a table for many bits."""
        if above not in self._signs:
            # Kept, or synthesis puts it into each bit's table, which no carry cell has room for.
            result = Signal(name=f"sign_{above}", attrs={"keep": 1})
            self._m.d.comb += result.eq(value & self.among(above=above))
            self._signs[above] = result
        return self._signs[above]


def _choose(
    m: Module, sources: Sequence[Value], sign: Value, flags: _Flags, start: int, name: str
) -> Value:
    """The source of an amount counted from ``start``, the sign beyond the sources, or 0."""
    end = start + len(sources)
    if not sources:
        return sign
    if len(sources) == 1:
        return (sources[0] & flags.among(start)) | flags.sign(sign, end)
    if len(sources) == _PAIR:
        other = Mux(flags.among(start + 1), sources[1], sign)
        other = wire(m, flags.among(start + 1, above=end) & other, f"{name}_other")
        return (sources[0] & flags.among(start)) | other
    # Two tables of two sources each, which are 1 with both flags. With both tables 1, neither of
    # their sources counts but one of the others.
    rest = min(start + 2 * _PAIR, end)
    tables = []
    for place in (start, start + _PAIR):
        part = sources[place - start :][:_PAIR]
        some = [flags.among(place + index, above=rest) for index in range(len(part))]
        if len(part) == _PAIR:
            chosen = Mux(some[0], part[0] | some[1], part[1] & some[1])
        else:
            # The last flag only fills the table, or it would be merged with what is behind it.
            full = flags.among(above=start + 1)
            chosen = ((part[0] & some[0]) | flags.among(above=rest)) & full
        tables.append(wire(m, chosen, f"{name}_table_{place}"))
    others = _choose(m, sources[2 * _PAIR :], sign, flags, rest, name)
    return Mux(tables[0], ~tables[1] | others, tables[1])
