"""The tap on the logits: all of them to the arg-max, a copy to the host where it was asked for."""

from amaranth import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.dataflow.fixed import FixedBeat

__all__ = ["LogitsRegroup", "LogitsTap"]


class LogitsTap(wiring.Component):
    """Pass each vector of logits on, and copy it if its command says so.

    Contract: for each command (one bit), ``ceil(length / lanes)`` beats go to ``o``, and to
    ``o_copy`` as well if the bit is set.

    Parameters
    ----------
    length : int
        Values of a vector.
    lanes : int

    Members
    -------
    i : In(stream of beats)
    i_command : In(stream of unsigned(1))
    o, o_copy : Out(stream of beats)

    Raises
    ------
    ValueError
        If the length is less than 1.

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
        if length < 1:
            raise ValueError(f"Length of a vector of logits must be at least 1, not {length}")
        self._beats = -(-length // lanes)
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


class LogitsRegroup(wiring.Component):
    """Vectors of logits in beats of another width.

    Contract: a vector of ``length`` values comes in ``ceil(length / lanes_in)`` beats and leaves in
    ``ceil(length / lanes_out)``. Lanes behind the end of a vector have no meaning.

    Parameters
    ----------
    length : int
        Values of a vector.
    lanes_in, lanes_out : int
        One a multiple of the other.

    Members
    -------
    i, o : streams of beats

    Raises
    ------
    ValueError
        If the length is less than 1, or no number of lanes is a multiple of the other.

    Timing
    ------
    A beat leaves in the cycle in which the last value that it needs comes.

    Cost
    ----
    Wider beats: registers of all their lanes but the last ones. Narrower beats: a multiplexer.
    """

    latency = 0

    def __init__(self, *, length: int, lanes_in: int, lanes_out: int):
        if length < 1:
            raise ValueError(f"Length of a vector of logits must be at least 1, not {length}")
        if min(lanes_in, lanes_out) < 1 or max(lanes_in, lanes_out) % min(lanes_in, lanes_out):
            raise ValueError(
                f"Numbers of lanes must be positive and one a multiple of the other, not "
                f"{lanes_in} and {lanes_out}"
            )
        self._in, self._out = lanes_in, lanes_out
        self._beats_in, self._beats_out = -(-length // lanes_in), -(-length // lanes_out)
        super().__init__(
            {
                "i": In(stream.Signature(FixedBeat(lanes=lanes_in))),
                "o": Out(stream.Signature(FixedBeat(lanes=lanes_out))),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from one vector to the next."""
        return max(self._beats_in, self._beats_out)

    def elaborate(self, platform) -> Module:
        m = Module()
        ratio = max(self._in, self._out) // min(self._in, self._out)
        part = Signal(range(max(ratio, 2)))
        beat = Signal(range(max(self.interval, 2)))
        last = Signal()
        complete = Signal()
        moved = Signal()
        m.d.comb += [
            last.eq(beat == self.interval - 1),
            complete.eq(last | (part == ratio - 1)),
        ]
        with m.If(moved):
            m.d.sync += [
                beat.eq(Mux(last, 0, beat + 1)),
                part.eq(Mux(complete, 0, part + 1)),
            ]
        if self._in >= self._out:
            self._split(m, part, complete, moved)
        else:
            self._gather(m, ratio, part, complete, moved)
        return m

    def _split(self, m: Module, part: Signal, complete: Signal, moved: Signal) -> None:
        width = len(Value.cast(self.o.payload))
        m.d.comb += [
            Value.cast(self.o.payload).eq(Value.cast(self.i.payload).word_select(part, width)),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready & complete),
            moved.eq(self.o.valid & self.o.ready),
        ]

    def _gather(self, m: Module, ratio: int, part: Signal, complete: Signal, moved: Signal) -> None:
        value = Value.cast(self.i.payload)
        held = Signal(len(value) * (ratio - 1), reset_less=True)
        m.d.comb += [
            self.o.valid.eq(self.i.valid & complete),
            self.i.ready.eq(~complete | self.o.ready),
            moved.eq(self.i.valid & self.i.ready),
        ]
        with m.Switch(part):
            for index in range(ratio):
                with m.Case(index):
                    before = held[: index * len(value)]
                    m.d.comb += Value.cast(self.o.payload).eq(Cat(before, value))
                    if index < ratio - 1:
                        with m.If(moved):
                            m.d.sync += held.word_select(index, len(value)).eq(value)
