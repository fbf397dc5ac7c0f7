# amaranth: UnusedElaboratable=no
"""Biases of queries, keys and values."""

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.elementwise import ElementwiseAdd
from mxhw.arith.pipeline import StreamFifo
from mxhw.arith.shapes import BlockBeat
from mxhw.formats import BlockFormat
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["Bias"]

_BLOCKS_INSIDE = 8


class Bias(wiring.Component):
    """Add constant vectors to the projections that pass, in the order in which they pass.

    Contract: :func:`mxhw.ops.bias`, bit for bit. Blocks come on ``i_wide`` or on ``i_narrow``,
    never on both at a time; block ``n`` of a token is added to block ``n`` of ``vectors`` and
    leaves on the port of the same name, wide or narrow. After the last the vectors begin again.

    Parameters
    ----------
    vectors : sequence of MXTensor
        Biases in the order of their use in a token, in ``wide_format``.
    wide_format, format : BlockFormat
        Integer formats of wide and of narrow results, with one block size.
    lanes : int
        Elements of a beat.

    Members
    -------
    i_wide, i_narrow : ``In(stream.Signature(BlockBeat(wide_format, lanes)))``
    o_wide, o_narrow : ``Out(stream.Signature(BlockBeat(wide_format, lanes)))``
        Codes of narrow results are sign-extended.

    Raises
    ------
    ValueError
        If there is no vector.

    Timing
    ------
    ``latency`` from a block's last beat to the first of the sum; a beat a cycle.

    Cost
    ----
    An adder of blocks (:class:`~mxhw.arith.elementwise.ElementwiseAdd`) and the vectors in block
    RAM; no multipliers.
    """

    interval = 1

    def __init__(
        self,
        *,
        vectors: Sequence[MXTensor],
        wide_format: BlockFormat,
        format: BlockFormat,
        lanes: int,
    ):
        if not vectors:
            raise ValueError("Biases must have at least one vector, not 0")
        beat = BlockBeat(format=wide_format, lanes=lanes)
        self._vectors = list(vectors)
        self._wide_format = wide_format
        self._lanes = lanes
        self._add = ElementwiseAdd(
            x_format=wide_format, y_format=wide_format, format=(wide_format, format), lanes=lanes
        )
        super().__init__(
            {
                "i_wide": In(stream.Signature(beat)),
                "i_narrow": In(stream.Signature(beat)),
                "o_wide": Out(stream.Signature(beat)),
                "o_narrow": Out(stream.Signature(beat)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a block's last beat to the first of its sum."""
        return self._add.latency

    @property
    def beats(self) -> int:
        """Beats of all vectors."""
        return sum(vector.elements.numel() for vector in self._vectors) // self._lanes

    @property
    def beat_bits(self) -> int:
        """Bits of a beat of the vectors."""
        return self.i_wide.payload.shape().size

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        return self._add.cost()

    def _contents(self) -> list[int]:
        shape = self.i_wide.payload.shape()
        words = []
        for vector in self._vectors:
            codes, scales = vector.elements.flatten().tolist(), vector.scales.flatten().tolist()
            for start in range(0, len(codes), self._lanes):
                fields = {
                    "elements": codes[start : start + self._lanes],
                    "scale": scales[start // self._wide_format.block_size],
                }
                words.append(shape.const(fields).as_bits())
        return words

    def elaborate(self, platform):
        """Build the unit."""
        m = Module()
        m.submodules.add = add = self._add
        block_beats = self._wide_format.block_size // self._lanes
        m.submodules.vectors = vectors = memory.Memory(
            shape=unsigned(self.beat_bits),
            depth=max(self.beats, 2),
            init=self._contents(),
            attrs={"ram_style": "block"},
        )
        read = vectors.read_port()
        # Which results are narrow, one a block.
        m.submodules.kinds = kinds = StreamFifo(shape=unsigned(1), depth=_BLOCKS_INSIDE)

        place = Signal(range(max(self.beats, 2)))
        following = Signal.like(place)
        take = Signal()
        first = Signal(init=1)
        started = Signal()
        beat = Signal(range(max(block_beats, 2)))
        narrow = self.i_narrow.valid
        m.d.comb += [
            following.eq(place),
            read.addr.eq(following),
            add.i.valid.eq((self.i_wide.valid | narrow) & started & (~first | kinds.i.ready)),
            take.eq(add.i.valid & add.i.ready),
            add.i.payload.select.eq(narrow),
            add.i.payload.x.eq(
                Mux(narrow, self.i_narrow.payload.as_value(), self.i_wide.payload.as_value())
            ),
            add.i.payload.y.eq(read.data),
            self.i_wide.ready.eq(take & ~narrow),
            self.i_narrow.ready.eq(take & narrow),
            kinds.i.valid.eq(take & first),
            kinds.i.payload.eq(narrow),
        ]
        # The first beat of the vectors is read in the cycle after a reset.
        m.d.sync += started.eq(1)
        with m.If(take):
            m.d.comb += following.eq(Mux(place == self.beats - 1, 0, place + 1))
            last = beat == block_beats - 1
            m.d.sync += [
                place.eq(following),
                beat.eq(Mux(last, 0, beat + 1)),
                first.eq(last),
            ]

        left = Signal(range(max(block_beats, 2)))
        done = Signal()
        m.d.comb += [
            self.o_wide.payload.eq(add.o.payload),
            self.o_narrow.payload.eq(add.o.payload),
            self.o_wide.valid.eq(add.o.valid & kinds.o.valid & ~kinds.o.payload),
            self.o_narrow.valid.eq(add.o.valid & kinds.o.valid & kinds.o.payload),
            add.o.ready.eq(
                kinds.o.valid & Mux(kinds.o.payload, self.o_narrow.ready, self.o_wide.ready)
            ),
            done.eq(left == block_beats - 1),
            kinds.o.ready.eq(add.o.valid & add.o.ready & done),
        ]
        with m.If(add.o.valid & add.o.ready):
            m.d.sync += left.eq(Mux(done, 0, left + 1))
        return m
