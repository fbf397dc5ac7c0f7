# amaranth: UnusedElaboratable=no
import random
import re

import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.sim import Simulator

from mxhw.dataflow.uart import BaudTimer, UartReceiver, UartTransmitter, bit_period

CLOCK = 1e-6


class Loop(Elaboratable):
    """A transmitter and a receiver that may run at a slightly different rate."""

    def __init__(self, clock_hz, baud, receiver_baud=None):
        self.tx = UartTransmitter(clock_hz=clock_hz, baud=baud)
        self.rx = UartReceiver(clock_hz=clock_hz, baud=receiver_baud or baud)

    def elaborate(self, platform):
        m = Module()
        m.submodules.tx = self.tx
        m.submodules.rx = self.rx
        m.d.comb += self.rx.rx.eq(self.tx.tx)
        return m


def run(dut, *testbenches):
    sim = Simulator(dut)
    sim.add_clock(CLOCK)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    sim.run()


@pytest.mark.parametrize(
    ("clock_hz", "baud", "receiver_baud"),
    [
        (40, 10, 10),
        (65_000_000, 3_000_000, 3_000_000),
        (65_000_000, 9_000_000, 9_000_000),
        (25_000_000, 1_000_000, 1_030_000),
        (25_000_000, 1_000_000, 970_000),
    ],
)
def test_bytes_pass(clock_hz, baud, receiver_baud):
    rng = random.Random(1)
    sent = [0x00, 0xFF, 0x55, 0xAA] + [rng.randrange(256) for _ in range(12)]
    dut = Loop(clock_hz, baud, receiver_baud)
    received = []

    async def send(ctx):
        for byte in sent:
            ctx.set(dut.tx.i.payload, byte)
            ctx.set(dut.tx.i.valid, 1)
            await ctx.tick().until(dut.tx.i.ready)
        ctx.set(dut.tx.i.valid, 0)

    async def receive(ctx):
        ctx.set(dut.rx.o.ready, 1)
        for _ in range(len(sent) * 12 * (clock_hz // baud + 1)):
            await ctx.tick()
            assert not ctx.get(dut.rx.framing_error)
            assert not ctx.get(dut.rx.overrun)
            if ctx.get(dut.rx.o.valid):
                received.append(ctx.get(dut.rx.o.payload))

    run(dut, send, receive)
    assert received == sent


@pytest.mark.parametrize(("clock_hz", "baud"), [(65_000_000, 3_000_000), (50_000_000, 921_600)])
def test_transmitter_keeps_the_rate(clock_hz, baud):
    """The mean length of ten bits is right to 1/8 of a cycle a bit."""
    dut = UartTransmitter(clock_hz=clock_hz, baud=baud)
    starts = []

    async def watch(ctx):
        ctx.set(dut.i.payload, 0xFF)
        ctx.set(dut.i.valid, 1)
        previous = 1
        for cycle in range(9 * 10 * clock_hz // baud):
            await ctx.tick()
            line = ctx.get(dut.tx)
            if previous and not line:
                starts.append(cycle)
            previous = line

    run(dut, watch)
    assert len(starts) >= 8
    length = (starts[-1] - starts[0]) / (len(starts) - 1) / 10
    assert length == pytest.approx(clock_hz / baud, abs=1 / 8 + 0.02)


def receive_levels(levels, *, take=True, cycles_per_bit=8):
    """Give bit levels to a receiver: the bytes, framing errors and overruns that it reports."""
    dut = UartReceiver(clock_hz=cycles_per_bit, baud=1)
    seen = {"bytes": [], "framing": 0, "overrun": 0}

    async def drive(ctx):
        for level in [1, 1, *levels, 1, 1]:
            ctx.set(dut.rx, level)
            await ctx.tick().repeat(cycles_per_bit)

    async def watch(ctx):
        ctx.set(dut.o.ready, take)
        for _ in range((len(levels) + 4) * cycles_per_bit):
            await ctx.tick()
            seen["framing"] += ctx.get(dut.framing_error)
            seen["overrun"] += ctx.get(dut.overrun)
            if take and ctx.get(dut.o.valid):
                seen["bytes"].append(ctx.get(dut.o.payload))

    run(dut, drive, watch)
    return seen


def frame(byte, stop=1):
    return [0, *[(byte >> bit) & 1 for bit in range(8)], stop]


def test_framing_error_drops_the_byte():
    seen = receive_levels(frame(0x35, stop=0) + [1] + frame(0x12))
    assert seen == {"bytes": [0x12], "framing": 1, "overrun": 0}


def test_break_is_one_error():
    seen = receive_levels([0] * 50 + [1] + frame(0x99))
    assert seen == {"bytes": [0x99], "framing": 1, "overrun": 0}


def test_overrun_keeps_the_first_byte():
    seen = receive_levels(frame(0x35) + frame(0x12), take=False)
    assert seen == {"bytes": [], "framing": 0, "overrun": 1}


def test_short_glitch_is_no_start():
    dut = UartReceiver(clock_hz=16, baud=1)

    async def drive(ctx):
        await ctx.tick().repeat(20)
        ctx.set(dut.rx, 0)
        await ctx.tick().repeat(5)
        ctx.set(dut.rx, 1)
        for _ in range(300):
            await ctx.tick()
            assert not ctx.get(dut.o.valid)
            assert not ctx.get(dut.framing_error)

    run(dut, drive)


def test_bit_period():
    assert bit_period(25_000_000, 1_000_000) == 200
    assert bit_period(65_000_000, 3_000_000) == 173
    with pytest.raises(
        ValueError,
        match=re.escape(
            "Baud rate must be at most a quarter of the clock frequency (25000000), not 9000000"
        ),
    ):
        bit_period(25_000_000, 9_000_000)
    with pytest.raises(ValueError, match=r"^Baud rate must be a positive integer, not 0$"):
        bit_period(25_000_000, 0)
    with pytest.raises(
        ValueError, match=r"^Clock frequency must be a positive integer, not 2500000.5$"
    ):
        bit_period(2500000.5, 1)
    with pytest.raises(
        ValueError,
        match=r"^Bit period must be an integer of at least 32 eighths of a cycle, not 3$",
    ):
        BaudTimer(period=3, middle=True)
