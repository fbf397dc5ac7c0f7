# amaranth: UnusedElaboratable=no
"""Value cache: transposed codes, read as weight words, and the scales that softmax folds in."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.arith.shapes import BlockBeat, BlockWord
from mxhw.dataflow.key_cache import (
    CacheCommand,
    ColumnMemory,
    check_cache,
    index_shape,
)
from mxhw.formats import SCALE_BIAS, SCALE_BITS, BlockFormat

__all__ = ["ValueCache"]


class ValueCache(wiring.Component):
    """Values of all layers and heads: codes along the positions, scales apart.

    The word of block ``b`` of positions and group ``g`` of dimensions holds, in row ``r`` and
    lane ``l``, the code of dimension ``rows * g + r`` at position ``block_size * b + l``, and the
    scale byte 127. Reading position ``p`` of a part of the head gives, for every group of the part
    in turn, the words of blocks 0 to ``p // block_size``; lanes of later positions hold anything,
    which the zero numerators there make harmless.

    Commands are served in order, so that a read sees every write before it. After a write of
    position ``p`` the scales of the head's positions 0 to ``p``, of its first block and then of
    the next, leave on ``o_scales`` ``query_heads_per_kv`` times, whether or not commands follow;
    ``kv_heads`` writes may wait for that before the next write stalls.

    Parameters
    ----------
    layers, kv_heads, context, head_size : int
        ``context`` positions, whole blocks; ``head_size`` elements, whole blocks.
    rows : int
        Rows of a word, a power of two, a multiple of ``lanes`` that divides a part of a head.
    format : BlockFormat
        Format of the values.
    lanes : int
        Elements of an input beat and scales of a scale beat.
    query_heads_per_kv : int
        Query heads that share a value head.
    parts : int
        Equal parts of a head, of which a read command names one.

    Members
    -------
    i_command : ``In(stream.Signature(CacheCommand(...)))``
    i : ``In(stream.Signature(BlockBeat(format, lanes)))``
        The value of each write command.
    o : ``Out(stream.Signature(BlockWord(format, rows)))``
        The words of each read command.
    o_scales : ``Out(stream.Signature(ArrayLayout(unsigned(8), lanes)))``
        Scales of successive positions; what follows position ``p`` in its beat is arbitrary.

    Raises
    ------
    TypeError
        If the format is no block format.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` 3 cycles from a read command to its first word, then one word a cycle, also from
    one command to the next. A write takes one cycle a beat. ``scale_latency`` 4 cycles from the
    last beat of a write to the first scales, then one beat a cycle, but for a cycle a write.

    Cost
    ----
    One memory of ``rows`` codes a word for each position of a block, one of scales: 33 block
    RAMs up to a depth of 512 words of 4 rows; a register of a word.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        context: int,
        head_size: int,
        rows: int = 4,
        format: BlockFormat,
        lanes: int = 4,
        query_heads_per_kv: int = 1,
        parts: int = 1,
    ):
        check_cache(
            layers=layers,
            kv_heads=kv_heads,
            context=context,
            head_size=head_size,
            rows=rows,
            format=format,
            lanes=lanes,
        )
        size = format.block_size
        if context % size:
            raise ValueError(
                f"Positions of a value cache must be a multiple of the block size ({size}), "
                f"not {context}"
            )
        if size % rows or rows % lanes:
            raise ValueError(
                f"Rows of a value word must divide the block size ({size}) and be a multiple "
                f"of the lanes ({lanes}), not {rows}"
            )
        if not isinstance(parts, int) or parts < 1 or head_size % (parts * rows):
            raise ValueError(
                f"Parts of a value head must be whole groups of its {head_size} elements, "
                f"{rows} in a group, not {parts!r}"
            )
        if not isinstance(query_heads_per_kv, int) or query_heads_per_kv < 1:
            raise ValueError(
                f"Query heads of a value head must be a positive integer, "
                f"not {query_heads_per_kv!r}"
            )
        self._layers = layers
        self._kv_heads = kv_heads
        self._context = context
        self._head_size = head_size
        self._rows = rows
        self._format = format
        self._lanes = lanes
        self._query_heads_per_kv = query_heads_per_kv
        self._parts = parts
        self._groups = head_size // rows
        self._head_blocks = head_size // size
        self._blocks = context // size
        bits = format.element.bits
        # Every column is offered the same elements; the enables choose the position.
        self._codes = ColumnMemory(
            depth=layers * kv_heads * self._groups * self._blocks,
            widths=[bits] * size,
            offsets=[[row % lanes * bits for row in range(rows)]] * size,
        )
        self._scales = ColumnMemory(
            depth=layers * kv_heads * self._head_blocks * context // lanes,
            widths=[SCALE_BITS],
            offsets=[[0] * lanes],
        )
        command = CacheCommand(layers=layers, kv_heads=kv_heads, context=context, parts=parts)
        super().__init__(
            {
                "i_command": In(stream.Signature(command)),
                "i": In(stream.Signature(BlockBeat(format=format, lanes=lanes))),
                "o": Out(stream.Signature(BlockWord(format=format, rows=rows))),
                "o_scales": Out(stream.Signature(data.ArrayLayout(SCALE_BITS, lanes))),
            }
        )

    @property
    def format(self) -> BlockFormat:
        """Format of the values."""
        return self._format

    @property
    def rows(self) -> int:
        """Rows of a word."""
        return self._rows

    @property
    def lanes(self) -> int:
        """Elements of an input beat and scales of a scale beat."""
        return self._lanes

    @property
    def query_heads_per_kv(self) -> int:
        """Times that the scales of a head leave after a write."""
        return self._query_heads_per_kv

    @property
    def depth(self) -> int:
        """Words of the memory."""
        return self._codes.depth

    @property
    def latency(self) -> int:
        """Cycles from a read command to its first word."""
        return 1 + ColumnMemory.latency

    @property
    def scale_latency(self) -> int:
        """Cycles from the last beat of a write to its first scales."""
        return 2 + ColumnMemory.latency

    @property
    def interval(self) -> int:
        """Cycles from one word to the next."""
        return 1

    @property
    def write_cycles(self) -> int:
        """Cycles that a write keeps the memory."""
        return self._head_size // self._lanes

    def read_cycles(self, position: int) -> int:
        """Cycles that reading a part up to ``position`` keeps the memory."""
        return (position // self._format.block_size + 1) * (self._groups // self._parts)

    def scale_cycles(self, position: int) -> int:
        """Cycles that the scales take after a write of ``position``."""
        return (position // self._lanes + 1) * self._head_blocks * self._query_heads_per_kv

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        codes, scales = self._codes.cost(), self._scales.cost()
        return {name: codes[name] + scales[name] for name in codes}

    def elaborate(self, platform):
        m = Module()
        m.submodules.codes = codes = self._codes
        size = self._format.block_size
        command = self.i_command.payload
        position = Signal(ceil_log2(self._context))
        head = Signal(range(self._layers * self._kv_heads))
        m.d.comb += [
            position.eq(command.position),
            head.eq(command.layer * self._kv_heads + command.head),
        ]

        # Words of one group are neighbours: the inner loop of a read counts by one.
        busy = Signal()
        writing = Signal()
        finish = Signal()
        address = Signal(range(self.depth))
        start = Signal(range(self.depth))
        last_block = Signal(range(max(self._blocks, 2)))
        block_left = Signal.like(last_block)
        group_left = Signal(range(max(self._groups, 2)))
        column = Signal(size)

        parts = self._rows // self._lanes
        part = Signal(parts, init=1)
        beat = self.i.payload
        write = codes.i_write.payload
        rows = Cat(bit.replicate(self._lanes) for bit in part)
        m.d.comb += [
            write.beat.eq(beat.elements.as_value()),
            write.address.eq(address),
            codes.i_read.payload.eq(address),
        ]
        for index in range(size):
            with m.If(column[index]):
                m.d.comb += write.enables[index].eq(rows)

        last = Signal()
        block_end = Signal()
        end = Signal()
        room = Signal()
        self._elaborate_scales(m, head, position, block_end, end, room)
        with m.If(busy & writing):
            groups_a_block = size // self._rows
            m.d.comb += [
                last.eq(part[-1] & (group_left == 0)),
                block_end.eq(self.i.valid & part[-1] & ((group_left & (groups_a_block - 1)) == 0)),
                end.eq(self.i.valid & last & ~codes.pending),
                self.i.ready.eq((~last | room) & ~codes.pending),
                codes.i_write.valid.eq(self.i.valid & ~codes.pending),
            ]
            with m.If(self.i.valid & self.i.ready):
                m.d.comb += finish.eq(last)
                m.d.sync += part.eq(part.rotate_left(1))
                with m.If(part[-1]):
                    m.d.sync += [
                        address.eq(address + self._blocks),
                        group_left.eq(group_left - 1),
                    ]
        with m.Elif(busy):
            m.d.comb += codes.i_read.valid.eq(1)
            with m.If(codes.i_read.ready):
                with m.If(block_left != 0):
                    m.d.sync += [address.eq(address + 1), block_left.eq(block_left - 1)]
                with m.Else():
                    m.d.comb += finish.eq(group_left == 0)
                    m.d.sync += [
                        address.eq(start + self._blocks),
                        start.eq(start + self._blocks),
                        block_left.eq(last_block),
                        group_left.eq(group_left - 1),
                    ]
        # A new command overrides the counters of the one that ends.
        m.d.comb += self.i_command.ready.eq(~busy | finish)
        with m.If(self.i_command.ready):
            base = Signal(range(self.depth))
            lane = position[: ceil_log2(size)]
            block = position[ceil_log2(size) :]
            groups = self._groups // self._parts
            m.d.comb += base.eq(
                head * (self._groups * self._blocks)
                + Mux(command.write, 0, command.part * (groups * self._blocks))
            )
            m.d.sync += [
                busy.eq(self.i_command.valid),
                writing.eq(command.write),
                address.eq(base + Mux(command.write, block, 0)),
                start.eq(base),
                last_block.eq(block),
                block_left.eq(block),
                group_left.eq(Mux(command.write, self._groups - 1, groups - 1)),
                column.eq(1 << lane),
            ]

        bits = self._format.element.bits
        m.d.comb += [self.o.valid.eq(codes.o.valid), codes.o.ready.eq(self.o.ready)]
        for row in range(self._rows):
            target = self.o.payload[row]
            m.d.comb += target.scale.eq(SCALE_BIAS)
            for index in range(size):
                cell = codes.o.payload.word_select(index * self._rows + row, bits)
                m.d.comb += target.elements[index].eq(cell)
        return m

    def _elaborate_scales(
        self,
        m: Module,
        head: Signal,
        position: Signal,
        block_end: Signal,
        end: Signal,
        room: Signal,
    ) -> None:
        """Add the scale memory, written with ``block_end``, and its reader.

        The reader gets a job with ``end``, where there is ``room``.
        """
        m.submodules.scales = scales = self._scales
        per_head = self._context // self._lanes
        beat_bits = ceil_log2(self._lanes)
        job = data.StructLayout({"start": index_shape(scales.depth), "left": index_shape(per_head)})
        m.submodules.jobs = jobs = fifo.SyncFIFO(width=job.size, depth=self._kv_heads)

        # The place of the value being written; it waits here for the last beat.
        place = Signal(job)
        block_start = Signal(index_shape(scales.depth))
        row = Signal(self._lanes)
        with m.If(block_end & self.i.ready):
            m.d.sync += block_start.eq(block_start + per_head)
        with m.If(self.i_command.ready):
            start = head * (per_head * self._head_blocks)
            m.d.sync += [
                place.start.eq(start),
                place.left.eq(position >> beat_bits),
                block_start.eq(start),
                row.eq(1 << position[:beat_bits] if beat_bits else 1),
            ]
        m.d.comb += [
            room.eq(jobs.w_rdy),
            jobs.w_en.eq(end & room),
            jobs.w_data.eq(place),
            scales.i_write.valid.eq(block_end & self.i.ready),
            scales.i_write.payload.address.eq(block_start + place.left),
            scales.i_write.payload.beat.eq(self.i.payload.scale),
            scales.i_write.payload.enables[0].eq(row),
        ]

        busy = Signal()
        finish = Signal()
        active = Signal(job)
        address = Signal(range(scales.depth))
        left = Signal(range(max(per_head, 2)))
        repeats = Signal(range(max(self._query_heads_per_kv, 2)))
        blocks_left = Signal(range(max(self._head_blocks, 2)))
        next_block = Signal(index_shape(scales.depth))
        m.d.comb += [
            scales.i_read.valid.eq(busy),
            scales.i_read.payload.eq(address),
            jobs.r_en.eq(~busy | finish),
        ]
        with m.If(busy & scales.i_read.ready):
            with m.If(left != 0):
                m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
            with m.Elif(blocks_left != 0):
                m.d.sync += [
                    address.eq(next_block),
                    next_block.eq(next_block + per_head),
                    left.eq(active.left),
                    blocks_left.eq(blocks_left - 1),
                ]
            with m.Else():
                m.d.comb += finish.eq(repeats == 0)
                m.d.sync += [
                    address.eq(active.start),
                    next_block.eq(active.start + per_head),
                    left.eq(active.left),
                    blocks_left.eq(self._head_blocks - 1),
                    repeats.eq(repeats - 1),
                ]
        with m.If(jobs.r_en):
            new = data.View(job, jobs.r_data)
            m.d.sync += [
                busy.eq(jobs.r_rdy),
                active.eq(new),
                address.eq(new.start),
                next_block.eq(new.start + per_head),
                left.eq(new.left),
                blocks_left.eq(self._head_blocks - 1),
                repeats.eq(self._query_heads_per_kv - 1),
            ]
        m.d.comb += [
            self.o_scales.valid.eq(scales.o.valid),
            self.o_scales.payload.eq(scales.o.payload),
            scales.o.ready.eq(self.o_scales.ready),
        ]
