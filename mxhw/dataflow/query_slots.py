"""Queries whose blocks hold several heads: each head alone, in a block of its own."""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.shapes import BlockBeat
from mxhw.formats import BlockFormat

__all__ = ["QuerySlots"]


class QuerySlots(wiring.Component):
    """Give each block once for every slot of it, with zeros in all other slots.

    Contract: :func:`mxhw.sw.golden.attention.only_slot` of each block for slot 0, slot 1 and so on.

    Parameters
    ----------
    format : BlockFormat
    lanes : int
        Elements of a beat.
    slots : int
        Equal parts of a block, in whole beats.

    Members
    -------
    i : ``In(stream.Signature(BlockBeat(format, lanes)))``
    o : ``Out(stream.Signature(BlockBeat(format, lanes)))``

    Raises
    ------
    ValueError
        If a slot is not whole beats.

    Timing
    ------
    A block passes for slot 0 as it comes and then ``slots - 1`` times from memory: ``latency`` 0,
    ``interval`` ``slots`` times the beats of a block.

    Cost
    ----
    A block in distributed memory; no multiplier.
    """

    latency = 0

    def __init__(self, *, format: BlockFormat, lanes: int, slots: int):
        size = format.block_size
        if not isinstance(slots, int) or slots < 1 or size % (slots * lanes):
            raise ValueError(
                f"Slots of a query must be whole beats of {lanes} of its {size} elements, "
                f"not {slots!r} slots"
            )
        self._format = format
        self._lanes = lanes
        self._slots = slots
        beat = BlockBeat(format=format, lanes=lanes)
        super().__init__({"i": In(stream.Signature(beat)), "o": Out(stream.Signature(beat))})

    @property
    def beats(self) -> int:
        """Beats of a block."""
        return self._format.block_size // self._lanes

    @property
    def interval(self) -> int:
        """Cycles from one block to the next."""
        return self._slots * self.beats

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        return {"multipliers": 0, "memory_bits": self.beats * self.i.payload.shape().size}

    def elaborate(self, platform):
        """Build the unit."""
        m = Module()
        shape = self.i.payload.shape()
        m.submodules.block = block = memory.Memory(
            shape=unsigned(shape.size),
            depth=self.beats,
            init=[],
            attrs={"ram_style": "distributed"},
        )
        write = block.write_port()
        read = block.read_port(domain="comb")
        beat = Signal(range(max(self.beats, 2)))
        turn = Signal(range(max(self._slots, 2)))
        first = Signal()
        inside = Signal()
        part = self.beats // self._slots
        stored = data.View(shape, read.data)
        source = data.View(shape, Mux(first, self.i.payload.as_value(), stored.as_value()))
        m.d.comb += [
            first.eq(turn == 0),
            write.addr.eq(beat),
            write.data.eq(self.i.payload),
            write.en.eq(first & self.i.valid & self.i.ready),
            read.addr.eq(beat),
            self.o.valid.eq(~first | self.i.valid),
            self.i.ready.eq(first & self.o.ready),
            self.o.payload.scale.eq(source.scale),
        ]
        with m.Switch(turn):
            for slot in range(self._slots):
                with m.Case(slot):
                    m.d.comb += inside.eq((beat >= slot * part) & (beat <= (slot + 1) * part - 1))
        for lane in range(self._lanes):
            m.d.comb += self.o.payload.elements[lane].eq(Mux(inside, source.elements[lane], 0))
        with m.If(self.o.valid & self.o.ready):
            last = beat == self.beats - 1
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
            with m.If(last):
                m.d.sync += turn.eq(Mux(turn == self._slots - 1, 0, turn + 1))
        return m
