"""Serial port: bytes of a stream on a line with start and stop bits (8N1)."""

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["BaudTimer", "UartReceiver", "UartTransmitter", "bit_period"]

_PHASE_BITS = 3
_MIN_PERIOD = 4 << _PHASE_BITS


def bit_period(clock_hz: int, baud: int) -> int:
    """Return the length of a bit in eighths of a clock cycle.

    Raises
    ------
    ValueError
        If a bit would be shorter than 4 clock cycles.
    """
    for name, value in (("Clock frequency", clock_hz), ("Baud rate", baud)):
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
    period = ((clock_hz << (_PHASE_BITS + 1)) + baud) // (2 * baud)
    if period < _MIN_PERIOD:
        raise ValueError(
            f"Baud rate must be at most a quarter of the clock frequency ({clock_hz}), not {baud}"
        )
    return period


class BaudTimer(wiring.Component):
    """Ticks once a bit, in the middle of it or at its end.

    The period is kept in eighths of a cycle, so that the mean length of a bit is right to 1/8 of a
    cycle for any ratio of clock and baud rate; one bit is off by less than one cycle.

    Parameters
    ----------
    period : int
        Length of a bit in eighths of a clock cycle.
    middle : bool
        After ``start``, tick first in the middle of the bit that has just begun, not at its end.

    Members
    -------
    start : In(1)
        Begin a bit in this cycle.
    tick : Out(1)
        High for the last cycle before the middle (or end) of a bit.
    """

    def __init__(self, *, period: int, middle: bool):
        if not isinstance(period, int) or period < _MIN_PERIOD:
            raise ValueError(
                f"Bit period must be an integer of at least {_MIN_PERIOD} eighths of a cycle, "
                f"not {period!r}"
            )
        self._period = period
        self._middle = middle
        super().__init__({"start": In(1), "tick": Out(1)})

    def elaborate(self, platform):
        """Build the phase accumulator."""
        m = Module()
        cycle = 1 << _PHASE_BITS
        left = Signal(range(self._period + cycle))
        m.d.comb += self.tick.eq(left < 2 * cycle)
        with m.If(self.start):
            m.d.sync += left.eq(self._period // 2 if self._middle else self._period)
        with m.Elif(self.tick):
            m.d.sync += left.eq(left + (self._period - cycle))
        with m.Else():
            m.d.sync += left.eq(left - cycle)
        return m


class UartReceiver(wiring.Component):
    """Receives bytes from a serial line.

    The line is synchronised, and each bit is sampled once, in its middle. A start bit that is gone
    by its middle is ignored. A byte without a stop bit is dropped and flagged; after it the line
    must return to its idle level before the next start bit counts, so that a break is one error. A
    byte that arrives while the one before waits is dropped and flagged.

    Parameters
    ----------
    clock_hz, baud : int
        Frequency of the clock domain ``sync``, and of the bits.

    Members
    -------
    rx : In(1), init=1
        The line.
    o : Out(stream.Signature(unsigned(8)))
        Bytes received.
    framing_error : Out(1)
        High for one cycle when a byte had no stop bit.
    overrun : Out(1)
        High for one cycle when a byte was lost because the one before was not taken.

    Raises
    ------
    ValueError
        If a bit would be shorter than 4 clock cycles.

    Timing: a byte is offered half a bit before its stop bit ends; one byte every 10 bits.

    Cost: about 60 LUT4 and 35 flip-flops.
    """

    def __init__(self, *, clock_hz: int, baud: int):
        self._period = bit_period(clock_hz, baud)
        super().__init__(
            {
                "rx": In(1, init=1),  # pyright: ignore[reportCallIssue]
                "o": Out(stream.Signature(unsigned(8))),
                "framing_error": Out(1),
                "overrun": Out(1),
            }
        )

    def elaborate(self, platform):
        """Build the receiver."""
        m = Module()
        line = Signal(init=1)
        m.submodules.line = FFSynchronizer(self.rx, line, init=1)
        m.submodules.timer = timer = BaudTimer(period=self._period, middle=True)
        data = Signal(8)
        count = Signal(range(8))

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM(init="RECOVER"):
            with m.State("IDLE"), m.If(~line):
                m.d.comb += timer.start.eq(1)
                m.next = "START"
            with m.State("START"), m.If(timer.tick):
                m.d.sync += count.eq(0)
                m.next = "DATA"
                with m.If(line):
                    m.next = "IDLE"
            with m.State("DATA"), m.If(timer.tick):
                m.d.sync += [data.eq(Cat(data[1:], line)), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "STOP"
            with m.State("STOP"), m.If(timer.tick):
                with m.If(line):
                    with m.If(self.o.valid & ~self.o.ready):
                        m.d.comb += self.overrun.eq(1)
                    with m.Else():
                        m.d.sync += [self.o.payload.eq(data), self.o.valid.eq(1)]
                    m.next = "IDLE"
                with m.Else():
                    m.d.comb += self.framing_error.eq(1)
                    m.next = "RECOVER"
            with m.State("RECOVER"), m.If(line):
                m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Sends bytes on a serial line.

    Parameters
    ----------
    clock_hz, baud : int
        Frequency of the clock domain ``sync``, and of the bits.

    Members
    -------
    i : In(stream.Signature(unsigned(8)))
        Bytes to send.
    tx : Out(1), init=1
        The line, directly from a flip-flop.

    Raises
    ------
    ValueError
        If a bit would be shorter than 4 clock cycles.

    Timing: the start bit begins one cycle after the transfer; one byte every 10 bits.

    Cost: about 40 LUT4 and 25 flip-flops.
    """

    def __init__(self, *, clock_hz: int, baud: int):
        self._period = bit_period(clock_hz, baud)
        super().__init__({"i": In(stream.Signature(unsigned(8))), "tx": Out(1, init=1)})  # pyright: ignore[reportCallIssue]

    def elaborate(self, platform):
        """Build the transmitter."""
        m = Module()
        m.submodules.timer = timer = BaudTimer(period=self._period, middle=False)
        data = Signal(9, init=0x1FF)
        count = Signal(range(10))
        busy = Signal()

        m.d.comb += self.i.ready.eq(~busy | (timer.tick & (count == 9)))
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += timer.start.eq(1)
            m.d.sync += [self.tx.eq(0), data.eq(Cat(self.i.payload, 1)), count.eq(0), busy.eq(1)]
        with m.Elif(busy & timer.tick):
            m.d.sync += [self.tx.eq(data[0]), data.eq(Cat(data[1:], 1)), count.eq(count + 1)]
            with m.If(count == 9):
                m.d.sync += [busy.eq(0), self.tx.eq(1)]
        return m
