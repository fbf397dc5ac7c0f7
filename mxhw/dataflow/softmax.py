# amaranth: UnusedElaboratable=no
"""Softmax numerators over the visible positions, in base 2, and their sum."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat
from mxhw.dataflow.attention_output import join_beats, total_bits
from mxhw.dataflow.fixed import FixedBeat
from mxhw.dataflow.key_cache import column_cost
from mxhw.formats import SCALE_BIAS, SCALE_BITS, BlockFormat
from mxhw.lut.exp2 import exp2_latency, exp2_value
from mxhw.lut.pwl import check_index_bits
from mxhw.lut.uniform import EXP2_FRACTION_BITS, VALUE_FRACTION_BITS
from mxhw.sw.golden.linear import FIXED_BITS

__all__ = ["Softmax"]

_POWER_BITS = 6
"""Exponents of 2 from -31 on, and -32 for everything below."""
_DEAD = -(1 << (_POWER_BITS - 1))
_COARSE_BITS = 3
_READ_STAGES = 3
"""Block RAM, fabric register, difference to the maximum."""


class Softmax(wiring.Component):
    """Numerators ``2**(score - maximum)`` times the values' scales, in MX blocks, and their sum.

    Contract: :func:`mxhw.sw.golden.attention.softmax`, bit for bit, with positions 0 to
    ``position`` visible. The scores are stored while their maximum is found; the second pass over
    one head overlaps the first over the next. Values of several blocks have scales of their own for
    each, so their head takes as many second passes, one after the other.

    Parameters
    ----------
    context : int
        Largest number of positions.
    format : BlockFormat
        Integer format of the numerators.
    lanes_in : int
        Scores and scales of a beat, a power of two.
    lanes : int
        Positions a cycle of the second pass, a divisor of ``lanes_in`` and ``lanes_out``.
    lanes_out : int or None
        Elements of an output beat, ``lanes_in`` if None.
    exp2_bits : int
        3, 4 or 5: logarithm of the table's entries.
    passes : int
        Second passes over a head: blocks of its values.

    Members
    -------
    i_position : ``In(stream.Signature(unsigned(...)))``
        The last visible position, once a head.
    i : ``In(stream.Signature(FixedBeat(lanes_in)))``
        ``position // lanes_in + 1`` beats of scores; lanes of later positions are ignored.
    i_scales : ``In(stream.Signature(ArrayLayout(unsigned(8), lanes_in)))``
        As many beats of the positions' value scales for each second pass, which waits for them.
    o : ``Out(stream.Signature(BlockBeat(format, lanes_out)))``
        ``position // block_size + 1`` blocks a pass, zeros behind the last position.
    o_total : ``Out(stream.Signature(unsigned(total_bits(context))))``
        The sum of a head, once a pass, with 31 fraction bits. Two may wait before the unit does.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` from a head's last scores to its first numerators, if it has one block; ``interval``
    cycles from head to head, a function of the position.

    Cost
    ----
    Two heads of scores in block RAM; no DSP slice; for each lane of the second pass the table's
    product, a 32-bit shifter and the quantiser's lane.
    """

    def __init__(
        self,
        *,
        context: int,
        format: BlockFormat,
        lanes_in: int = 4,
        lanes: int = 2,
        lanes_out: int | None = None,
        exp2_bits: int = 5,
        passes: int = 1,
    ):
        lanes_out = lanes_in if lanes_out is None else lanes_out
        if not isinstance(format, BlockFormat):
            raise TypeError(f"Format of a softmax must be a block format, not {format!r}")
        if not format.element.is_integer:
            raise ValueError(f"Format of a softmax must have integer elements, not {format.name}")
        if not isinstance(context, int) or context < 1:
            raise ValueError(f"Context of a softmax must be a positive integer, not {context!r}")
        size = format.block_size
        for name, count in (("Input", lanes_in), ("Inner", lanes), ("Output", lanes_out)):
            if not isinstance(count, int) or count < 1 or size % count:
                raise ValueError(
                    f"{name} lanes of a softmax must divide the block size ({size}), not {count!r}"
                )
        if lanes_in % lanes or lanes_out % lanes:
            raise ValueError(
                f"Inner lanes of a softmax must divide the input's ({lanes_in}) and the output's "
                f"({lanes_out}), not {lanes}"
            )
        if not isinstance(passes, int) or passes < 1:
            raise ValueError(f"Passes of a softmax must be a positive integer, not {passes!r}")
        self._context = context
        self._passes = passes
        self._format = format
        self._lanes_in = lanes_in
        self._lanes = lanes
        self._lanes_out = lanes_out
        self._exp2_bits = check_index_bits(exp2_bits, "a softmax")
        self._quantizer = Quantizer(mantissa_bits=17, lanes=lanes, formats=format)
        super().__init__(
            {
                "i_position": In(stream.Signature(unsigned(self._position_bits))),
                "i": In(stream.Signature(FixedBeat(lanes=lanes_in))),
                "i_scales": In(stream.Signature(data.ArrayLayout(SCALE_BITS, lanes_in))),
                "o": Out(stream.Signature(BlockBeat(format=format, lanes=lanes_out))),
                "o_total": Out(stream.Signature(unsigned(total_bits(context)))),
            }
        )

    @property
    def context(self) -> int:
        """Largest number of positions."""
        return self._context

    @property
    def format(self) -> BlockFormat:
        """Format of the numerators."""
        return self._format

    @property
    def lanes_in(self) -> int:
        """Scores and scales of a beat."""
        return self._lanes_in

    @property
    def lanes(self) -> int:
        """Positions a cycle of the second pass."""
        return self._lanes

    @property
    def lanes_out(self) -> int:
        """Elements of an output beat."""
        return self._lanes_out

    @property
    def latency(self) -> int:
        """Cycles from the last scores of a head of one block to its first numerators."""
        maximum = ceil_log2(self._lanes_in) + 1
        block = self._format.block_size // self._lanes - 1
        first_beat = self._lanes_out // self._lanes - 1
        # One cycle each: start, queue, scale.
        power = _READ_STAGES + exp2_latency()
        return maximum + 1 + power + 2 + block + self._quantizer.latency + first_beat

    def interval(self, position: int) -> int:
        """Cycles from one head to the next: the longer pass."""
        first = position // self._lanes_in + 2
        size = self._format.block_size
        second = (position // size + 1) * (size // self._lanes) + 1
        return max(first, self._passes * second)

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs."""
        cost = self._quantizer.cost()
        scores = column_cost(depth=2 * self._beats_in, rows=1, widths=[self._row_bits])
        queue = self._queue_depth * self._power_shape.size
        return {
            **cost,
            "memory_bits": cost["memory_bits"] + queue,
            "block_rams": scores["block_rams"],
        }

    @property
    def _position_bits(self) -> int:
        return max(1, ceil_log2(self._context))

    @property
    def _row_bits(self) -> int:
        return self._lanes_in * FIXED_BITS

    @property
    def _beats_in(self) -> int:
        """Rows of one head's scores, a power of two so that the head is one more address bit."""
        return 1 << ceil_log2(-(-self._context // self._lanes_in))

    @property
    def _queue_depth(self) -> int:
        return -(-(_READ_STAGES + exp2_latency() + 3) // 16) * 16

    @property
    def _power_shape(self) -> data.StructLayout:
        return data.StructLayout(
            {
                "mantissas": data.ArrayLayout(unsigned(16), self._lanes),
                "powers": data.ArrayLayout(signed(_POWER_BITS), self._lanes),
                "scaled": unsigned(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.scores = scores = memory.Memory(
            shape=unsigned(self._row_bits),
            depth=2 * self._beats_in,
            init=[],
            attrs={"ram_style": "block"},
        )
        heads = data.ArrayLayout(
            data.StructLayout(
                {
                    # Between the head's position and the end of its second pass.
                    "claimed": unsigned(1),
                    # The maximum is known.
                    "complete": unsigned(1),
                    "position": unsigned(self._position_bits),
                    "maximum": signed(FIXED_BITS),
                }
            ),
            2,
        )
        table = Signal(heads)
        self._first_pass(m, table, scores)
        read = scores.read_port()
        self._second_pass(m, table, read)
        return m

    def _first_pass(self, m: Module, table, scores: memory.Memory) -> None:
        """Store the scores of a head and find their maximum."""
        write = scores.write_port()
        busy = Signal()
        slot = Signal()
        beat = Signal(range(self._beats_in))
        left = Signal(range(self._beats_in))
        lane_bits = ceil_log2(self._lanes_in)
        tail = Signal(self._lanes_in)
        last = Signal()
        accept = Signal()
        m.d.comb += [
            self.i_position.ready.eq(~busy & ~table[slot].claimed),
            self.i.ready.eq(busy),
            accept.eq(self.i.valid & busy),
            last.eq(left == 0),
            write.addr.eq(Cat(beat[: ceil_log2(self._beats_in)], slot)),
            write.data.eq(self.i.payload),
            write.en.eq(accept),
        ]
        with m.If(self.i_position.valid & self.i_position.ready):
            position = self.i_position.payload
            places = Cat(position[:lane_bits] >= lane for lane in range(self._lanes_in))
            m.d.sync += [
                busy.eq(1),
                beat.eq(0),
                left.eq(position >> lane_bits),
                tail.eq(places),
            ]
            with m.Switch(slot):
                for number in range(2):
                    with m.Case(number):
                        m.d.sync += [
                            table[number].claimed.eq(1),
                            table[number].position.eq(position),
                        ]
        with m.If(accept):
            m.d.sync += [beat.eq(beat + 1), left.eq(left - 1)]
            with m.If(last):
                m.d.sync += [busy.eq(0), slot.eq(~slot)]

        # Visible lanes come first: a pair whose left lane is hidden is hidden as a whole, and what
        # it offers is never chosen. So the masks meet the comparisons only at their end.
        values = [(self.i.payload[lane], ~last | tail[lane]) for lane in range(self._lanes_in)]
        for level in range(lane_bits):
            pairs = []
            for index, ((one, seen), (other, also)) in enumerate(
                zip(*[iter(values)] * 2, strict=True)
            ):
                value = Mux((other > one) & also, other, one).as_signed()
                pairs.append(
                    (
                        register(m, value, f"larger_{level}_{index}"),
                        register(m, seen, f"seen_{level}_{index}"),
                    )
                )
            values = pairs
        highest = values[0][0]
        first = delay_value(m, beat == 0, lane_bits, "first")
        last_out = delay_value(m, last, lane_bits, "last")
        slot_out = delay_value(m, slot, lane_bits, "slot")
        with m.If(delay(m, accept, lane_bits, "accept")), m.Switch(slot_out):
            for number in range(2):
                entry = table[number]
                with m.Case(number):
                    with m.If(first | (highest > entry.maximum)):
                        m.d.sync += entry.maximum.eq(highest)
                    m.d.sync += entry.complete.eq(last_out)

    def _second_pass(self, m: Module, table, read) -> None:
        """Read a head's scores, give numerators and sum."""
        size = self._format.block_size
        steps = size // self._lanes
        ratio = self._lanes_in // self._lanes
        m.submodules.queue = queue = OutputQueue(shape=self._power_shape, depth=self._queue_depth)

        # Issue of ``lanes`` positions a cycle, up to the end of the last block.
        busy = Signal()
        slot = Signal()
        m.submodules.totals = totals = OutputQueue(shape=self.o_total.payload.shape(), depth=2)
        wiring.connect(m, totals.o, wiring.flipped(self.o_total))
        position = Signal(self._position_bits)
        step = Signal(range(max(-(-self._context // size) * steps, 2)))
        issue = Signal()
        last = Signal()
        again = Signal(range(max(self._passes, 2)))
        final = Signal()
        m.d.comb += [
            final.eq(again == self._passes - 1),
            issue.eq(busy & queue.free),
            last.eq(
                (step & (steps - 1) == steps - 1)
                & (step >> ceil_log2(steps) == position >> ceil_log2(size))
            ),
            queue.reserve.eq(issue),
            read.addr.eq(Cat((step >> ceil_log2(ratio))[: ceil_log2(self._beats_in)], slot)),
        ]
        m.d.comb += totals.reserve.eq(~busy & totals.free & table[slot].complete)
        with m.If(totals.reserve):
            m.d.sync += [
                busy.eq(1),
                step.eq(0),
                position.eq(table[slot].position),
            ]
        with m.If(issue):
            m.d.sync += step.eq(step + 1)
            with m.If(last):
                m.d.sync += busy.eq(0)
            if self._passes > 1:
                with m.If(last):
                    m.d.sync += again.eq(Mux(final, 0, again + 1))
            with m.If(last & final):
                m.d.sync += slot.eq(~slot)
                # The slot's maximum stays until it has been used: the next head's scores
                # cannot reach it before.
                with m.Switch(slot):
                    for number in range(2):
                        with m.Case(number):
                            m.d.sync += [
                                table[number].claimed.eq(0),
                                table[number].complete.eq(0),
                            ]

        lane_positions = [(step << ceil_log2(self._lanes)) + lane for lane in range(self._lanes)]
        visible = Cat(place <= position for place in lane_positions)
        scaled = (step >> ceil_log2(ratio)) <= (position >> ceil_log2(self._lanes_in))
        power_stages = exp2_latency()
        visible = delay_value(m, visible, _READ_STAGES + power_stages, "visible")
        scaled = delay_value(m, scaled, _READ_STAGES + power_stages, "scaled")
        valid = delay(m, issue, _READ_STAGES + power_stages, "valid")
        last = delay_value(m, last, _READ_STAGES + power_stages, "last")

        row = read.data
        if ratio > 1:
            part = delay_value(m, step[: ceil_log2(ratio)], 1, "part")
            row = row.word_select(part, self._lanes * FIXED_BITS)
        row = register(m, row, "row")
        slot_1 = delay_value(m, slot, 1, "slot")
        maximum = register(m, table[slot_1].maximum, "maximum")
        mantissas, powers = [], []
        for lane in range(self._lanes):
            score = row.word_select(lane, FIXED_BITS).as_signed()
            fall = register(m, (score - maximum).as_signed(), f"fall_{lane}")
            power = fall[EXP2_FRACTION_BITS:].as_signed()
            clipped = Mux(power < _DEAD, _DEAD, power)[:_POWER_BITS]
            mantissa, power = exp2_value(
                m,
                Cat(fall[:EXP2_FRACTION_BITS], clipped).as_signed(),
                f"power_{lane}",
                self._exp2_bits,
            )
            alive = visible[lane] & (power != _DEAD)
            mantissas.append(Mux(alive, mantissa, 0))
            powers.append(power)

        m.d.comb += [queue.i.valid.eq(valid), queue.i.payload.scaled.eq(scaled)]
        for lane in range(self._lanes):
            m.d.comb += [
                queue.i.payload.mantissas[lane].eq(mantissas[lane]),
                queue.i.payload.powers[lane].eq(powers[lane]),
            ]
        self._sum(m, mantissas, powers, valid, last, totals)
        self._scale(m, queue.o, ratio)

    def _sum(
        self,
        m: Module,
        mantissas: list[Value],
        powers: list[Value],
        valid: Value,
        last: Value,
        totals: OutputQueue,
    ) -> None:
        """Add the numerators without scales; the total leaves after the last."""
        terms = []
        for lane, (mantissa, power) in enumerate(zip(mantissas, powers, strict=True)):
            amount = register(m, (-power)[: _POWER_BITS - 1], f"amount_{lane}")
            fixed = Cat(Const(0, 16), register(m, mantissa, f"fixed_{lane}"))
            coarse = Cat(Const(0, _COARSE_BITS), amount[_COARSE_BITS:])
            moved = register(m, fixed >> coarse, f"moved_{lane}")
            fine = register(m, amount[:_COARSE_BITS], f"fine_{lane}")
            terms.append(register(m, moved >> fine, f"term_{lane}"))
        stages = 3
        while len(terms) > 1:
            pairs = zip(terms[::2], terms[1::2], strict=True)
            terms = [
                register(m, left + right, f"sum_{stages}_{index}")
                for index, (left, right) in enumerate(pairs)
            ]
            stages += 1
        valid = delay(m, valid, stages, "sum_valid")
        last = delay_value(m, last, stages, "sum_last")
        total = Signal(self.o_total.payload.shape(), reset_less=True)
        first = Signal(init=1)
        with m.If(valid):
            m.d.sync += [total.eq(Mux(first, 0, total) + terms[0]), first.eq(last)]
        m.d.comb += [
            totals.i.valid.eq(delay(m, valid & last, 1, "total_valid")),
            totals.i.payload.eq(total),
        ]

    def _scale(self, m: Module, powers, ratio: int) -> None:
        """Join the powers with the values' scales, and quantise."""
        m.submodules.quantizer = quantizer = self._quantizer
        payload = quantizer.i.payload
        full = Signal()
        take = Signal()
        part = Signal(range(max(ratio, 2)))
        scaled = powers.payload.scaled
        m.d.comb += [
            powers.ready.eq((~full | quantizer.i.ready) & (~scaled | self.i_scales.valid)),
            take.eq(powers.valid & powers.ready),
            self.i_scales.ready.eq(take & scaled & (part == ratio - 1)),
            quantizer.i.valid.eq(full),
        ]
        with m.If(~full | quantizer.i.ready):
            m.d.sync += full.eq(take)
            for lane in range(self._lanes):
                scale = self.i_scales.payload.as_value().word_select(
                    part * self._lanes + lane, SCALE_BITS
                )
                m.d.sync += [
                    payload.mantissas[lane].eq(powers.payload.mantissas[lane]),
                    payload.exponents[lane].eq(
                        (powers.payload.powers[lane] + scale) - (VALUE_FRACTION_BITS + SCALE_BIAS)
                    ),
                ]
        with m.If(take):
            m.d.sync += part.eq(Mux(part == ratio - 1, 0, part + 1))
        join_beats(m, quantizer.o, self.o)
