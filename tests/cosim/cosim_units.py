"""Units that the tests of the simulation engines run."""

from amaranth.hdl import Assert, Format, Module, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out


class Buffer(wiring.Component):
    """One register with full throughput."""

    def __init__(self, shape):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += self.o.payload.eq(self.i.payload)
        return m


class Queue(wiring.Component):
    """A FIFO of ``depth`` payloads in a memory, behind a register, with an input ``hold``."""

    def __init__(self, shape, depth=4):
        self.depth = depth
        self.shape = shape
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "hold": In(1),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.front = front = Buffer(self.shape)
        m.submodules.store = store = memory.Memory(shape=self.shape, depth=self.depth, init=[])
        write, read = store.write_port(), store.read_port(domain="comb")
        level = self.level
        push, pop = Signal(), Signal()
        wiring.connect(m, wiring.flipped(self.i), front.i)
        m.d.comb += [
            front.o.ready.eq(level != self.depth),
            push.eq(front.o.valid & front.o.ready),
            pop.eq(self.o.valid & self.o.ready),
            write.en.eq(push),
            write.data.eq(front.o.payload),
            self.o.payload.eq(read.data),
            self.o.valid.eq((level != 0) & ~self.hold),
        ]
        with m.If(push):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(pop):
            m.d.sync += read.addr.eq(read.addr + 1)
        m.d.sync += level.eq(level + push - pop)
        return m


class Mac(wiring.Component):
    """Products of ``lanes`` pairs of int8 and their sum, accumulated over ``length`` vectors."""

    def __init__(self, lanes=32, length=4):
        self.lanes = lanes
        self.length = length
        vector = data.ArrayLayout(signed(8), lanes)
        pair = data.StructLayout({"a": vector, "b": vector})
        super().__init__({"i": In(stream.Signature(pair)), "o": Out(stream.Signature(signed(32)))})

    def elaborate(self, platform):
        m = Module()
        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        count = Signal(range(self.length))
        total = Signal(signed(32))
        level = [self.i.payload.a[k] * self.i.payload.b[k] for k in range(self.lanes)]
        valid = self.i.valid
        number = 0
        while True:
            registers = [
                Signal(item.shape(), name=f"level_{number}_{k}") for k, item in enumerate(level)
            ]
            moved = Signal(name=f"valid_{number}")
            with m.If(step):
                m.d.sync += moved.eq(valid)
                m.d.sync += [left.eq(right) for left, right in zip(registers, level, strict=True)]
            level, valid = registers, moved
            number += 1
            if len(level) == 1:
                break
            level = [left + right for left, right in zip(level[::2], level[1::2], strict=True)]
        last = Signal()
        m.d.comb += last.eq(count == self.length - 1)
        with m.If(step):
            m.d.sync += self.o.valid.eq(valid & last)
            with m.If(valid):
                m.d.sync += count.eq(count + 1)
                m.d.sync += total.eq(total + level[0])
                with m.If(last):
                    m.d.sync += [count.eq(0), total.eq(0), self.o.payload.eq(total + level[0])]
        return m


class Broken(wiring.Component):
    """Breaks the stream contract: drops valid, or changes the payload, while it waits."""

    def __init__(self, what):
        self.what = what
        super().__init__({"o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        time = Signal(8)
        m.d.sync += time.eq(time + 1)
        if self.what == "valid":
            m.d.comb += self.o.valid.eq(time[1])
        else:
            m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(time[2:])]
        return m


class Hides(wiring.Component):
    """A sound output behind an inner stream that breaks the contract."""

    def __init__(self):
        super().__init__({"o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Broken("valid")
        m.submodules.buffer = buffer = Buffer(8)
        m.d.comb += [buffer.i.valid.eq(inner.o.valid), buffer.i.payload.eq(inner.o.payload)]
        wiring.connect(m, buffer.o, wiring.flipped(self.o))
        return m


class Table(wiring.Component):
    """Looks payloads up in a memory named ``table``; addresses past its end give 0."""

    def __init__(self, shape, init):
        self.shape = shape
        self.init = init
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = memory.Memory(
            shape=self.shape, depth=len(self.init), init=self.init
        )
        read = table.read_port()
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(self.i.valid)
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            read.en.eq(self.i.ready),
            read.addr.eq(self.i.payload),
            self.o.payload.eq(read.data),
        ]
        return m


class Crossed(wiring.Component):
    """Ports in an array and in a nested interface, and streams that never stall."""

    def __init__(self):
        bus = wiring.Signature({"data": Out(stream.Signature(8)), "back": In(stream.Signature(8))})
        super().__init__(
            {
                "i": In(stream.Signature(8)).array(2),
                "bus": Out(bus),
                "o_fast": Out(stream.Signature(8, always_ready=True)),
                "i_fast": In(stream.Signature(8, always_valid=True)),
                "o_copy": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.left = left = Buffer(8)
        m.submodules.right = right = Buffer(8)
        wiring.connect(m, wiring.flipped(self.i[0]), left.i)
        wiring.connect(m, left.o, wiring.flipped(self.bus.data))
        wiring.connect(m, wiring.flipped(self.i[1]), right.i)
        m.d.comb += [
            right.o.ready.eq(1),
            self.o_fast.valid.eq(right.o.valid),
            self.o_fast.payload.eq(right.o.payload + self.i_fast.payload),
            self.i_fast.ready.eq(right.o.valid),
            self.o_copy.valid.eq(self.bus.back.valid),
            self.o_copy.payload.eq(self.bus.back.payload),
            self.bus.back.ready.eq(self.o_copy.ready),
        ]
        return m


class Asserts(wiring.Component):
    """Asserts that no payload is 7."""

    def __init__(self):
        super().__init__({"i": In(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(1)
        with m.If(self.i.valid):
            m.d.sync += Assert(self.i.payload != 7, Format("payload is {:d}", self.i.payload))
        return m


class Adder(wiring.Component):
    """No clock: adds its inputs."""

    a: In(8)
    b: In(8)
    sum: Out(9)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.sum.eq(self.a + self.b)
        return m
