"""The tap on the logits: all of them to the arg-max, a copy to the host where it was asked for."""

from amaranth import Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.dataflow.fixed import FixedBeat

__all__ = ["LogitsTap"]


class LogitsTap(wiring.Component):
    """Pass each vector of logits on, and copy it if its command says so.

    Contract: for each command (one bit), ``length / lanes`` beats go to ``o``, and to ``o_copy``
    as well if the bit is set.

    Parameters
    ----------
    length : int
        Values of a vector, a multiple of ``lanes``.
    lanes : int

    Members
    -------
    i : In(stream of beats)
    i_command : In(stream of unsigned(1))
    o, o_copy : Out(stream of beats)

    Raises
    ------
    ValueError
        If the length is not a multiple of the lanes.

    Timing
    ------
    A beat passes in the cycle it arrives if its readers are ready.

    Cost
    ----
    A counter.
    """

    latency = 0
    interval = 1

    def __init__(self, *, length: int, lanes: int):
        if length < lanes or length % lanes:
            raise ValueError(
                f"Length of a vector of logits must be a multiple of the lanes ({lanes}), "
                f"not {length}"
            )
        self._beats = length // lanes
        shape = FixedBeat(lanes=lanes)
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "i_command": In(stream.Signature(unsigned(1))),
                "o": Out(stream.Signature(shape)),
                "o_copy": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        left = Signal(range(self._beats + 1))
        copy = Signal()
        # What a reader has taken of the present beat; the other may still be waiting.
        taken = Signal()
        copied = Signal()
        main_done = taken | self.o.ready
        copy_done = ~copy | copied | self.o_copy.ready
        offered = self.i.valid & (left != 0)
        m.d.comb += [
            self.i_command.ready.eq(left == 0),
            self.o.payload.eq(self.i.payload),
            self.o_copy.payload.eq(self.i.payload),
            self.o.valid.eq(offered & ~taken),
            self.o_copy.valid.eq(offered & copy & ~copied),
            self.i.ready.eq((left != 0) & main_done & copy_done),
        ]
        with m.If(self.i_command.valid & self.i_command.ready):
            m.d.sync += [left.eq(self._beats), copy.eq(self.i_command.payload)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [left.eq(left - 1), taken.eq(0), copied.eq(0)]
        with m.Elif(offered):
            m.d.sync += [
                taken.eq(taken | self.o.ready),
                copied.eq(copied | (copy & self.o_copy.ready)),
            ]
        return m
