# amaranth: UnusedElaboratable=no
"""Key cache: a weight memory that grows by a row a token; and the memory of both caches."""

import dataclasses
from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.arith.shapes import BlockBeat, BlockWord
from mxhw.dataflow.copies import register_copies
from mxhw.formats import SCALE_BITS, BlockFormat

__all__ = ["CacheCommand", "ColumnMemory", "KeyCache", "check_cache", "column_cost", "index_shape"]

_BLOCK_RAM_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
_COLUMNS_A_COPY = 8


def index_shape(count: int):
    """Shape of an index below ``count``, at least one bit wide."""
    return unsigned(max(1, ceil_log2(count)))


class CacheCommand(data.StructLayout):
    """What a cache does next: write one position of one head, or read all positions up to it.

    Of values one of ``parts`` equal parts of the head's elements is read.
    """

    def __init__(self, *, layers: int, kv_heads: int, context: int, parts: int = 1):
        super().__init__(
            {
                "write": unsigned(1),
                "layer": index_shape(layers),
                "head": index_shape(kv_heads),
                "part": index_shape(parts),
                "position": index_shape(context),
            }
        )


def check_cache(
    *,
    layers: int,
    kv_heads: int,
    context: int,
    head_size: int,
    rows: int,
    format: BlockFormat,
    lanes: int,
) -> None:
    """Check the parameters that both caches share; :class:`KeyCache` lists the errors."""
    for name, count in (("layers", layers), ("key heads", kv_heads), ("positions", context)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(
                f"Number of {name} of a cache must be a positive integer, not {count!r}"
            )
    if not isinstance(format, BlockFormat):
        raise TypeError(f"Format of a cache must be a block format, not {format!r}")
    if not isinstance(rows, int) or rows < 1 or rows & (rows - 1):
        raise ValueError(f"Rows of a cache word must be a power of two, not {rows!r}")
    if context % rows:
        raise ValueError(
            f"Positions of a cache must be a multiple of the rows of a word ({rows}), not {context}"
        )
    size = format.block_size
    if not isinstance(head_size, int) or head_size < 1 or head_size % size:
        raise ValueError(
            f"Head size of a cache must be a multiple of the block size ({size}), not {head_size!r}"
        )
    if not isinstance(lanes, int) or lanes < 1 or size % lanes:
        raise ValueError(f"Lanes of a cache must divide the block size ({size}), not {lanes!r}")


def block_rams(width: int, depth: int) -> int:
    """ECP5 block RAMs of a memory, in the shape that takes the fewest."""
    return min(-(-width // wide) * -(-depth // deep) for wide, deep in _BLOCK_RAM_SHAPES)


def column_cost(*, depth: int, rows: int, widths: Sequence[int]) -> dict[str, int]:
    """Cost of a :class:`ColumnMemory`; a cell of 8 bits takes 9 of a block RAM."""
    blocks = 0
    for width in widths:
        stored = rows * (9 * -(-width // 9) if width >= 8 else width)
        blocks += block_rams(stored, depth)
    return {"multipliers": 0, "memory_bits": 0, "block_rams": blocks}


class ColumnMemory(wiring.Component):
    """Words of ``rows`` cells in each of several columns, in block RAM.

    A cell can be written alone; a word is read whole. Each column is a memory of its own with one
    write enable a cell, the shape that byte enables of block RAMs serve. A word comes
    straight from the block RAM: what reads it should register it first. A read sees the writes of
    earlier cycles; in a cycle with a write no read is taken.

    The memories of a wide word lie all over a device. What a write brings and the address of a read
    are registered before them, in a copy for every eight columns.

    Parameters
    ----------
    depth : int
        Number of words.
    widths : sequence of int
        Bits of a cell, column by column.
    offsets : sequence of sequences of int
        Where in the beat of a write each row's cell begins, column by column.

    Members
    -------
    i_write : ``In(stream.Signature(..., always_ready=True))``
        ``address``; ``beat``: what cells are made of; ``enables``: one bit a cell, column by
        column.
    i_read : ``In(stream.Signature(unsigned(...)))``
        Addresses.
    o : ``Out(stream.Signature(unsigned(...)))``
        Words: cells from row 0 of column 0 on.
    pending : ``Out(1)``
        A read that was taken is not made yet: it might see what is written now. A register.

    Timing
    ------
    ``latency`` 2 cycles from an address to its word, one word a cycle.
    """

    latency = 2
    interval = 1

    def __init__(self, *, depth: int, widths: Sequence[int], offsets: Sequence[Sequence[int]]):
        self._depth = depth
        self._rows = len(offsets[0])
        self._widths = tuple(widths)
        self._offsets = [tuple(column) for column in offsets]
        beat_bits = max(max(column) + width for column, width in zip(offsets, widths, strict=True))
        address = index_shape(depth)
        write = data.StructLayout(
            {
                "address": address,
                "beat": unsigned(beat_bits),
                "enables": data.ArrayLayout(unsigned(self._rows), len(self._widths)),
            }
        )
        super().__init__(
            {
                "i_write": In(stream.Signature(write, always_ready=True)),
                "i_read": In(stream.Signature(address)),
                "o": Out(stream.Signature(unsigned(self._rows * sum(self._widths)))),
                "pending": Out(1),
            }
        )

    @property
    def depth(self) -> int:
        """Number of words."""
        return self._depth

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        return column_cost(depth=self._depth, rows=self._rows, widths=self._widths)

    def elaborate(self, platform):
        m = Module()
        groups = -(-len(self._widths) // _COLUMNS_A_COPY)
        write, read = self.i_write, self.i_read
        addressed = register_copies(1, groups, "addressed")
        addresses = register_copies(len(read.payload), groups, "address")
        written = register_copies(1, groups, "written")
        places = register_copies(len(read.payload), groups, "place")
        beats = register_copies(len(write.payload.beat), groups, "beat")
        valids = register_copies(1, groups, "valid")
        enables = Signal(write.payload.enables.shape(), reset_less=True)
        m.d.sync += enables.eq(write.payload.enables)
        words = []
        for group in range(groups):
            advance = Signal(name=f"advance_{group}")
            make = Signal(name=f"make_{group}")
            take = Signal(name=f"take_{group}")
            m.d.comb += [
                advance.eq(~valids[group] | self.o.ready),
                # A read waits beside a write: where synthesis sees that the two never meet, it
                # builds no bypass of the whole word.
                make.eq(advance & addressed[group] & ~written[group]),
                take.eq((~addressed[group] | make) & ~write.valid),
            ]
            m.d.sync += [
                written[group].eq(write.valid),
                places[group].eq(write.payload.address),
                beats[group].eq(write.payload.beat),
            ]
            with m.If(advance):
                m.d.sync += valids[group].eq(make)
            with m.If(make):
                m.d.sync += addressed[group].eq(0)
            with m.If(take):
                m.d.sync += [addressed[group].eq(read.valid), addresses[group].eq(read.payload)]
            if group == 0:
                m.d.comb += [
                    read.ready.eq(take),
                    self.pending.eq(addressed[0]),
                    self.o.valid.eq(valids[0]),
                ]
            start = group * _COLUMNS_A_COPY
            for column in range(start, min(start + _COLUMNS_A_COPY, len(self._widths))):
                port = self._column(m, column, beats[group])
                m.d.comb += [
                    port.write.addr.eq(places[group]),
                    port.write.en.eq(Mux(written[group], enables[column], 0)),
                    port.read.addr.eq(addresses[group]),
                ]
                # A synchronous read port promises the old word beside a write, which costs a bypass
                # of the whole word. This register becomes the block RAM's.
                with m.If(make):
                    m.d.sync += port.word.eq(port.read.data)
                words.append(port.word)
        m.d.comb += self.o.payload.eq(Cat(*words))
        return m

    def _column(self, m: Module, column: int, beat: Signal) -> "_ColumnPort":
        """The memory of a column, whose cells come from a beat."""
        width = self._widths[column]
        cells = data.ArrayLayout(unsigned(width), self._rows)
        m.submodules[f"column_{column}"] = store = memory.Memory(
            shape=cells, depth=self._depth, init=[], attrs={"ram_style": "block"}
        )
        port = _ColumnPort(
            write=store.write_port(granularity=1),
            read=store.read_port(domain="comb"),
            word=Signal(self._rows * width, reset_less=True, name=f"word_{column}"),
        )
        offsets = self._offsets[column]
        m.d.comb += port.write.data.eq(Cat(beat[start : start + width] for start in offsets))
        return port


@dataclasses.dataclass
class _ColumnPort:
    write: memory.WritePort
    read: memory.ReadPort
    word: Signal


class KeyCache(wiring.Component):
    """Keys of all layers and heads, read as the weight words of a score product.

    Word ``w`` of a head holds the keys of positions ``rows * w`` to ``rows * w + rows - 1``, one a
    row; a head of several blocks takes as many words in sequence. Commands are served in order, so
    that a read sees every write before it. Reading position ``p`` gives the words of positions 0 to
    ``p``; the rows of later positions in the last word hold anything.

    Parameters
    ----------
    layers, kv_heads, context, head_size : int
        ``context`` positions, a multiple of ``rows``; ``head_size`` elements, whole blocks.
    rows : int
        Rows of a word, a power of two.
    format : BlockFormat
        Format of the keys.
    lanes : int
        Elements of an input beat.
    parts : int
        Parts that a command can name; keys are read whole.

    Members
    -------
    i_command : ``In(stream.Signature(CacheCommand(...)))``
    i : ``In(stream.Signature(BlockBeat(format, lanes)))``
        The key of each write command.
    o : ``Out(stream.Signature(BlockWord(format, rows)))``
        The words of each read command.

    Raises
    ------
    TypeError
        If the format is no block format.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` 3 cycles from a read command to its first word, then one word a cycle, also from
    one command to the next. A write takes a cycle for the command, overlapped with the command
    before, and one a beat.

    Cost
    ----
    One memory of ``rows`` codes a word for each element of a block, one for the scales: 33 block
    RAMs up to a depth of 512 words of 4 rows.
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
        self._layers = layers
        self._kv_heads = kv_heads
        self._context = context
        self._head_size = head_size
        self._rows = rows
        self._format = format
        self._lanes = lanes
        self._blocks = head_size // format.block_size
        bits = format.element.bits
        # Every row of a column is offered the same element; the enables choose the row.
        elements = [[column % lanes * bits] * rows for column in range(format.block_size)]
        self._store = ColumnMemory(
            depth=layers * kv_heads * self.words_per_head,
            widths=[bits] * format.block_size + [SCALE_BITS],
            offsets=[*elements, [lanes * bits] * rows],
        )
        command = CacheCommand(layers=layers, kv_heads=kv_heads, context=context, parts=parts)
        super().__init__(
            {
                "i_command": In(stream.Signature(command)),
                "i": In(stream.Signature(BlockBeat(format=format, lanes=lanes))),
                "o": Out(stream.Signature(BlockWord(format=format, rows=rows))),
            }
        )

    @property
    def format(self) -> BlockFormat:
        """Format of the keys."""
        return self._format

    @property
    def rows(self) -> int:
        """Rows of a word."""
        return self._rows

    @property
    def lanes(self) -> int:
        """Elements of an input beat."""
        return self._lanes

    @property
    def words_per_head(self) -> int:
        """Words of one head of one layer."""
        return self._context // self._rows * self._blocks

    @property
    def depth(self) -> int:
        """Words of the memory."""
        return self._store.depth

    @property
    def latency(self) -> int:
        """Cycles from a read command to its first word."""
        return 1 + ColumnMemory.latency

    @property
    def interval(self) -> int:
        """Cycles from one word to the next."""
        return 1

    @property
    def write_cycles(self) -> int:
        """Cycles that a write keeps the memory."""
        return self._head_size // self._lanes

    def read_cycles(self, position: int) -> int:
        """Cycles that reading up to ``position`` keeps the memory."""
        return (position // self._rows + 1) * self._blocks

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        return self._store.cost()

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = self._store
        size = self._format.block_size
        steps = size // self._lanes
        command = self.i_command.payload
        row_bits = ceil_log2(self._rows)
        word = Signal(range(self._context // self._rows + 1))
        base = Signal(range(self.depth))
        m.d.comb += [
            word.eq(command.position >> row_bits),
            base.eq((command.layer * self._kv_heads + command.head) * self.words_per_head),
        ]

        busy = Signal()
        writing = Signal()
        finish = Signal()
        address = Signal(range(self.depth))
        left = Signal(range(max(self.words_per_head, 2)))
        row = Signal(self._rows)
        step = Signal(steps)
        m.d.comb += self.i_command.ready.eq(~busy | finish)
        with m.If(self.i_command.ready):
            # A write goes to the words of its own position, a read begins at the head's first.
            start = Mux(command.write, word * self._blocks, 0)
            last = Mux(command.write, self._blocks - 1, (word + 1) * self._blocks - 1)
            m.d.sync += [
                busy.eq(self.i_command.valid),
                writing.eq(command.write),
                address.eq(base + start),
                left.eq(last),
                row.eq(1 << command.position[:row_bits] if row_bits else 1),
                step.eq(1),
            ]

        beat = self.i.payload
        write = store.i_write.payload
        m.d.comb += [
            write.address.eq(address),
            write.beat.eq(Cat(beat.elements.as_value(), beat.scale)),
        ]
        for column in range(size):
            with m.If(step[column // self._lanes]):
                m.d.comb += write.enables[column].eq(row)
        m.d.comb += write.enables[size].eq(row)

        with m.If(busy & writing):
            m.d.comb += [
                self.i.ready.eq(~store.pending),
                store.i_write.valid.eq(self.i.valid & ~store.pending),
            ]
            with m.If(self.i.valid & ~store.pending):
                m.d.sync += step.eq(step.rotate_left(1))
                m.d.comb += finish.eq(step[-1] & (left == 0))
                with m.If(step[-1] & ~finish):
                    m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
        with m.Elif(busy):
            m.d.comb += store.i_read.valid.eq(1)
            with m.If(store.i_read.ready):
                m.d.comb += finish.eq(left == 0)
                with m.If(~finish):
                    m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
        m.d.comb += store.i_read.payload.eq(address)

        m.d.comb += [self.o.valid.eq(store.o.valid), store.o.ready.eq(self.o.ready)]
        bits = self._format.element.bits
        scales = store.o.payload[size * self._rows * bits :]
        for row_index in range(self._rows):
            target = self.o.payload[row_index]
            m.d.comb += target.scale.eq(scales.word_select(row_index, SCALE_BITS))
            for column in range(size):
                cell = store.o.payload.word_select(column * self._rows + row_index, bits)
                m.d.comb += target.elements[column].eq(cell)
        return m
