"""Joins and splits of streams by a static schedule: one command, then a run of transfers."""

from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.dataflow.copies import register_copies

__all__ = ["RouteCommand", "StreamRegister", "StreamRoute", "StreamSelect"]


class RouteCommand(data.StructLayout):
    """Which port, and how many transfers to pass."""

    def __init__(self, *, ports: int, count_bits: int):
        self.ports = ports
        self.count_bits = count_bits
        super().__init__({"port": unsigned(bits_for(ports - 1)), "count": unsigned(count_bits)})


def _check(ports: int, count_bits: int) -> None:
    if not isinstance(ports, int) or ports < 1:
        raise ValueError(f"Number of ports must be a positive integer, not {ports!r}")
    if not isinstance(count_bits, int) or count_bits < 1:
        raise ValueError(f"Width of the count must be a positive integer, not {count_bits!r}")


class _Scheduled(wiring.Component):
    """What both directions share: which port passes transfers, and how many are left."""

    def _schedule(self, m: Module, transfer) -> Signal:
        """For each port, whether it passes transfers now."""
        command = self.i_command
        left = Signal(self.count_bits)
        # What the handshakes depend on are registers of their own: comparisons of the count or of
        # the port would stand at the begin of the longest chains of valid and ready in a design.
        chosen = Signal(self.ports)
        busy = Signal()
        last = Signal()
        m.d.comb += command.ready.eq(~busy)
        with m.If(transfer):
            m.d.sync += [left.eq(left - 1), last.eq(left == 2)]
            with m.If(last):
                m.d.sync += [busy.eq(0), chosen.eq(0)]
        with m.If(command.valid & command.ready):
            some = command.payload.count != 0
            m.d.sync += [
                left.eq(command.payload.count),
                busy.eq(some),
                chosen.eq(Mux(some, 1 << command.payload.port, 0)),
                last.eq(command.payload.count == 1),
            ]
        return chosen


class StreamSelect(_Scheduled):
    """Pass runs of transfers from one of several inputs to one output.

    Contract: each command passes ``count`` transfers of input ``port`` unchanged and in order;
    ``count`` 0 passes none. Inputs that are not selected wait.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    ports : int
        Number of inputs.
    count_bits : int
        Width of the count.
    parts : sequence of int or None
        Widths of the parts of the payload, from its lowest bit on. Each part has a register of its
        own that holds the port, so that none has to drive all of a wide payload. By default one.

    Members
    -------
    i : array of In(stream)
    i_command : In(stream of RouteCommand)
    o : Out(stream)

    Timing
    ------
    A transfer passes in the cycle it arrives; one cycle passes between two commands.

    Cost
    ----
    A multiplexer of ``ports`` payloads and two counters.
    """

    def __init__(self, *, shape, ports: int, count_bits: int, parts: Sequence[int] | None = None):
        _check(ports, count_bits)
        width = Shape.cast(shape).width
        self._parts = [width] if parts is None else list(parts)
        if sum(self._parts) != width or min(self._parts, default=0) < 1:
            raise ValueError(
                f"Parts of a payload must have positive widths that add up to its {width} bits, "
                f"not {self._parts!r}"
            )
        self.ports = ports
        self.count_bits = count_bits
        command = RouteCommand(ports=ports, count_bits=count_bits)
        super().__init__(
            {
                "i": In(stream.Signature(shape)).array(ports),
                "i_command": In(stream.Signature(command)),
                "o": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        chosen = self._schedule(m, self.o.valid & self.o.ready)
        ports = register_copies(bits_for(self.ports - 1), len(self._parts), "port")
        with m.If(self.i_command.valid & self.i_command.ready):
            m.d.sync += [port.eq(self.i_command.payload.port) for port in ports]
        valids = Cat(source.valid for source in self.i)
        m.d.comb += self.o.valid.eq((valids & chosen).any())
        m.d.comb += [
            source.ready.eq(self.o.ready & chosen[index]) for index, source in enumerate(self.i)
        ]
        payloads = [Value.cast(self.i[index].payload) for index in range(self.ports)]
        start = 0
        for width, port in zip(self._parts, ports, strict=True):
            span = slice(start, start + width)
            start += width
            chosen = Value.cast(self.o.payload)[span]
            with m.Switch(port):
                for index in range(self.ports - 1):
                    with m.Case(index):
                        m.d.comb += chosen.eq(payloads[index][span])
                # No port is left over that would need zeros: those became a reset of what follows.
                with m.Default():
                    m.d.comb += chosen.eq(payloads[-1][span])
        return m


class StreamRoute(_Scheduled):
    """Pass runs of transfers from one input to one of several outputs.

    Contract: each command passes ``count`` transfers to output ``port`` unchanged and in order;
    ``count`` 0 passes none.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    ports : int
        Number of outputs.
    count_bits : int
        Width of the count.

    Members
    -------
    i : In(stream)
    i_command : In(stream of RouteCommand)
    o : array of Out(stream)

    Timing
    ------
    A transfer passes in the cycle it arrives; one cycle passes between two commands.

    Cost
    ----
    Two counters; the payload fans out.
    """

    def __init__(self, *, shape, ports: int, count_bits: int):
        _check(ports, count_bits)
        self.ports = ports
        self.count_bits = count_bits
        command = RouteCommand(ports=ports, count_bits=count_bits)
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "i_command": In(stream.Signature(command)),
                "o": Out(stream.Signature(shape)).array(ports),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        chosen = self._schedule(m, self.i.valid & self.i.ready)
        readies = Cat(target.ready for target in self.o)
        m.d.comb += self.i.ready.eq((readies & chosen).any())
        for index, target in enumerate(self.o):
            m.d.comb += [
                target.payload.eq(self.i.payload),
                target.valid.eq(self.i.valid & chosen[index]),
            ]
        return m


class StreamRegister(wiring.Component):
    """One register stage for the payload of a stream.

    Contract: payloads pass unchanged and in order.

    Parameters
    ----------
    shape : ShapeLike
        Payload.

    Members
    -------
    i : In(stream)
    o : Out(stream)

    Timing
    ------
    ``latency`` 1, one transfer a cycle. ``i.ready`` depends on ``o.ready`` in the same cycle.

    Cost
    ----
    A register of the payload.
    """

    latency = 1
    interval = 1

    def __init__(self, *, shape):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        return m
