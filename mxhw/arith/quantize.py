"""The quantiser: exact values in, microscaling blocks out, one rounding in between."""

from collections.abc import Iterable, Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.exponents import (
    add_carry,
    clamp_amount,
    clamp_scale,
    is_low,
    is_negative_power,
    magnitude_bits,
    ones_complement,
)
from mxhw.arith.pipeline import (
    OutputQueue,
    RingStorage,
    bit_index,
    delay,
    delay_value,
    increment,
    maximum,
    register,
    tree_levels,
    wire,
)
from mxhw.arith.quantize_any import DRAIN_CYCLES, FIND_CYCLES, AnyElements, is_plain
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat, SharedBeat, WideBeat
from mxhw.formats import SCALE_BIAS, SCALE_BITS, BlockFormat

__all__ = ["MAX_MANTISSA_BITS", "Quantizer"]

_ROWS = 16
"""Rows of a cell of distributed memory."""
_SPARE_BEATS = 8
"""Beats that may arrive while a block's scale is found."""
MAX_MANTISSA_BITS = 48
"""Widest mantissa that a quantiser takes."""
_SIGN = 1 << (SCALE_BITS - 1)
_COARSE_STEP = 4
"""Smallest step of the first of the two shift stages."""


class Quantizer(wiring.Component):
    """Round exact values to blocks of any format.

    Contract (:func:`mxhw.sw.golden.tensor.quantize_wide`): over the block
    ``T = max(floor(log2 |v|))``, one more where the scale rules ``even`` and ``rceil`` want it; the
    scale's exponent is ``S = clamp(T - max_exponent, -127, 127)``; an element is ``v * 2**-S``
    rounded to the element's grid, to nearest, ties to even, once, and saturated to the largest
    finite one. A block of zeros has the scale byte 0. The exponent of a zero element means nothing.
    A float element that rounds to zero keeps its sign. Exact values are never NaN, and so no code
    and no scale byte is.

    With several formats the payload carries the one to use. All have the same block size; the
    output has the elements of the widest, into which the codes of the others are sign-extended.

    Parameters
    ----------
    mantissa_bits : int
        Width of the signed mantissas, 2 to 48.
    lanes : int
        Elements a beat; divides the block size.
    formats : BlockFormat or sequence of BlockFormat
        A format, or several with integer elements and the scale rule ``floor``, which add
        ``select`` to the input's payload.
    shared_exponent : bool
        All elements of a block have one exponent, which stands beside every beat. Cheaper for
        integer elements: there is one shift amount a block.

    Members
    -------
    i : ``In(stream.Signature(...))``
        :class:`WideBeat`, or :class:`SharedBeat` with a shared exponent. With several formats a
        structure of ``beat`` and ``select``, an index into ``formats`` that is the same in all
        beats of a block.
    o : ``Out(stream.Signature(BlockBeat))``
        Blocks of :attr:`format`.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If the mantissa's width, the lanes or a format is not supported.

    Timing: ``latency`` from a block's last beat to its first: 6 cycles with one or two lanes, 7
    with up to eight, 8 with more; 5 with a shared exponent; 8 to 10 for float elements and for the
    other scale rules. Interval ``block_size / lanes``: one beat a cycle, sustained.

    Cost: no multipliers; the block waits in distributed memory (:meth:`cost`).
    """

    def __init__(
        self,
        *,
        mantissa_bits: int,
        lanes: int,
        formats: BlockFormat | Sequence[BlockFormat],
        shared_exponent: bool = False,
    ):
        if not isinstance(mantissa_bits, int):
            raise TypeError(f"Mantissa width must be an integer, not {mantissa_bits!r}")
        if not 2 <= mantissa_bits <= MAX_MANTISSA_BITS:
            raise ValueError(
                f"Mantissa width must be between 2 and {MAX_MANTISSA_BITS}, not {mantissa_bits}"
            )
        self._formats = _check_formats(formats)
        self._mantissa_bits = mantissa_bits
        self._lanes = lanes
        self._shared_exponent = bool(shared_exponent)
        self._format = max(self._formats, key=lambda item: item.element.bits)
        self._plain = is_plain(self._format)
        self._any = AnyElements(self._format, mantissa_bits)
        output_shape = BlockBeat(format=self._format, lanes=lanes)
        self._beats = self._format.block_size // lanes
        self._beat_shape = (SharedBeat if shared_exponent else WideBeat)(
            lanes=lanes, mantissa_bits=mantissa_bits
        )
        input_shape = self._beat_shape
        if len(self._formats) > 1:
            input_shape = data.StructLayout(
                {"beat": self._beat_shape, "select": range(len(self._formats))}
            )
        super().__init__(
            {"i": In(stream.Signature(input_shape)), "o": Out(stream.Signature(output_shape))}
        )

    @property
    def mantissa_bits(self) -> int:
        """Width of the signed mantissas."""
        return self._mantissa_bits

    @property
    def lanes(self) -> int:
        """Elements a beat."""
        return self._lanes

    @property
    def formats(self) -> tuple[BlockFormat, ...]:
        """Formats to choose from."""
        return self._formats

    @property
    def format(self) -> BlockFormat:
        """Format of the output: the widest of ``formats``."""
        return self._format

    @property
    def shared_exponent(self) -> bool:
        """Whether all elements of a block have one exponent."""
        return self._shared_exponent

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a block's last beat to that of its first output beat."""
        if not self._plain:
            return FIND_CYCLES + _max_stages(self._lanes) + DRAIN_CYCLES + 1
        return 5 if self._shared_exponent else 6 + _max_stages(self._lanes)

    @property
    def interval(self) -> int:
        """Cycles from one block to the next."""
        return self._beats

    @property
    def _depth(self) -> int:
        """Beats that the block memory holds."""
        return -(-(self._beats + _SPARE_BEATS) // _ROWS) * _ROWS

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        exponents = 0 if self._shared_exponent else EXPONENT_BITS + 1
        element = self._mantissa_bits + exponents if self._plain else self._any.stored.size
        stored = self._lanes * element * self._depth
        return {"multipliers": 0, "memory_bits": stored}

    def elaborate(self, platform):
        m = Module()
        payload = self.i.payload
        beat = payload.beat if len(self._formats) > 1 else payload
        select = payload.select if len(self._formats) > 1 else Const(0, 1)
        select = Value.cast(select)

        accept = Signal()
        m.d.comb += accept.eq(self.i.valid & self.i.ready)
        first, last = _beat_counter(m, accept, self._beats, "in")
        # A block waits here with its beats in the storage, so that the queue never overflows.
        m.submodules.blocks = blocks = OutputQueue(
            shape=self._block_shape(), depth=max(2, -(-self._depth // self._beats))
        )
        stored = RingStorage(self._depth)
        if not self._plain:
            find, drain = self._find_any, self._drain_any
        else:
            stored.add(m, "mantissas", beat.mantissas.as_value())
            find = self._find_shared if self._shared_exponent else self._find_scale
            drain = self._drain
        find(m, beat, accept, first, last, select, blocks, stored)

        # The storage is elastic enough: behind it a short pipeline stops while its output waits.
        advance, issue = Signal(), Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            issue.eq(blocks.o.valid & advance),
        ]
        _first, last_out = _beat_counter(m, issue, self._beats, "out")
        m.d.comb += blocks.o.ready.eq(last_out & advance)
        stored.connect(m, accept, issue)
        m.d.comb += self.i.ready.eq(stored.room)
        drain(m, blocks.o.valid, advance, blocks.o.payload, stored)
        return m

    # What is known of a block when its last beat has arrived.

    def _block_shape(self) -> data.StructLayout:
        """The exponent of the scale, and what the shift amounts follow from."""
        members = {}
        if len(self._formats) > 1:
            members["select"] = range(len(self._formats))
        if self._shared_exponent and self._plain:
            members |= {"exponent": signed(SCALE_BITS), "amount": unsigned(self._amount_bits)}
        else:
            members["base"] = signed(SCALE_BITS + 1)
        return data.StructLayout(members)

    @property
    def _left(self) -> int:
        """Zeros put below a mantissa, so that every shift is to the right."""
        return self._format.element.bits - (0 if self._shared_exponent else 1)

    @property
    def _amount_bits(self) -> int:
        """Width of a shift amount; its largest value leaves only the sign."""
        return bits_for(self._mantissa_bits + self._left)

    def _offset(self, select: Value) -> Value:
        """How much further than the widest format's elements the selected one's move."""
        widest = self._format.element.bits
        values = [Const(widest - format.element.bits, 5) for format in self._formats]
        result = values[-1]
        for index in reversed(range(len(values) - 1)):
            result = Mux(select == index, values[index], result)
        return result

    def _find_scale(self, m, beat, accept, first, last, select, blocks, stored) -> None:
        """Per-lane exponents: a scale for each element, then their maximum."""
        stored.add(m, "exponents", beat.exponents.as_value())
        scales, overflows = [], []
        for lane in range(self._lanes):
            mantissa = beat.mantissas[lane]
            index, some = bit_index(m, ones_complement(mantissa), f"highest_{lane}")
            top_index = register(m, index, f"index_{lane}")
            carry = register(m, some & is_negative_power(mantissa), f"carry_{lane}")
            zero = register(m, ~some & ~mantissa[-1], f"zero_{lane}")
            exponent = register(m, beat.exponents[lane], f"exponent_{lane}")
            top = wire(m, add_carry(exponent, top_index, carry), f"highest_{lane}")
            scale, high = clamp_scale(top, zero)
            # With the sign turned round the order is that of unsigned values.
            scales.append(register(m, scale.as_unsigned() ^ _SIGN, f"scale_{lane}"))
            overflows.append(register(m, high, f"overflow_{lane}"))
        stored.add(m, "overflow", Cat(overflows), cycles=2)
        self._find_largest(m, scales, accept, first, last, select, blocks, 2)

    def _find_any(self, m, beat, accept, first, last, select, blocks, stored) -> None:
        """A scale for each element, then their maximum."""
        scales: list[Value] = []
        for lane in range(self._lanes):
            exponent = beat.exponent if self._shared_exponent else beat.exponents[lane]
            top, zero = self._any.find(m, lane, beat.mantissas[lane], exponent, stored)
            scale, _high = clamp_scale(top, zero)
            scales.append(register(m, scale.as_unsigned() ^ _SIGN, f"scale_{lane}"))
        self._find_largest(m, scales, accept, first, last, select, blocks, FIND_CYCLES)

    def _find_largest(self, m, scales, accept, first, last, select, blocks, cycles) -> None:
        """The largest of the elements' scales, known so many cycles after a beat."""
        stages = _max_stages(self._lanes)
        for stage in range(stages):
            groups = [scales[index : index + 4] for index in range(0, len(scales), 4)]
            scales = [
                register(m, maximum(m, group), f"maximum_{stage}_{index}")
                for index, group in enumerate(groups)
            ]
        cycles += stages
        valid = delay(m, accept, cycles, "valid")
        first = delay_value(m, first, cycles, "first")
        last = delay_value(m, last, cycles, "last")
        select = delay_value(m, select, cycles, "select")
        highest = maximum(m, scales)
        if self._beats > 1:
            running = Signal(SCALE_BITS, reset_less=True)
            previous = Mux(first, 0, running)
            highest = maximum(m, [highest, previous])
            with m.If(valid):
                m.d.sync += running.eq(highest)
        exponent = (highest ^ _SIGN).as_signed()
        m.d.comb += [
            blocks.i.valid.eq(valid & last),
            blocks.i.payload.base.eq(exponent + self._offset(select)),
        ]
        if len(self._formats) > 1:
            m.d.comb += blocks.i.payload.select.eq(select)

    def _find_shared(self, m, beat, accept, first, last, select, blocks, stored) -> None:
        """One exponent: the union of all magnitudes' bits has the highest one."""
        union = Signal(self._mantissa_bits, reset_less=True)
        bits = Const(0, self._mantissa_bits)
        for lane in range(self._lanes):
            bits = bits | magnitude_bits(beat.mantissas[lane])
        if self._beats > 1:
            bits = bits | Mux(first, 0, union)
        with m.If(accept):
            m.d.sync += union.eq(bits)
        done = delay(m, accept & last, 2, "done")
        select = register(m, select, "select_1")
        exponent = register(m, beat.exponent, "exponent_1")
        index, some = bit_index(m, union, "highest")
        index = register(m, index, "index")
        zero = register(m, ~some, "zero")
        # The shift follows from the highest bit alone unless the scale is clamped; which end it can
        # be clamped at shows in the exponent's sign.
        offset = wire(m, self._offset(select) + 1, "offset")
        plain = register(m, offset, "offset_2")
        limit = wire(m, offset + Mux(exponent[-1], -SCALE_BIAS, SCALE_BIAS), "limit")
        clamped = clamp_amount(m, limit - exponent, self._amount_bits)
        clamped = register(m, clamped, "clamped")
        select = register(m, select, "select_2")
        top = wire(m, register(m, exponent, "exponent_2") + index, "highest")
        scale, high = clamp_scale(top, zero)
        amount = Mux(is_low(top) | high, clamped, index + plain)
        m.d.comb += [
            blocks.i.valid.eq(done),
            blocks.i.payload.exponent.eq(scale),
            blocks.i.payload.amount.eq(amount),
        ]
        if len(self._formats) > 1:
            m.d.comb += blocks.i.payload.select.eq(select)

    def _drain(self, m, valid, advance, block, stored) -> None:
        """Shift, round and saturate a stored beat."""
        bits = self._format.element.bits
        multiple = len(self._formats) > 1
        mantissas = data.View(
            data.ArrayLayout(signed(self._mantissa_bits), self._lanes), stored.read("mantissas")
        )
        select = Value.cast(block.select) if multiple else Const(0, 1)
        cycles = 2
        if self._shared_exponent:
            values = [mantissas[lane] for lane in range(self._lanes)]
            amounts = [block.amount] * self._lanes
            scale = block.exponent + SCALE_BIAS
            overflows = []
        else:
            cycles = 3
            scale = block.base + (SCALE_BIAS - self._offset(select))
            exponents = data.View(
                data.ArrayLayout(signed(EXPONENT_BITS), self._lanes), stored.read("exponents")
            )
            values, amounts, overflows = [], [], []
            for lane in range(self._lanes):
                amount = clamp_amount(m, block.base - exponents[lane], self._amount_bits)
                overflow = stored.read("overflow")[lane]
                values.append(register(m, mantissas[lane], f"value_{lane}", advance))
                amounts.append(register(m, amount, f"amount_{lane}", advance))
                overflows.append(register(m, overflow, f"saturate_{lane}", advance))
        select_late = delay_value(m, select, cycles - 1, "drain_select", advance)
        payload = self.o.payload
        m.d.comb += [
            self.o.valid.eq(delay(m, valid, cycles, "drain", advance)),
            payload.scale.eq(delay_value(m, scale[:SCALE_BITS], cycles, "drain_scale", advance)),
        ]
        for lane in range(self._lanes):
            value = values[lane]
            shift = _Shift(m, Cat(Const(0, self._left), value), value[-1])
            steps = len(amounts[lane])
            shift.run(amounts[lane], range(steps - 1, _COARSE_STEP.bit_length() - 2, -1), bits)
            shift.register(f"coarse_{lane}", advance)
            low = amounts[lane][: _COARSE_STEP.bit_length() - 1]
            fine = register(m, low, f"fine_{lane}", advance)
            shift.run(fine, range(_COARSE_STEP.bit_length() - 2, -1, -1), bits)
            if not self._shared_exponent:
                shift.overflow = register(m, overflows[lane], f"saturate_late_{lane}", advance)
            code, up = self._round(m, shift, select_late)
            code = register(m, code, f"floor_{lane}", advance)
            up = register(m, up, f"up_{lane}", advance)
            m.d.comb += payload.elements[lane].eq(code + up)

    def _drain_any(self, m, valid, advance, block, stored) -> None:
        """Codes of a stored beat."""
        payload = self.o.payload
        scale = (block.base + SCALE_BIAS)[:SCALE_BITS]
        m.d.comb += [
            self.o.valid.eq(delay(m, valid, DRAIN_CYCLES, "drain", advance)),
            payload.scale.eq(delay_value(m, scale, DRAIN_CYCLES, "drain_scale", advance)),
        ]
        for lane in range(self._lanes):
            element = stored.read(f"element_{lane}")
            code = self._any.drain(m, lane, element, block.base, advance)
            m.d.comb += payload.elements[lane].eq(code)

    def _round(self, m: Module, shift: "_Shift", select: Value) -> tuple[Value, Value]:
        """Floor of the element, already saturated, and whether one must be added."""
        bits = self._format.element.bits
        sign = shift.sign
        guard, floor = shift.word[0], shift.word[1:bits]
        at_end = [
            (floor[: format.element.bits - 1] ^ sign.replicate(format.element.bits - 1)).all()
            for format in self._formats
        ]
        reached = at_end[-1]
        for index in reversed(range(len(at_end) - 1)):
            reached = Mux(select == index, at_end[index], reached)
        if self._shared_exponent:
            # A scale at its largest lets elements outgrow a narrower format unseen by the shifter.
            for index, format in enumerate(self._formats):
                rest = floor[format.element.bits - 1 :]
                outgrown = (rest ^ sign.replicate(len(rest))).any() if len(rest) else Const(0, 1)
                shift.overflow = shift.overflow | ((select == index) & outgrown)
        # At either end of the range (the negative one has one code too many) the result is fixed.
        overflow = wire(m, shift.overflow, "overflow")
        reached = reached | overflow
        up = Mux(reached, sign, guard & (shift.sticky | floor[0]))
        saturated = Const(0, bits - 1)
        for index, format in enumerate(self._formats):
            width = format.element.bits - 1
            limit = Cat((~sign).replicate(width), sign.replicate(bits - 1 - width))
            saturated = limit if index == 0 else Mux(select == index, limit, saturated)
        floor = Mux(overflow, saturated, floor)
        return Cat(floor, sign).as_signed(), up


class _Shift:
    """A right shift with floor, in steps that narrow the word to the bits still needed."""

    def __init__(self, m: Module, word: Value, sign: Value):
        self._m = m
        self.word = word
        self.sign = sign
        self.sticky: Value = Const(0, 1)
        self.overflow: Value = Const(0, 1)

    def run(self, amount: Value, steps: Iterable[int], keep: int) -> None:
        """Shift by the bits ``steps`` of the amount, highest first; ``keep`` bits stay at last."""
        for step in steps:
            distance = 1 << step
            width = keep + distance - 1
            chosen = amount[step]
            moved, stayed = self._window(distance, width), self._window(0, width)
            dropped_moved = self._above(distance + width)
            dropped_stayed = self._above(width)
            self.sticky = self.sticky | (chosen & self.word[:distance].any())
            self.overflow = self.overflow | Mux(chosen, dropped_moved, dropped_stayed)
            self.word = wire(self._m, Mux(chosen, moved, stayed), f"word_{step}")

    def _window(self, start: int, width: int) -> Value:
        part = self.word[start : start + width]
        return Cat(part, self.sign.replicate(width - len(part)))

    def _above(self, start: int) -> Value:
        """Whether a bit that leaves the word at its top is no copy of the sign."""
        part = self.word[start:]
        return (part ^ self.sign.replicate(len(part))).any() if len(part) else Const(0, 1)

    def register(self, name: str, enable: Value) -> None:
        """Put a register stage here."""
        for field in ("word", "sign", "sticky", "overflow"):
            value = register(self._m, getattr(self, field), f"{name}_{field}", enable)
            setattr(self, field, value)


def _check_formats(formats: BlockFormat | Sequence[BlockFormat]) -> tuple[BlockFormat, ...]:
    formats = (formats,) if isinstance(formats, BlockFormat) else tuple(formats)
    if not formats:
        raise ValueError("Quantizer must have at least one format")
    for format in formats:
        if not isinstance(format, BlockFormat):
            raise TypeError(f"Format of a quantizer must be a BlockFormat, not {format!r}")
        if formats[1:] and not is_plain(format):
            raise ValueError(
                f"Formats of a quantizer must have integer elements and the scale rule floor if "
                f"there are several, not {format.name}"
            )
        if format.block_size != formats[0].block_size:
            raise ValueError(
                f"Formats of a quantizer must have one block size, not "
                f"{formats[0].block_size} and {format.block_size}"
            )
    return formats


def _max_stages(lanes: int) -> int:
    """Register stages of four-to-one maxima until at most two values are left."""
    return max(0, -(-(tree_levels(lanes) - 1) // 2))


def _beat_counter(m: Module, step: Value, beats: int, name: str) -> tuple[Value, Value]:
    """Whether the beat being moved is its block's first and its last."""
    if beats == 1:
        return Const(1, 1), Const(1, 1)
    index = Signal(range(beats), name=f"beat_{name}")
    with m.If(step):
        m.d.sync += index.eq(increment(index))
    return index == 0, index == beats - 1
