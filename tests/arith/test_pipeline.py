# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.pipeline import (
    OutputQueue,
    StreamFifo,
    add_constant,
    adder_tree,
    bit_index,
    delay,
    delay_value,
    signed_tree,
    tree_levels,
)
from tests.support import check_stream, measure_latency_and_interval

SHAPE = data.StructLayout({"a": signed(5), "b": 3})


class Passing(wiring.Component):
    """Three register stages in front of an output queue."""

    def __init__(self, depth):
        self.queue = OutputQueue(shape=8, depth=depth)
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = self.queue
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        accept = Signal()
        m.d.comb += [
            accept.eq(self.i.valid & queue.free),
            self.i.ready.eq(queue.free),
            queue.reserve.eq(accept),
            queue.i.valid.eq(delay(m, accept, 3, "valid")),
        ]
        value = self.i.payload
        for index in range(3):
            later = Signal(8, name=f"value_{index}")
            m.d.sync += later.eq(value)
            value = later
        m.d.comb += queue.i.payload.eq(value)
        return m


class Comb(wiring.Component):
    """A stream through a combinational function."""

    def __init__(self, shape, result, function):
        self.function = function
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(result))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            self.o.payload.eq(self.function(m, self.i.payload)),
        ]
        return m


@pytest.mark.parametrize("depth", [2, 3, 4, 16])
def test_fifo_passes_everything_in_order(depth):
    rng = random.Random(depth)
    rows = [{"a": rng.randrange(-16, 16), "b": rng.randrange(8)} for _ in range(80)]
    check_stream(StreamFifo(shape=SHAPE, depth=depth), {"i": rows}, {"o": rows})


def test_fifo_timing():
    fifo = StreamFifo(shape=8, depth=3)
    timing = measure_latency_and_interval(fifo, {"i": range(40)}, "o", 40, groups=40)
    assert (timing.latency, timing.interval) == (fifo.latency, 1)


@pytest.mark.parametrize("depth", [2, 5, 6, 16])
def test_output_queue_never_overflows(depth):
    rows = list(range(60))
    check_stream(Passing(depth), {"i": rows}, {"o": rows})


def test_output_queue_of_latency_and_three_sustains_one_a_cycle():
    timing = measure_latency_and_interval(Passing(6), {"i": range(50)}, "o", 50, groups=50)
    assert (timing.latency, timing.interval) == (4, 1)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 11])
def test_bit_index(width):
    def function(m, value):
        result = Signal(8)
        index, some = bit_index(m, value, "found")
        m.d.comb += [result[:7].eq(index), result[7].eq(some)]
        return result

    rows = list(range(1 << width))
    expected = [(row > 0) << 7 | (max(row.bit_length() - 1, 0)) for row in rows]
    check_stream(Comb(width, 8, function), {"i": rows}, {"o": expected}, stalls=[(1, 1)])


@pytest.mark.parametrize("leaves", [1, 2, 3, 5, 8])
def test_adder_tree_takes_a_cycle_a_level(leaves):
    class Tree(wiring.Component):
        def __init__(self):
            super().__init__(
                {
                    "i": In(stream.Signature(data.ArrayLayout(signed(6), leaves))),
                    "o": Out(stream.Signature(signed(9))),
                }
            )

        def elaborate(self, platform):
            m = Module()
            m.submodules.queue = queue = OutputQueue(shape=signed(9), depth=16)
            wiring.connect(m, queue.o, wiring.flipped(self.o))
            total = adder_tree(m, [self.i.payload[index] for index in range(leaves)], "sum")
            accept = self.i.valid & queue.free
            m.d.comb += [
                self.i.ready.eq(queue.free),
                queue.reserve.eq(accept),
                queue.i.valid.eq(delay(m, accept, tree_levels(leaves), "valid")),
                queue.i.payload.eq(total),
            ]
            return m

    rng = random.Random(leaves)
    rows = [[-32] * leaves, [31] * leaves]
    rows += [[rng.randrange(-32, 32) for _ in range(leaves)] for _ in range(30)]
    check_stream(Tree(), {"i": rows}, {"o": [sum(row) for row in rows]})


def test_memory_bits():
    assert StreamFifo(shape=SHAPE, depth=16).memory_bits == 128


def test_converts():
    assert rtlil.convert(StreamFifo(shape=SHAPE, depth=5))


@pytest.mark.parametrize("unit", [OutputQueue, StreamFifo])
def test_wrong_depth(unit):
    with pytest.raises(ValueError, match=r"^Depth of a queue must be at least 2, not 1$"):
        unit(shape=8, depth=1)
    with pytest.raises(TypeError, match=r"^Depth of a queue must be an integer, not 2\.0$"):
        unit(shape=8, depth=2.0)


@pytest.mark.parametrize("constant", [0, 1, 5, -1, -9, -16])
def test_add_constant(constant):
    unit = Comb(5, 6, lambda m, value: add_constant(value, constant, 6))
    expected = [(value + constant) % 64 for value in range(32)]
    check_stream(unit, {"i": range(32)}, {"o": expected}, stalls=[(1, 1)])


class Tree(wiring.Component):
    """A signed tree behind a register that holds its operands; signs come a cycle before."""

    def __init__(self, count, pairs_a_chain):
        self.count = count
        self.pairs_a_chain = pairs_a_chain
        shape = data.StructLayout({"magnitudes": data.ArrayLayout(4, count), "signs": count})
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(signed(8)))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = OutputQueue(shape=signed(8), depth=16)
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        accept = self.i.valid & queue.free
        payload = self.i.payload
        magnitudes = [delay_value(m, payload.magnitudes[k], 1, f"m_{k}") for k in range(self.count)]
        signs = [payload.signs[k] for k in range(self.count)]
        total = signed_tree(m, magnitudes, signs, 1, "sum", self.pairs_a_chain)
        m.d.comb += [
            self.i.ready.eq(queue.free),
            queue.reserve.eq(accept),
            queue.i.valid.eq(delay(m, accept, 2 + tree_levels(self.count), "valid")),
            queue.i.payload.eq(total),
        ]
        return m


@pytest.mark.parametrize(("count", "pairs_a_chain"), [(2, 1), (8, 1), (8, 4)])
def test_signed_tree(count, pairs_a_chain):
    rng = random.Random(count)
    rows, expected = [], []
    for number in range(150):
        values = [rng.choice((0, 15, rng.randrange(16))) for _ in range(count)]
        signs = (0, (1 << count) - 1)[number] if number < 2 else rng.randrange(1 << count)
        rows.append({"magnitudes": values, "signs": signs})
        expected.append(sum(-v if signs >> k & 1 else v for k, v in enumerate(values)))
    check_stream(Tree(count, pairs_a_chain), {"i": rows}, {"o": expected}, stalls=[(0.9, 0.8)])
