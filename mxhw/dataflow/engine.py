"""The matrix engine: rows of block dots that share one block of activations."""

from amaranth.hdl import Cat, Elaboratable, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.accumulate import AlignedSum, accumulator_bits
from mxhw.arith.decode import decode
from mxhw.arith.dot import DotTree, check_pair, product_bits, queue_depth, unit_exponent
from mxhw.arith.multiply import DspMultiplier
from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register, tree_levels
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat, BlockWord, WideBeat
from mxhw.formats import SCALE_BITS, BlockFormat

__all__ = ["EngineCommand", "MatrixEngine"]

_GUARD_BITS = 8
_SUM_EXPONENT_BITS = 11
_DISTRIBUTED_SLOTS = 16
_LEAD = 2
"""Cycles that :class:`AlignedSum` wants an exponent before its term."""


class EngineCommand(data.StructLayout):
    """A command of a :class:`MatrixEngine`.

    Members
    -------
    load : 1
        Take blocks of activations; else multiply by a matrix.
    slot : first slot of the activations
    blocks : number of blocks
    groups : number of row groups (``load = 0``)
    """

    def __init__(self, *, slots: int, max_blocks: int, groups_bits: int = 16):
        super().__init__(
            {
                "load": 1,
                "slot": range(slots),
                "blocks": range(max_blocks + 1),
                "groups": unsigned(groups_bits),
            }
        )


class MatrixEngine(wiring.Component):
    """Product of a matrix, streamed in, and a vector that is held.

    Contract (:func:`mxhw.sw.golden.linear.matrix_vector`): each row is the exact integer dot of
    every block pair, accumulated over the blocks in order, aligned to the running maximum exponent,
    with 8 guard bits and floor. It cannot overflow.

    Commands are taken in order. A load takes ``blocks`` blocks from ``i_x`` into the slots from
    ``slot`` on, and ends when all have arrived. A matrix command takes ``blocks`` weight words for
    each of ``groups`` row groups (groups outside, blocks inside), multiplies word ``b`` by slot
    ``slot + b`` and delivers a beat a group. It ends with its last weight word, so that a load may
    overwrite the slots while the sums are still on their way. A command of no blocks or no groups
    does nothing. ``slot + blocks`` must not exceed ``slots``.

    Parameters
    ----------
    x_format, w_format : BlockFormat
        Formats of activations and weights: one block size, significands of at most 18 bits.
    rows : int
        Rows of a group, each with its own multipliers.
    slots : int
        Blocks of activations held; up to 16 are kept in distributed memory.
    max_blocks : int
        Longest contraction in blocks, at most ``slots``.
    x_lanes : int
        Elements of a beat of activations.
    groups_bits : int
        Width of a command's ``groups``.
    multiplier : strategy, optional
        What makes the products (:mod:`mxhw.arith.multiply`); hardware multipliers by default.

    Members
    -------
    i_command : ``In(stream.Signature(EngineCommand))``
    i_x : ``In(stream.Signature(BlockBeat))``
        Activations, ``x_lanes`` a beat.
    i_weights : ``In(stream.Signature(BlockWord))``
        One block of each row.
    o : ``Out(stream.Signature(WideBeat))``
        One exact value a row, mantissas of :attr:`mantissa_bits`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: ``latency`` = 6 + log2(block size) from a group's last weight word to its sums; a weight
    word a cycle, across groups; one cycle without a word between two commands.

    Cost: ``rows * block size`` multipliers; the slots' memory (:meth:`cost`).
    """

    def __init__(
        self,
        *,
        x_format: BlockFormat,
        w_format: BlockFormat,
        rows: int = 4,
        slots: int = 16,
        max_blocks: int | None = None,
        x_lanes: int = 4,
        groups_bits: int = 16,
        multiplier=None,
    ):
        check_pair(x_format, w_format)
        max_blocks = slots if max_blocks is None else max_blocks
        for name, value, least in (
            ("Rows", rows, 1),
            ("Slots", slots, 1),
            ("Longest contraction", max_blocks, 1),
            ("Width of the groups", groups_bits, 1),
        ):
            if not isinstance(value, int):
                raise TypeError(f"{name} of an engine must be an integer, not {value!r}")
            if value < least:
                raise ValueError(f"{name} of an engine must be at least {least}, not {value}")
        if max_blocks > slots:
            raise ValueError(
                f"Longest contraction of an engine must fit its {slots} slots, not {max_blocks}"
            )
        self._x_format = x_format
        self._w_format = w_format
        self._rows = rows
        self._slots = slots
        self._max_blocks = max_blocks
        self._x_lanes = x_lanes
        self._groups_bits = groups_bits
        self._multiplier = multiplier or DspMultiplier()
        super().__init__(
            {
                "i_command": In(
                    stream.Signature(
                        EngineCommand(slots=slots, max_blocks=max_blocks, groups_bits=groups_bits)
                    )
                ),
                "i_x": In(stream.Signature(BlockBeat(format=x_format, lanes=x_lanes))),
                "i_weights": In(stream.Signature(BlockWord(format=w_format, rows=rows))),
                "o": Out(stream.Signature(WideBeat(lanes=rows, mantissa_bits=self.mantissa_bits))),
            }
        )

    @property
    def x_format(self) -> BlockFormat:
        """Format of the activations."""
        return self._x_format

    @property
    def w_format(self) -> BlockFormat:
        """Format of the weights."""
        return self._w_format

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return self._rows

    @property
    def slots(self) -> int:
        """Blocks of activations held."""
        return self._slots

    @property
    def max_blocks(self) -> int:
        """Longest contraction in blocks."""
        return self._max_blocks

    @property
    def x_lanes(self) -> int:
        """Elements of a beat of activations."""
        return self._x_lanes

    @property
    def mantissa_bits(self) -> int:
        """Width of the sums."""
        bits = product_bits(self._x_format, self._w_format)
        return accumulator_bits(bits, self._max_blocks, _GUARD_BITS)

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a group's last weight word to that of its sums."""
        return 1 + self._tree_latency - _LEAD + AlignedSum.latency + 1

    @property
    def interval(self) -> int:
        """Cycles from one weight word to the next."""
        return 1

    @property
    def _tree_latency(self) -> int:
        return self._multiplier.latency + tree_levels(self._x_format.block_size)

    def cost(self) -> dict[str, int]:
        """Multipliers, adders of the trees, and bits of memory."""
        size = self._x_format.block_size
        return {
            "multipliers": self._multiplier.multipliers * self._rows * size,
            "adders": self._rows * (size - 1),
            "memory_bits": self._slots * self._x_format.block_bits
            + self._rows * (self.mantissa_bits + EXPONENT_BITS) * queue_depth(self.latency),
        }

    def elaborate(self, platform):
        m = Module()
        x_format, w_format = self._x_format, self._w_format
        m.submodules.control = control = _Control(
            command_shape=self.i_command.payload.shape(),
            slots=self._slots,
            beats=x_format.block_size // self._x_lanes,
        )
        m.submodules.out = out = OutputQueue(
            shape=self.o.payload.shape(), depth=queue_depth(self.latency)
        )
        wiring.connect(m, out.o, wiring.flipped(self.o))
        m.d.comb += [
            control.command.eq(self.i_command.payload),
            control.command_valid.eq(self.i_command.valid),
            self.i_command.ready.eq(control.command_ready),
            control.x_valid.eq(self.i_x.valid),
            self.i_x.ready.eq(control.x_ready),
            control.word_valid.eq(self.i_weights.valid),
            control.word_free.eq(out.free),
            self.i_weights.ready.eq(control.word_ready),
            out.reserve.eq(control.issue & control.last),
        ]

        elements, x_scale = self._slot_memory(m, control)
        significands = [decode(x_format, elements[lane]) for lane in range(x_format.block_size)]
        # What is missing to the accumulator's unit is added once, not in each row.
        missing = unit_exponent(x_format, w_format) - _GUARD_BITS
        x_exponent = register(m, x_scale + missing, "x_exponent")

        issued = delay(m, control.issue, 2, "issued")
        first = delay_value(m, control.first, 2, "first")
        last = delay_value(m, control.last, 2, "last")
        # The exponents are complete two cycles after the issue; the sum's term comes later.
        wait = 1 + self._tree_latency - 2 - _LEAD
        valid_late = delay(m, issued, wait, "issued_late")
        for row in range(self._rows):
            word = self.i_weights.payload[row]
            m.submodules[f"tree_{row}"] = tree = DotTree(
                x_bits=x_format.element.significand_bits,
                w_bits=w_format.element.significand_bits,
                lanes=x_format.block_size,
                multiplier=self._multiplier,
            )
            m.submodules[f"sum_{row}"] = total = AlignedSum(
                product_bits=len(tree.product),
                mantissa_bits=self.mantissa_bits,
                exponent_bits=_SUM_EXPONENT_BITS,
                guard_bits=_GUARD_BITS,
            )
            for lane in range(x_format.block_size):
                code = register(m, word.elements[lane], f"w_{row}_{lane}")
                m.d.comb += [
                    tree.x[lane].eq(significands[lane]),
                    tree.w[lane].eq(decode(w_format, code)),
                ]
            scale = delay_value(m, word.scale, 2, f"w_scale_{row}")
            exponent = delay_value(m, x_exponent + scale, wait, f"exponent_{row}")
            m.d.comb += [
                total.i_valid.eq(valid_late),
                total.i_first.eq(delay_value(m, first, wait, f"first_late_{row}")),
                total.i_last.eq(delay_value(m, last, wait, f"last_late_{row}")),
                total.i_exponent.eq(exponent),
                total.i_product.eq(tree.product),
                out.i.payload.mantissas[row].eq(total.o_mantissa),
                out.i.payload.exponents[row].eq(total.o_exponent),
            ]
            if row == 0:
                m.d.comb += out.i.valid.eq(total.o_valid)
        return m

    def _slot_memory(self, m: Module, control: "_Control"):
        """Memory of the slots, written in beats and read in blocks with a cycle's latency."""
        lanes, size = self._x_lanes, self._x_format.block_size
        beats = size // lanes
        bits = self._x_format.element.bits
        style = "distributed" if self._slots <= _DISTRIBUTED_SLOTS else "block"
        payload = self.i_x.payload
        words = []
        for beat in range(beats + 1):
            is_scale = beat == beats
            storage = memory.Memory(
                shape=unsigned(SCALE_BITS if is_scale else lanes * bits),
                depth=self._slots,
                init=[],
                attrs={"ram_style": style},
            )
            m.submodules[f"slots_{'scale' if is_scale else beat}"] = storage
            write = storage.write_port()
            read = storage.read_port()
            m.d.comb += [
                write.addr.eq(control.write_slot),
                write.data.eq(payload.scale if is_scale else payload.elements.as_value()),
                write.en.eq(control.write & (control.write_beat == (0 if is_scale else beat))),
                read.addr.eq(control.read_slot),
                read.en.eq(1),
            ]
            words.append(read.data)
        scale = words.pop()
        codes = Cat(words)
        return [codes[lane * bits : (lane + 1) * bits] for lane in range(size)], scale


class _Control(Elaboratable):
    """The sequence of commands: what is written and read in each cycle."""

    def __init__(self, *, command_shape: data.StructLayout, slots: int, beats: int):
        self._beats = beats
        self._slots = slots
        self.command = Signal(command_shape)
        self.command_valid = Signal()
        self.command_ready = Signal()
        self.x_valid = Signal()
        self.x_ready = Signal()
        self.word_valid = Signal()
        self.word_free = Signal()
        self.word_ready = Signal()
        self.write = Signal()
        self.write_slot = Signal(range(slots))
        self.write_beat = Signal(range(beats))
        self.issue = Signal()
        self.read_slot = Signal(range(slots))
        self.first = Signal()
        self.last = Signal()

    def elaborate(self, platform):
        m = Module()
        loading = Signal()
        multiplying = Signal()
        start = Signal(range(self._slots))
        slot = Signal(range(self._slots))
        blocks = Signal.like(self.command.blocks)
        # Counters hold one less than what is left, so that the sign bit says "the last".
        left = Signal(signed(len(self.command.blocks) + 1))
        groups = Signal(signed(len(self.command.groups) + 1))
        first = Signal()
        last_block = Signal()
        m.d.comb += [
            self.command_ready.eq(~loading & ~multiplying),
            self.x_ready.eq(loading),
            self.word_ready.eq(multiplying & self.word_free),
            self.write.eq(self.x_valid & self.x_ready),
            self.write_slot.eq(slot),
            self.issue.eq(self.word_valid & self.word_ready),
            self.read_slot.eq(slot),
            last_block.eq(left[-1]),
            self.first.eq(first),
            self.last.eq(last_block),
        ]
        last_beat = Signal()
        if self._beats > 1:
            m.d.comb += last_beat.eq(self.write_beat == self._beats - 1)
            with m.If(self.write):
                m.d.sync += self.write_beat.eq(self.write_beat + 1)
        else:
            m.d.comb += last_beat.eq(1)

        with m.If(self.command_ready & self.command_valid):
            m.d.sync += [
                loading.eq(self.command.load & self.command.blocks.any()),
                multiplying.eq(
                    ~self.command.load & self.command.blocks.any() & self.command.groups.any()
                ),
                start.eq(self.command.slot),
                slot.eq(self.command.slot),
                blocks.eq(self.command.blocks),
                left.eq(self.command.blocks - 2),
                groups.eq(self.command.groups - 2),
                first.eq(1),
            ]
        with m.If(self.issue | (self.write & last_beat)):
            m.d.sync += [slot.eq(slot + 1), left.eq(left - 1), first.eq(0)]
            with m.If(last_block):
                m.d.sync += [
                    slot.eq(start),
                    left.eq(blocks - 2),
                    groups.eq(groups - 1),
                    first.eq(1),
                ]
                with m.If(loading | groups[-1]):
                    m.d.sync += [loading.eq(0), multiplying.eq(0)]
        return m
