"""Key cache: a weight memory that grows by a row a token; and the memory of both caches."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.arith.shapes import BlockBeat, BlockWord
from mxhw.formats import SCALE_BITS, BlockFormat

__all__ = ["CacheCommand", "ColumnMemory", "KeyCache", "check_cache", "column_cost", "index_shape"]

_BLOCK_RAM_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
_READ_LATENCY = 1


def index_shape(count: int):
    """Shape of an index below ``count``, at least one bit wide."""
    return unsigned(max(1, ceil_log2(count)))


class CacheCommand(data.StructLayout):
    """What a cache does next: write one position of one head, or read all positions up to it."""

    def __init__(self, *, layers: int, kv_heads: int, context: int):
        super().__init__(
            {
                "write": unsigned(1),
                "layer": index_shape(layers),
                "head": index_shape(kv_heads),
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
    earlier cycles. Synthesis builds no bypass where the logic of both ``valid`` shows that a write
    and a read never meet.

    Parameters
    ----------
    depth : int
        Number of words.
    rows : int
        Cells of a column in a word.
    widths : sequence of int
        Bits of a cell, column by column.

    Members
    -------
    i_write : ``In(stream.Signature(..., always_ready=True))``
        ``address``; ``cells``: all cells of a word, row 0 of column 0 lowest; ``enables``: one bit
        a cell, column by column.
    i_read : ``In(stream.Signature(unsigned(...)))``
        Addresses.
    o : ``Out(stream.Signature(unsigned(...)))``
        Words, laid out as ``cells``.

    Timing
    ------
    ``latency`` 1 cycle from an address to its word, one word a cycle.
    """

    def __init__(self, *, depth: int, rows: int, widths: Sequence[int]):
        self._depth = depth
        self._rows = rows
        self._widths = tuple(widths)
        bits = rows * sum(self._widths)
        address = index_shape(depth)
        write = data.StructLayout(
            {
                "address": address,
                "cells": unsigned(bits),
                "enables": data.ArrayLayout(unsigned(rows), len(self._widths)),
            }
        )
        super().__init__(
            {
                "i_write": In(stream.Signature(write, always_ready=True)),
                "i_read": In(stream.Signature(address)),
                "o": Out(stream.Signature(unsigned(bits))),
            }
        )

    @property
    def depth(self) -> int:
        """Number of words."""
        return self._depth

    @property
    def latency(self) -> int:
        """Cycles from an address to its word."""
        return _READ_LATENCY

    @property
    def interval(self) -> int:
        """Cycles from one word to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        return column_cost(depth=self._depth, rows=self._rows, widths=self._widths)

    def elaborate(self, platform):
        m = Module()
        advance = Signal()
        m.d.comb += [advance.eq(~self.o.valid | self.o.ready), self.i_read.ready.eq(advance)]
        words = []
        offset = 0
        for column, width in enumerate(self._widths):
            cells = data.ArrayLayout(unsigned(width), self._rows)
            m.submodules[f"column_{column}"] = store = memory.Memory(
                shape=cells, depth=self._depth, init=[], attrs={"ram_style": "block"}
            )
            write = store.write_port(granularity=1)
            read = store.read_port(domain="comb")
            payload = self.i_write.payload
            word = Signal(self._rows * width, reset_less=True, name=f"word_{column}")
            m.d.comb += [
                write.addr.eq(payload.address),
                write.data.eq(payload.cells[offset : offset + self._rows * width]),
                write.en.eq(Mux(self.i_write.valid, payload.enables[column], 0)),
                read.addr.eq(self.i_read.payload),
            ]
            # A synchronous read port promises the old word beside a write, which costs a bypass of
            # the whole word. This register becomes the block RAM's, and the synthesiser finds
            # from the two enables that no read stands beside a write.
            with m.If(advance & self.i_read.valid):
                m.d.sync += word.eq(read.data)
            words.append(word)
            offset += self._rows * width
        with m.If(advance):
            m.d.sync += self.o.valid.eq(self.i_read.valid)
        m.d.comb += self.o.payload.eq(Cat(*words))
        return m


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
    ``latency`` 2 cycles from a read command to its first word, then one word a cycle, also from
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
        self._memory = {
            "depth": layers * kv_heads * self.words_per_head,
            "rows": rows,
            "widths": [format.element.bits] * format.block_size + [SCALE_BITS],
        }
        command = CacheCommand(layers=layers, kv_heads=kv_heads, context=context)
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
        return self._memory["depth"]

    @property
    def latency(self) -> int:
        """Cycles from a read command to its first word."""
        return 1 + _READ_LATENCY

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
        return column_cost(**self._memory)

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = ColumnMemory(**self._memory)
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
        # Every row of a column is offered the same element; the enables choose the row.
        lanes = [beat.elements[lane].replicate(self._rows) for lane in range(self._lanes)]
        cells = lanes * steps
        m.d.comb += [
            write.address.eq(address),
            write.cells.eq(Cat(*cells, beat.scale.replicate(self._rows))),
        ]
        for column in range(size):
            with m.If(step[column // self._lanes]):
                m.d.comb += write.enables[column].eq(row)
        m.d.comb += write.enables[size].eq(row)

        with m.If(busy & writing):
            m.d.comb += [store.i_write.valid.eq(self.i.valid), self.i.ready.eq(1)]
            with m.If(self.i.valid):
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
