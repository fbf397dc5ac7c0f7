"""Which segment an input lies in: a pipelined binary search, one comparator a level."""

from collections.abc import Callable, Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, memory

from mxhw.arith.pipeline import delay_value, register

__all__ = [
    "FixedPoints",
    "LoadedPoints",
    "LoadedTable",
    "PointReader",
    "find_segment",
    "levels_of",
    "read_constants",
]

PointReader = Callable[[Module, int, Value, str], Value]


def levels_of(entries: int) -> int:
    """Levels of the search over so many segments."""
    return (entries - 1).bit_length()


def read_constants(
    m: Module, index: Value, values: Sequence[int], shape: Shape, name: str
) -> Value:
    """One of several constants, without a register."""
    if len(values) == 1:
        return Const(values[0], shape)
    result = Signal(shape, name=name)
    with m.Switch(index):
        for number, value in enumerate(values):
            with m.Case(number):
                m.d.comb += result.eq(value)
    return result


class FixedPoints:
    """Ascending breakpoints that are known when the unit is made."""

    def __init__(self, points: Sequence[int], width: int):
        self._points = points
        self._width = width

    def __call__(self, m: Module, level: int, index: Value, name: str) -> Value:
        """Middle breakpoint of the ``index``-th part at a level."""
        step = (len(self._points) + 1) >> level
        values = self._points[step // 2 - 1 :: step]
        return read_constants(m, index, values, signed(self._width), f"{name}_point_{level}")


class LoadedPoints:
    """Breakpoints that are written at run time, in ascending order.

    ``write`` takes the breakpoint below entry ``entry``. The three of the first two levels, at the
    quarters of the table, are a shift register; a distributed memory would take its 16 rows for
    them, and each an address. Further levels have a memory each.
    """

    def __init__(self, entries: int, width: int):
        self._width = width
        self._levels = levels_of(entries)
        # The last one written comes first: three quarters, half, one quarter of the way.
        self._quarters = [
            Signal(signed(width), name=f"quarter_{number}", reset_less=True) for number in (3, 2, 1)
        ]
        self._ports: list[memory.WritePort] = []

    def __call__(self, m: Module, level: int, index: Value, name: str) -> Value:
        """Middle breakpoint of the ``index``-th part at a level."""
        if level == 0:
            return self._quarters[1]
        if level == 1:
            return Mux(index, self._quarters[0], self._quarters[2]).as_signed()
        storage = memory.Memory(
            shape=signed(self._width),
            depth=1 << level,
            init=[],
            attrs={"ram_style": "distributed"},
        )
        m.submodules[f"{name}_points_{level}"] = storage
        read = storage.read_port(domain="comb")
        m.d.comb += read.addr.eq(index)
        self._ports.append(storage.write_port())
        return read.data

    def write(self, m: Module, entry: Value, point: Value, enable: Value) -> None:
        """Store the breakpoint below an entry; below entry 0 there is none."""
        with m.If(enable & ~entry[:-2].any()):
            m.d.sync += Cat(self._quarters).eq(Cat(point, *self._quarters[:-1]))
        for level, port in enumerate(self._ports, 2):
            place = self._levels - 1 - level
            # On the last level the odd entry comes second and takes the even one's place.
            here = entry[place] & ~entry[:place].any() if place else Const(1, 1)
            m.d.comb += [
                port.addr.eq(entry[place + 1 :]),
                port.data.eq(point),
                port.en.eq(enable & here),
            ]


class LoadedTable:
    """A table in distributed memory that a stream of its entries fills, from the lowest one on.

    A waiting table goes before further codes, but is taken only while ``idle`` is high, when no
    code is before its coefficients; ``allowed`` says that codes may come.
    """

    def __init__(self, m: Module, words, entries: int, point_bits: int, idle: Value):
        self._words = words
        self._entry = Signal(range(entries))
        self._loaded = Signal()
        self._store = Signal()
        self.points = LoadedPoints(entries, point_bits)
        self.allowed = self._loaded & ~words.valid
        members = words.payload.shape().members
        coefficients = {key: shape for key, shape in members.items() if key != "breakpoint"}
        storage = memory.Memory(
            shape=data.StructLayout(coefficients),
            depth=entries,
            init=[],
            attrs={"ram_style": "distributed"},
        )
        m.submodules.coefficients = storage
        write = storage.write_port()
        self._read = storage.read_port(domain="comb")
        m.d.comb += [
            words.ready.eq(idle),
            self._store.eq(words.valid & idle),
            write.addr.eq(self._entry),
            *(write.data[key].eq(words.payload[key]) for key in coefficients),
            write.en.eq(self._store),
        ]
        with m.If(self._store):
            m.d.sync += [
                self._entry.eq(self._entry + 1),
                self._loaded.eq(self._entry == entries - 1),
            ]

    def row(self, m: Module, segment: Value):
        """The entry of a segment, without a register."""
        m.d.comb += self._read.addr.eq(segment)
        return self._read.data

    def connect_points(self, m: Module, point: Value) -> None:
        """Store the breakpoint of the entry that the stream carries; after the search is made."""
        self.points.write(m, self._entry, point, self._store)


def find_segment(
    m: Module, key: Value, entries: int, points: PointReader, name: str
) -> tuple[Value, Value]:
    """Number of breakpoints that a signed key is not below, and the key, a cycle a level later."""
    index: Value = Const(0, 0)
    for level in range(levels_of(entries)):
        point = points(m, level, index, name)
        index = register(m, Cat(key >= point, index), f"{name}_segment_{level}")
        key = delay_value(m, key, 1, f"{name}_key_{level}")
    return index, key
