"""Weights on chip: block RAM of packed words behind the stream that engines read."""

from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.decode import decode
from mxhw.arith.shapes import BlockWord
from mxhw.dataflow.copies import register_copies
from mxhw.formats import SCALE_BITS, BlockFormat

__all__ = ["ReadCommand", "WeightMemory", "WordDecoder", "memory_parts", "neighbours"]

_LANES_A_PART = 8


class ReadCommand(data.StructLayout):
    """A run of consecutive words: the first address and how many."""

    def __init__(self, *, depth: int):
        self.depth = depth
        super().__init__(
            {"base": unsigned(bits_for(max(depth - 1, 1))), "count": unsigned(bits_for(depth))}
        )


def memory_parts(format: BlockFormat, rows: int) -> list[list[tuple[int, int]]]:
    """Begin and width of the fields of a word that lie in one memory.

    A memory has eight lanes of all rows, since the lanes of an engine lie side by side; the last
    one has the scales too.
    """
    element, size, block = format.element.bits, format.block_size, format.block_bits
    parts = [
        [
            (row * block + lane * element, element)
            for lane in range(start, min(start + _LANES_A_PART, size))
            for row in range(rows)
        ]
        for start in range(0, size, _LANES_A_PART)
    ]
    parts[-1] += [(row * block + size * element, SCALE_BITS) for row in range(rows)]
    return parts


def neighbours(format: BlockFormat, rows: int) -> list[int]:
    """Widths of the parts of a word whose bits lie near each other on a device, lowest first.

    Eight lanes of a row; the last ones of a row with its scale.
    """
    lanes = [
        min(_LANES_A_PART, format.block_size - start)
        for start in range(0, format.block_size, _LANES_A_PART)
    ]
    widths = [count * format.element.bits for count in lanes]
    widths[-1] += SCALE_BITS
    return widths * rows


class WeightMemory(wiring.Component):
    """Packed weights in initialised memory, read in runs.

    Contract: each command sends words ``base`` to ``base + count - 1`` in order, as they were
    packed (:mod:`mxhw.sw.packing`); ``count`` 0 sends none.

    Parameters
    ----------
    format : BlockFormat
        Format of the weights.
    rows : int
        Blocks of a word.
    words : sequence of int
        Contents; a word has ``rows * format.block_bits`` bits.
    block_words : int or None
        Words that lie in block RAM, at least one; those behind them lie in lookup tables, for a
        depth that is a little more than block RAMs have. By default all.

    Members
    -------
    i_command : In(stream of ReadCommand)
    o : Out(stream of BlockWord)

    Raises
    ------
    ValueError
        If there is no word, or a word is too wide, or there are not so many words for block RAM.

    Timing
    ------
    ``latency`` 2 cycles from a command to its first word, then one word a cycle, with one cycle
    between runs.

    Cost
    ----
    ``block_words * rows * format.block_bits`` bits of block RAM; of the other words each 16 take a
    lookup table a bit. Words come straight from the memory: what reads them should register them
    first.
    """

    latency = 2
    interval = 1

    def __init__(
        self,
        *,
        format: BlockFormat,
        rows: int,
        words: Sequence[int],
        block_words: int | None = None,
    ):
        bits = rows * format.block_bits
        if not words:
            raise ValueError("Weight memory must hold at least one word, not 0")
        for index, word in enumerate(words):
            if word >> bits:
                raise ValueError(f"Word {index} of a weight memory must fit {bits} bits")
        block_words = len(words) if block_words is None else block_words
        if not 1 <= block_words <= len(words):
            raise ValueError(
                f"Words of a weight memory in block RAM must be 1 to {len(words)}, "
                f"not {block_words}"
            )
        self._format = format
        self._rows = rows
        self._words = list(words)
        self._block_words = block_words
        super().__init__(
            {
                "i_command": In(stream.Signature(ReadCommand(depth=len(words)))),
                "o": Out(stream.Signature(BlockWord(format=format, rows=rows))),
            }
        )

    @property
    def depth(self) -> int:
        """Number of words."""
        return len(self._words)

    def cost(self) -> dict[str, int]:
        """Multipliers and memory bits."""
        bits = self._rows * self._format.block_bits * self._block_words
        return {"multipliers": 0, "memory_bits": bits}

    def elaborate(self, platform) -> Module:
        m = Module()
        left = Signal(bits_for(self.depth))
        reading = Signal()
        load = Signal()
        m.d.comb += [
            reading.eq(left != 0),
            self.i_command.ready.eq(~reading),
            load.eq(self.i_command.valid & self.i_command.ready),
        ]
        # One address and one enable for all block RAMs would go all over the device.
        parts = memory_parts(self._format, self._rows)
        addresses = register_copies(bits_for(max(self.depth - 1, 1)), len(parts), "address")
        valids = register_copies(1, len(parts), "valid")
        word = Value.cast(self.o.payload)
        for index, part in enumerate(parts):
            address, valid = addresses[index], valids[index]
            advance = Signal(name=f"advance_{index}")
            m.d.comb += [
                advance.eq(~valid | self.o.ready),
                Cat(word[start : start + width] for start, width in part).eq(
                    self._part(m, index, part, address, advance)
                ),
            ]
            with m.If(advance):
                m.d.sync += valid.eq(reading)
                with m.If(reading):
                    m.d.sync += address.eq(address + 1)
                    if index == 0:
                        m.d.sync += left.eq(left - 1)
            with m.If(load):
                m.d.sync += address.eq(self.i_command.payload.base)
        m.d.comb += self.o.valid.eq(valids[0])
        with m.If(load):
            m.d.sync += left.eq(self.i_command.payload.count)
        return m

    def _part(
        self,
        m: Module,
        index: int,
        fields: Sequence[tuple[int, int]],
        address: Signal,
        advance: Signal,
    ) -> Value:
        """Some fields of a word, a cycle after its address."""
        split = self._block_words
        name = f"part_{index}"
        words = self._words[:split]
        data = self._read(m, name, fields, words, "block", address, advance)
        if split == self.depth:
            return data
        behind = Signal(name=f"behind_{index}")
        place = (address - split)[: bits_for(self.depth - split - 1)]
        with m.If(advance):
            m.d.sync += behind.eq(address >= split)
        words = self._words[split:]
        other = self._read(m, f"rest_{index}", fields, words, "logic", place, advance)
        return Mux(behind, other, data)

    def _read(
        self,
        m: Module,
        name: str,
        fields: Sequence[tuple[int, int]],
        words: Sequence[int],
        style: str,
        address: Value,
        advance: Signal,
    ) -> Value:
        """Read a memory of some fields of some words."""
        m.submodules[name] = store = memory.Memory(
            shape=unsigned(sum(width for _start, width in fields)),
            depth=len(words),
            init=[_gather(word, fields) for word in words],
            attrs={"ram_style": style},
        )
        port = store.read_port(domain="sync")
        m.d.comb += [port.addr.eq(address), port.en.eq(advance)]
        return port.data


def _gather(word: int, fields: Sequence[tuple[int, int]]) -> int:
    """Fields of a word, one after the other."""
    result = place = 0
    for start, width in fields:
        result |= (word >> start & (1 << width) - 1) << place
        place += width
    return result


class WordDecoder(wiring.Component):
    """Blocks of any element format as blocks of a wider integer format with the same values.

    Contract: each element becomes its significand and the scale byte moves by the difference of
    the fraction bits, so that ``significand * 2**(scale - 127 - fraction_bits)`` stays equal. The
    packer refuses scales that would pass 254.

    Parameters
    ----------
    from_format, to_format : BlockFormat
        ``to_format`` is an integer format with at least as many significand and fraction bits.
    rows : int
        Blocks of a word.

    Members
    -------
    i : In(stream of BlockWord)
    o : Out(stream of BlockWord)

    Timing
    ------
    Combinational.

    Cost
    ----
    A few LUTs an element; none if the formats are equal.
    """

    latency = 0
    interval = 1

    def __init__(self, *, from_format: BlockFormat, to_format: BlockFormat, rows: int):
        shift = to_format.element.fraction_bits - from_format.element.fraction_bits
        narrow = to_format.element.bits < from_format.element.significand_bits
        if not to_format.element.is_integer or shift < 0 or narrow:
            raise ValueError(
                f"Format to decode to must be an integer format that holds {from_format.name}, "
                f"not {to_format.name}"
            )
        self._from = from_format
        self._to = to_format
        self._rows = rows
        super().__init__(
            {
                "i": In(stream.Signature(BlockWord(format=from_format, rows=rows))),
                "o": Out(stream.Signature(BlockWord(format=to_format, rows=rows))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        shift = self._to.element.fraction_bits - self._from.element.fraction_bits
        m.d.comb += [self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready)]
        for row in range(self._rows):
            given, made = self.i.payload[row], self.o.payload[row]
            m.d.comb += made.scale.eq(given.scale + shift)
            for index in range(self._from.block_size):
                significand = decode(self._from, given.elements[index])
                m.d.comb += made.elements[index].eq(significand)
        return m
