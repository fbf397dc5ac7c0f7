import pytest
from amaranth.hdl import Elaboratable, Module, Signal, signed
from amaranth.sim import Simulator

from mxhw.arith.shift import limit_shift, select_shift, shift_left


class Selected(Elaboratable):
    """The amount and whether to clear are given a cycle before the value."""

    def __init__(self, width, unit, amount_bits):
        self.unit = unit
        self.value = Signal(signed(width))
        self.amount = Signal(amount_bits)
        self.clear = Signal()
        self.result = Signal(signed(width))

    def elaborate(self, platform):
        m = Module()
        result = select_shift(m, self.value, self.amount, self.clear, self.unit)
        m.d.comb += self.result.eq(result)
        return m


@pytest.mark.parametrize(
    ("width", "unit", "amount_bits"),
    [(2, 1, 2), (4, 8, 1), (5, 1, 3), (6, 1, 3), (7, 2, 3), (9, 1, 4), (10, 1, 4), (29, 8, 3)],
)
def test_selected_shift(width, unit, amount_bits):
    """Every distance, with each number of bits to choose among and more than there are."""
    dut = Selected(width, unit, amount_bits)
    top = 1 << (width - 1)
    values = {*range(-top, top)} if width <= 6 else set()
    values |= {-top, -top + 1, -1, 0, 1, top - 1} | {
        bit << i for i in range(width - 1) for bit in (1, -1)
    }
    values |= {pattern % (2 * top) - top for pattern in (0x155555555, 0x2CCCCCCCC, 0x123456789)}

    async def bench(ctx):
        for amount in range(1 << amount_bits):
            for clear in (0, 1):
                ctx.set(dut.amount, amount)
                ctx.set(dut.clear, clear)
                await ctx.tick()
                # The comparisons are in registers: what comes now is for the next value.
                ctx.set(dut.amount, ~amount)
                ctx.set(dut.clear, 1 - clear)
                for value in values:
                    ctx.set(dut.value, value)
                    expected = 0 if clear else value >> (unit * amount)
                    assert ctx.get(dut.result) == expected, (amount, clear, value)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_limits_and_left_shift():
    distance, enable, amount = Signal(signed(6)), Signal(), Signal(2)
    m = Module()
    limited, moved = Signal(3), Signal(signed(9))
    m.d.comb += [
        limited.eq(limit_shift(m, distance, enable, 3, "limit")),
        moved.eq(shift_left(m, distance, amount)),
    ]

    async def bench(ctx):
        for value in range(-32, 32):
            ctx.set(distance, value)
            for flag in (0, 1):
                ctx.set(enable, flag)
                # A negative distance never comes with the enable.
                if not flag or value >= 0:
                    assert ctx.get(limited) == (min(value, 7) if flag else 0)
            for places in range(4):
                ctx.set(amount, places)
                assert ctx.get(moved) == value << places

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
