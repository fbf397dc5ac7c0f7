"""Weights on chip: block RAM of packed words behind the stream that engines read."""

from collections.abc import Sequence

from amaranth import Module, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.decode import decode
from mxhw.arith.shapes import BlockWord
from mxhw.dataflow.copies import register_copies
from mxhw.formats import BlockFormat

__all__ = ["ReadCommand", "WeightMemory", "WordDecoder"]


class ReadCommand(data.StructLayout):
    """A run of consecutive words: the first address and how many."""

    def __init__(self, *, depth: int):
        self.depth = depth
        super().__init__(
            {"base": unsigned(bits_for(max(depth - 1, 1))), "count": unsigned(bits_for(depth))}
        )


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

    Members
    -------
    i_command : In(stream of ReadCommand)
    o : Out(stream of BlockWord)

    Raises
    ------
    ValueError
        If there is no word, or a word is too wide.

    Timing
    ------
    ``latency`` 2 cycles from a command to its first word, then one word a cycle, with one cycle
    between runs.

    Cost
    ----
    ``len(words) * rows * format.block_bits`` bits of block RAM. Words come straight
    from it: what reads them should register them first.
    """

    latency = 2
    interval = 1

    def __init__(self, *, format: BlockFormat, rows: int, words: Sequence[int]):
        bits = rows * format.block_bits
        if not words:
            raise ValueError("Weight memory must hold at least one word, not 0")
        for index, word in enumerate(words):
            if word >> bits:
                raise ValueError(f"Word {index} of a weight memory must fit {bits} bits")
        self._format = format
        self._rows = rows
        self._words = list(words)
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
        bits = self._rows * self._format.block_bits * len(self._words)
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
        # One address and one enable for all rows would go to a hundred block RAMs all over the
        # device.
        addresses = register_copies(bits_for(max(self.depth - 1, 1)), self._rows, "address")
        valids = register_copies(1, self._rows, "valid")
        for row, (address, valid) in enumerate(zip(addresses, valids, strict=True)):
            advance = Signal(name=f"advance_{row}")
            port = self._row_port(m, row)
            m.d.comb += [
                advance.eq(~valid | self.o.ready),
                port.addr.eq(address),
                port.en.eq(advance),
                self.o.payload[row].eq(port.data),
            ]
            with m.If(advance):
                m.d.sync += valid.eq(reading)
                with m.If(reading):
                    m.d.sync += address.eq(address + 1)
                    if row == 0:
                        m.d.sync += left.eq(left - 1)
            with m.If(load):
                m.d.sync += address.eq(self.i_command.payload.base)
        m.d.comb += self.o.valid.eq(valids[0])
        with m.If(load):
            m.d.sync += left.eq(self.i_command.payload.count)
        return m

    def _row_port(self, m: Module, row: int) -> memory.ReadPort:
        """Read port of the memory of a row's blocks."""
        bits = self._format.block_bits
        mask = (1 << bits) - 1
        m.submodules[f"row_{row}"] = store = memory.Memory(
            shape=unsigned(bits),
            depth=self.depth,
            init=[word >> (row * bits) & mask for word in self._words],
            attrs={"ram_style": "block"},
        )
        return store.read_port(domain="sync")


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
