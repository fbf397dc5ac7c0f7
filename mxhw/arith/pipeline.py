"""Pipelines that never stall, and the queues that let them.

A unit with many register stages does not stop them when its output waits: an enable that reaches
thousands of flip-flops is slow. Instead a unit lets something in only when the queue behind its
last stage has a place for it (:class:`OutputQueue`), so that the stages run freely. Every ``ready``
of such a unit is a register. Only two or three stages behind a memory stop with their output, by
the ``enable`` of :func:`register`.
"""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

__all__ = [
    "PAIRS_A_CHAIN",
    "OutputQueue",
    "RingStorage",
    "StreamFifo",
    "add_constant",
    "add_pairs",
    "adder_tree",
    "bit_index",
    "carry_tree",
    "count",
    "delay",
    "delay_value",
    "increment",
    "maximum",
    "negate_if",
    "register",
    "signed_tree",
    "successor",
    "tree_levels",
    "wire",
]

_ALWAYS = Const(1, 1)
PAIRS_A_CHAIN = 4
"""Sums in one adder, unless a unit is told otherwise."""


def _check_depth(depth: int) -> int:
    if not isinstance(depth, int):
        raise TypeError(f"Depth of a queue must be an integer, not {depth!r}")
    if depth < 2:
        raise ValueError(f"Depth of a queue must be at least 2, not {depth}")
    return depth


class OutputQueue(wiring.Component):
    """The queue behind a pipeline that never stalls.

    Something may enter the pipeline while ``free`` is high, with ``reserve`` high for one cycle for
    each payload that will come out of it. The payload is pushed to ``i`` any number of cycles later
    and is offered on ``o`` from the next cycle on. A depth of the pipeline's latency
    (``reserve`` to push) + 3 sustains one payload a cycle.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    depth : int
        Places, at least 2. Distributed memory has 16 rows a cell, so multiples of 16 waste nothing.

    Members
    -------
    i : ``In(stream.Signature(shape, always_ready=True))``
        Pushes.
    o : ``Out(stream.Signature(shape))``
        The queue's head.
    reserve : ``In(1)``
        Takes one place; only while ``free`` is high.
    free : ``Out(1)``
        At least one place is neither taken nor reserved. A register.

    Raises
    ------
    TypeError, ValueError
        If the depth is not an integer of at least 2.

    Timing: latency 1, interval 1.

    Cost: ``depth * width`` bits of distributed memory.
    """

    def __init__(self, *, shape, depth: int):
        self._shape = shape
        self._depth = _check_depth(depth)
        super().__init__(
            {
                "i": In(stream.Signature(shape, always_ready=True)),
                "o": Out(stream.Signature(shape)),
                "reserve": In(1),
                "free": Out(1),
            }
        )

    @property
    def shape(self):
        """Shape of the payload."""
        return self._shape

    @property
    def depth(self) -> int:
        """Places."""
        return self._depth

    @property
    def latency(self) -> int:
        """Cycles from a push to the transfer on ``o``."""
        return 1

    @property
    def memory_bits(self) -> int:
        """Bits of distributed memory."""
        return self._depth * Shape.cast(self._shape).width

    def elaborate(self, platform):
        m = Module()
        # Read without a clock, it is distributed memory where there is any, else flip-flops.
        m.submodules.storage = storage = memory.Memory(
            shape=self._shape, depth=self._depth, init=[]
        )
        write = storage.write_port()
        read = storage.read_port(domain="comb")
        pop = self.o.valid & self.o.ready
        m.d.comb += [
            write.data.eq(self.i.payload),
            write.en.eq(self.i.valid),
            self.o.payload.eq(read.data),
        ]
        for pointer, step in ((write.addr, self.i.valid), (read.addr, pop)):
            position = Signal.like(pointer)
            m.d.comb += pointer.eq(position)
            with m.If(step):
                m.d.sync += position.eq(successor(position, self._depth))
        # Counters hold one less than the count, so that the sign bit says "none".
        places, filled = (
            Signal(signed(bits_for(self._depth - 1) + 1), init=init, name=name)
            for name, init in (("places", self._depth - 1), ("filled", -1))
        )
        count(m, places, up=pop, down=self.reserve)
        count(m, filled, up=self.i.valid, down=pop)
        m.d.comb += [self.free.eq(~places[-1]), self.o.valid.eq(~filled[-1])]
        return m


class StreamFifo(wiring.Component):
    """A queue between two streams: a payload is offered from the cycle after it was taken.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    depth : int
        Places, at least 2.

    Members
    -------
    i : ``In(stream.Signature(shape))``
        ``ready`` is a register and does not depend on ``o``.
    o : ``Out(stream.Signature(shape))``

    Raises
    ------
    TypeError, ValueError
        If the depth is not an integer of at least 2.

    Timing: latency 1, interval 1.

    Cost: ``depth * width`` bits of distributed memory.
    """

    def __init__(self, *, shape, depth: int):
        self._shape = shape
        self._depth = _check_depth(depth)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    @property
    def shape(self):
        """Shape of the payload."""
        return self._shape

    @property
    def depth(self) -> int:
        """Places."""
        return self._depth

    @property
    def latency(self) -> int:
        """Cycles from a transfer on ``i`` to the transfer on ``o``."""
        return 1

    @property
    def memory_bits(self) -> int:
        """Bits of distributed memory."""
        return self._depth * Shape.cast(self._shape).width

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = OutputQueue(shape=self._shape, depth=self._depth)
        m.d.comb += [
            self.i.ready.eq(queue.free),
            queue.reserve.eq(self.i.valid & queue.free),
            queue.i.valid.eq(self.i.valid & queue.free),
            queue.i.payload.eq(self.i.payload),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        return m


class RingStorage:
    """A ring of beats in distributed memory, written on arrival and read when a scale is known."""

    def __init__(self, depth: int):
        self._depth = depth
        self._ports: dict[str, tuple] = {}
        self.room = Signal()

    def add(self, m: Module, name: str, value: Value, cycles: int = 0) -> None:
        """Store ``value``, which is known ``cycles`` after the beat."""
        storage = memory.Memory(
            shape=unsigned(len(value)),
            depth=self._depth,
            init=[],
            attrs={"ram_style": "distributed"},
        )
        m.submodules[f"{name}_memory"] = storage
        write = storage.write_port()
        read = storage.read_port(domain="comb")
        m.d.comb += write.data.eq(value)
        self._ports[name] = (write, read, cycles)

    def read(self, name: str) -> Value:
        """What the beat being read has stored."""
        return self._ports[name][1].data

    def connect(self, m: Module, accept: Value, issue: Value) -> None:
        """Make the pointers."""
        write_index = Signal(range(self._depth))
        read_index = Signal(range(self._depth))
        places = Signal(signed(bits_for(self._depth) + 1), init=self._depth - 1)
        count(m, places, up=issue, down=accept)
        m.d.comb += self.room.eq(~places[-1])
        for index, move in ((write_index, accept), (read_index, issue)):
            with m.If(move):
                m.d.sync += index.eq(successor(index, self._depth))
        for name, (write, read, cycles) in self._ports.items():
            m.d.comb += [
                write.addr.eq(delay_value(m, write_index, cycles, f"{name}_address")),
                write.en.eq(delay(m, accept, cycles, f"{name}_write")),
                read.addr.eq(read_index),
            ]


def increment(value: Value) -> Value:
    """``value + 1`` of the same width, without a carry chain, which costs four cells to enter and
    leave: for counters of up to about six bits.
    """
    return Cat(value[index] ^ value[:index].all() for index in range(len(value)))


def add_constant(value: Value, constant: int, width: int) -> Value:
    """A short unsigned value and a constant in ``width`` bits, without a carry chain."""
    carry: Value = Const(0, 1)
    bits = []
    for index in range(width):
        bit = value[index] if index < len(value) else Const(0, 1)
        if constant >> index & 1:
            bits.append(~(bit ^ carry))
            carry = bit | carry
        else:
            bits.append(bit ^ carry)
            carry = bit & carry
    return Cat(bits)


def negate_if(negative: Value, value: Value) -> Value:
    """``-value`` or ``value`` in one more bit, of a short unsigned value: without a carry chain."""
    bits = [value[index] ^ (negative & value[:index].any()) for index in range(len(value))]
    return Cat(bits, negative & value.any()).as_signed()


def successor(position: Signal, depth: int) -> Value:
    """Next pointer into a ring of ``depth`` rows."""
    if depth == 1 << len(position):
        return increment(position)
    return Mux(position == depth - 1, 0, increment(position))


def count(m: Module, counter: Signal, *, up: Value, down: Value) -> None:
    """Count a small counter up and down; both at once change nothing."""
    # Downwards a bit changes where all lower bits are zero: where upwards, of the complement.
    lower = counter ^ (~up).replicate(len(counter))
    with m.If(up ^ down):
        m.d.sync += counter.eq(
            Cat(counter[index] ^ lower[:index].all() for index in range(len(counter)))
        )


def wire(m: Module, value: Value, name: str) -> Signal:
    """A name for a value that is used more than once: an expression would be repeated."""
    value = Value.cast(value)
    result = Signal(value.shape(), name=name)
    m.d.comb += result.eq(value)
    return result


def register(m: Module, value: Value, name: str, enable: Value = _ALWAYS) -> Signal:
    """One pipeline register without reset that follows ``value``."""
    value = Value.cast(value)
    result = Signal(value.shape(), name=name, reset_less=True)
    with m.If(enable):
        m.d.sync += result.eq(value)
    return result


def delay_value(m: Module, value: Value, cycles: int, name: str, enable: Value = _ALWAYS) -> Value:
    """Data delayed by registers without reset."""
    value = Value.cast(value)
    for index in range(cycles):
        value = register(m, value, f"{name}_{index + 1}", enable)
    return value


def delay(m: Module, flag: Value, cycles: int, name: str, enable: Value = _ALWAYS) -> Value:
    """A control bit delayed by registers that reset to 0."""
    for index in range(cycles):
        later = Signal(name=f"{name}_{index + 1}")
        with m.If(enable):
            m.d.sync += later.eq(flag)
        flag = later
    return flag


def tree_levels(leaves: int) -> int:
    """Levels of a binary tree over so many leaves."""
    return (leaves - 1).bit_length()


def adder_tree(
    m: Module, terms: Sequence[Value], name: str, pairs_a_chain: int = PAIRS_A_CHAIN
) -> Value:
    """Sum of signed terms, with a register after each of the ``tree_levels(len(terms))`` levels."""
    level = 0
    terms = [Value.cast(term) for term in terms]
    while len(terms) > 1:
        level += 1
        even = terms[: len(terms) // 2 * 2]
        sums = add_pairs(m, even[0::2], even[1::2], f"{name}_{level}", pairs_a_chain=pairs_a_chain)
        terms = [
            register(m, value, f"{name}_{level}_{index}")
            for index, value in enumerate(sums + terms[len(even) :])
        ]
    return terms[0]


def carry_tree(
    m: Module,
    terms: Sequence[Value],
    carries: Sequence[Value],
    name: str,
    pairs_a_chain: int = PAIRS_A_CHAIN,
) -> Value:
    """Sum of signed terms and single bits, which become carries of the tree's adders.

    Takes a cycle more than :func:`adder_tree`; at most as many bits as terms.
    """
    level = 0
    terms, carries = list(terms), list(carries)
    while len(terms) > 1:
        level += 1
        pairs = len(terms) // 2
        even, odd = terms[: 2 * pairs], terms[2 * pairs :]
        used, rest = carries[:pairs], carries[pairs:]
        used += [Const(0, 1)] * (pairs - len(used))
        sums = add_pairs(
            m, even[0::2], even[1::2], f"{name}_{level}", used, pairs_a_chain=pairs_a_chain
        )
        terms = [
            register(m, value, f"{name}_{level}_{index}") for index, value in enumerate(sums + odd)
        ]
        carries = [
            register(m, bit, f"{name}_{level}_carry_{index}") for index, bit in enumerate(rest)
        ]
    last = carries[0] if carries else Const(0, 1)
    return register(m, (terms[0] + last)[: len(terms[0])].as_signed(), f"{name}_last")


def signed_tree(
    m: Module,
    magnitudes: Sequence[Value],
    signs: Sequence[Value],
    early: int,
    name: str,
    pairs_a_chain: int = PAIRS_A_CHAIN,
) -> Value:
    """Sum of a power of two of magnitudes with signs, which come ``early`` cycles before them.

    Takes a cycle more than :func:`adder_tree`. Each adder adds or subtracts its second operand by
    how the signs of both operands' first terms differ; the sum takes the sign of the first term.
    So a sign costs a table for each adder and none for each bit, where an adder's cell has room
    for the inverter before it.
    """
    terms: list[Value] = [Cat(value, Const(0, 1)).as_signed() for value in magnitudes]
    level = 0
    while len(terms) > 1:
        level += 1
        stride = 1 << level
        differ = [
            delay_value(
                m,
                signs[first] ^ signs[first + stride // 2],
                early + level - 1,
                f"{name}_{level}_differ_{first}",
            )
            for first in range(0, len(signs), stride)
        ]
        right = [_invert_if(sign, term) for term, sign in zip(terms[1::2], differ, strict=True)]
        sums = add_pairs(
            m, terms[0::2], right, f"{name}_{level}", differ, pairs_a_chain=pairs_a_chain
        )
        terms = [register(m, value, f"{name}_{level}_{index}") for index, value in enumerate(sums)]
    negative = delay_value(m, signs[0], early + level, f"{name}_negative")
    total = _invert_if(negative, terms[0]) + negative
    return register(m, total[: len(terms[0])].as_signed(), f"{name}_last")


def add_pairs(
    m: Module,
    left: Sequence[Value],
    right: Sequence[Value],
    name: str,
    carries: Sequence[Value] | None = None,
    *,
    pairs_a_chain: int = PAIRS_A_CHAIN,
) -> list[Value]:
    """Sums of pairs of signed values, several in one adder; with carries also one bit each.

    A carry chain costs four cells to enter and leave on some devices, so that one long adder is
    smaller than several short ones; the longer carry is well below an adder tree's cycle.
    """
    sums: list[Value] = []
    for start in range(0, len(left), pairs_a_chain):
        pairs = list(zip(left[start:], right[start:], strict=False))[:pairs_a_chain]
        width = max(len(value) for pair in pairs for value in pair) + 1
        sides: tuple[list[Value], list[Value]] = ([], [])
        for index, (a, b) in enumerate(pairs):
            a, b = _extend(a, width), _extend(b, width)
            if carries is not None:
                # The same place makes a carry of any bit.
                sides[0].append(carries[start + index])
                sides[1].append(carries[start + index])
            elif index:
                # Between two sums stands a bit that is the same on both sides: whatever comes from
                # below, it carries that bit, here the lowest of the next sum's second operand.
                # (Synthesis would cut the adder at a constant.)
                sides[0].append(b[0])
                sides[1].append(b[0])
                b = Cat(Const(0, 1), b[1:])
            sides[0].append(a)
            sides[1].append(b)
        both = [Cat(side) for side in sides]
        total = wire(m, (both[0] + both[1])[: len(both[0])], f"{name}_chain_{start}")
        first = 0 if carries is None else 1
        for index in range(len(pairs)):
            sums.append(total[first + index * (width + 1) :][:width].as_signed())
    return sums


def _invert_if(flag: Value, value: Value) -> Value:
    """The ones' complement of a signed value, or the value."""
    return (value.as_unsigned() ^ flag.replicate(len(value))).as_signed()


def _extend(value: Value, width: int) -> Value:
    """Bits of a signed value in a larger width."""
    return Cat(value, value[-1].replicate(width - len(value)))


def bit_index(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """Position of the highest set bit (0 if there is none), and whether there is one."""
    value = Value.cast(value)
    if len(value) == 1:
        return Const(0, 0), value[0]
    half = 1 << ((len(value) - 1).bit_length() - 1)
    low, low_any = bit_index(m, value[:half], f"{name}_l")
    high, high_any = bit_index(m, value[half:], f"{name}_h")
    index = Cat(Mux(high_any, high, low)[: len(low)], high_any)
    return wire(m, index, f"{name}_index"), wire(m, low_any | high_any, f"{name}_any")


def maximum(m: Module, values: Sequence[Value]) -> Value:
    """Largest of unsigned values, by a tree."""
    if len(values) == 1:
        return values[0]
    half = (len(values) + 1) // 2
    left, right = maximum(m, values[:half]), maximum(m, values[half:])
    # The sign of a difference is a shorter way than a comparison's carry output.
    difference = wire(m, right - left, "difference")
    return wire(m, Mux(difference[-1], left, right), "maximum")
