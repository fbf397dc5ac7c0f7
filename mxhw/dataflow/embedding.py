# amaranth: UnusedElaboratable=no
"""The embedding: one row of a table that lies in weight words, as wide blocks."""

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.pipeline import StreamFifo
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat, BlockWord, SharedBeat
from mxhw.dataflow.program import EmbeddingCommand
from mxhw.formats import SCALE_BIAS, BlockFormat

__all__ = ["Embedding"]


class Embedding(wiring.Component):
    """Cut a token's row out of its words and widen it.

    Contract: golden.linear.embedding. For each command, ``blocks`` words are taken and block
    ``row`` of each is requantised to the wide format, which is exact if that has enough bits.

    Parameters
    ----------
    format : BlockFormat
        Integer format of the words.
    wide_format : BlockFormat
    rows : int
        Blocks of a word.
    lanes : int
        Elements of an output beat.
    blocks : int
        Blocks of a row of the table.

    Members
    -------
    i : In(stream of BlockWord)
    i_command : In(stream of EmbeddingCommand)
    o : Out(stream of BlockBeat)

    Timing
    ------
    One beat a cycle, ``block_size / lanes + 2`` cycles a word.

    Cost
    ----
    A register of one block and a quantiser.
    """

    def __init__(
        self,
        *,
        format: BlockFormat,
        wide_format: BlockFormat,
        rows: int,
        lanes: int,
        blocks: int,
    ):
        self._format = format
        self._wide = wide_format
        self._rows = rows
        self._lanes = lanes
        self._blocks = blocks
        super().__init__(
            {
                "i": In(stream.Signature(BlockWord(format=format, rows=rows))),
                "i_command": In(stream.Signature(EmbeddingCommand(rows=rows))),
                "o": Out(stream.Signature(BlockBeat(format=wide_format, lanes=lanes))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a word's transfer to its first beat."""
        return self._quantizer().latency + 1 + self._format.block_size // self._lanes

    def _quantizer(self) -> Quantizer:
        return Quantizer(
            mantissa_bits=self._format.element.bits,
            lanes=self._lanes,
            formats=self._wide,
            shared_exponent=True,
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = self._format.element.bits
        m.submodules.quantizer = quantizer = self._quantizer()
        shape = SharedBeat(lanes=self._lanes, mantissa_bits=bits)
        m.submodules.queue = queue = StreamFifo(shape=shape, depth=2)
        wiring.connect(m, queue.o, quantizer.i)
        wiring.connect(m, quantizer.o, wiring.flipped(self.o))

        beats = self._format.block_size // self._lanes
        beat = Signal(range(beats))
        word = Signal(range(self._blocks))
        # The row is registered first: words come straight from block RAM, which is slow.
        block = Signal(BlockBeat(format=self._format, lanes=self._format.block_size))
        held = Signal()
        # A register: the way from here goes on through the route to every block RAM of the words.
        open_ = Signal()
        row = Signal.like(self.i_command.payload.row)
        take = Signal()
        last = beat == beats - 1
        codes = block.elements.as_value()
        lanes = codes.as_unsigned().word_select(beat, bits * self._lanes)
        m.d.comb += [
            take.eq(self.i.valid & open_),
            self.i.ready.eq(open_),
            self.i_command.ready.eq(take & (word == self._blocks - 1)),
            queue.i.valid.eq(held),
            queue.i.payload.exponent.eq(
                block.scale - (SCALE_BIAS + self._format.element.fraction_bits)
            ),
        ]
        for lane in range(self._lanes):
            code = lanes[lane * bits : (lane + 1) * bits].as_signed()
            m.d.comb += queue.i.payload.mantissas[lane].eq(code)
        with m.If(~held & self.i_command.valid):
            m.d.sync += [open_.eq(1), row.eq(self.i_command.payload.row)]
        with m.If(take):
            m.d.sync += [
                open_.eq(0),
                block.eq(self.i.payload[row]),
                held.eq(1),
                word.eq(Mux(word == self._blocks - 1, 0, word + 1)),
            ]
        with m.If(held & queue.i.ready):
            m.d.sync += [beat.eq(Mux(last, 0, beat + 1)), held.eq(~last)]
        return m
