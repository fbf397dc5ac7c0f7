# amaranth: UnusedElaboratable=no
"""SiLU of wide blocks, alone or times a second operand: exponential, reciprocal, products."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.dot import queue_depth
from mxhw.arith.pipeline import OutputQueue, StreamFifo, count, delay, delay_value, register
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat
from mxhw.formats import SCALE_BIAS, BlockFormat
from mxhw.lut.exp2 import exp2_latency
from mxhw.lut.pwl import DSP, LUT, check_index_bits, table_latency, table_value
from mxhw.lut.uniform import (
    EXP2_FRACTION_BITS,
    VALUE_FRACTION_BITS,
    UniformTable,
    exp2_table,
    reciprocal_table,
)

__all__ = ["Silu", "SwiGlu"]

_CODE_BITS = 16
_ROWS = 16
_EXPONENT_LIMIT_BITS = 17
_LARGEST_LEFT_SHIFT = 3
"""A product with LOG2_E has at least 15 bits, so that this much more saturates 17 bits."""
_PRODUCT_BITS = 30
_LARGEST_SHIFT = _PRODUCT_BITS + _LARGEST_LEFT_SHIFT

_EXPONENT_STAGE = 6
"""Stage at which the negated exponent of two is known."""
_POWER_STAGE = _EXPONENT_STAGE + exp2_latency()
_SIGMOID_STAGE = _POWER_STAGE + 2 + table_latency()
_SILU_STAGE = _SIGMOID_STAGE + 1


def _times_log2_e(m: Module, magnitude: Value, name: str) -> Value:
    """``magnitude * 23637`` three cycles later, in additions: 23637 = 23 * 1024 + 5 * 17."""
    three = register(m, magnitude + (magnitude << 1), f"{name}_3")
    five = register(m, magnitude + (magnitude << 2), f"{name}_5")
    one = register(m, magnitude, f"{name}_1")
    many = register(m, ((three << 3) - one)[: _CODE_BITS + 5], f"{name}_23")
    few = register(m, five + (five << 4), f"{name}_85")
    return register(m, ((many << 10) + few)[:_PRODUCT_BITS], f"{name}_product")


def _silu(
    m: Module,
    code: Value,
    scale: Value,
    bias: int,
    name: str,
    tables: tuple[UniformTable, UniformTable],
) -> tuple[Value, Value]:
    """``golden.pointwise.silu_wide``, :data:`_SILU_STAGE` cycles later.

    ``bias`` is what the scale byte has more than the exponent of the code's unit. The exponent
    that comes out still has the bias. ``tables`` are the power of two's and the reciprocal's.
    """
    exp2, table = tables
    magnitude = register(m, Mux(code[-1], -code, code)[:_CODE_BITS], f"{name}_magnitude")
    product = _times_log2_e(m, magnitude, f"{name}_log2")
    # floor(product * 2**(e - 2)) as one shift to the right; beyond the clamps nothing changes.
    raw = register(m, (2 + bias + _LARGEST_LEFT_SHIFT) - scale, f"{name}_raw")
    near = Mux(raw > _LARGEST_SHIFT, _LARGEST_SHIFT, raw[: bits_for(_LARGEST_SHIFT)])
    amount = register(m, Mux(raw[-1], 0, near), f"{name}_amount")
    amount = delay_value(m, amount, 2, f"{name}_amount")
    shifted = Cat(Const(0, _LARGEST_LEFT_SHIFT), product) >> amount
    shifted = register(m, shifted, f"{name}_shifted")
    limit = _EXPONENT_LIMIT_BITS
    saturated = shifted[:limit] | shifted[limit:].any().replicate(limit)
    power = register(m, -saturated, f"{name}_power")

    fraction = power[:EXP2_FRACTION_BITS]
    mantissa = table_value(m, exp2, fraction, f"{name}_exp2", LUT)
    places = register(m, (-power[EXP2_FRACTION_BITS:].as_signed())[:6], f"{name}_places")
    places = delay_value(m, places, exp2_latency() - 1, f"{name}_places")
    negative = delay_value(m, code[-1], _POWER_STAGE, f"{name}_negative")
    # The denominator's leading one is left out; it carries only for an exponent of 0, where both
    # factors are exact powers of two and halving the numerator halves the result.
    rest = register(m, (mantissa >> places)[:VALUE_FRACTION_BITS], f"{name}_rest")
    one = Const(1 << VALUE_FRACTION_BITS, VALUE_FRACTION_BITS + 1)
    numerator = Mux(places == 0, one >> 1, Mux(negative, mantissa, one))
    numerator = register(m, numerator, f"{name}_numerator")
    later = table_latency()
    numerator = delay_value(m, numerator, later, f"{name}_numerator")
    reciprocal = table_value(m, table, rest, f"{name}_reciprocal")
    weight = DSP.product(m, reciprocal, numerator, f"{name}_sigmoid")
    weight = weight[VALUE_FRACTION_BITS : VALUE_FRACTION_BITS + _CODE_BITS]

    late = delay_value(m, code, _SIGMOID_STAGE, f"{name}_code")
    value = DSP.product(m, late, weight, f"{name}_silu")
    mantissa = value[VALUE_FRACTION_BITS - 1 :].as_signed()
    scale = delay_value(m, scale, _POWER_STAGE, f"{name}_scale")
    exponent = register(m, scale - Mux(negative, places, 0) - 1, f"{name}_unit")
    return mantissa, delay_value(m, exponent, _SILU_STAGE - _POWER_STAGE - 1, f"{name}_unit")


class _Packer(wiring.Component):
    """Gathers beats of few lanes into beats of ``lanes_out``."""

    def __init__(self, *, element_format: BlockFormat, lanes_in: int, lanes_out: int):
        self._count = lanes_out // lanes_in
        super().__init__(
            {
                "i": In(stream.Signature(BlockBeat(format=element_format, lanes=lanes_in))),
                "o": Out(stream.Signature(BlockBeat(format=element_format, lanes=lanes_out))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        incoming = self.i.payload.elements.as_value()
        if self._count == 1:
            wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
            return m
        width = len(incoming)
        gathered = Signal((self._count - 1) * width, reset_less=True)
        index = Signal(range(self._count))
        last = index == self._count - 1
        m.d.comb += self.i.ready.eq(~(last & self.o.valid))
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                gathered.eq(Cat(gathered, incoming)[width:]),
                index.eq(Mux(last, 0, index + 1)),
            ]
            with m.If(last):
                m.d.sync += [
                    self.o.payload.elements.as_value().eq(Cat(gathered, incoming)),
                    self.o.payload.scale.eq(self.i.payload.scale),
                    self.o.valid.eq(1),
                ]
        return m


class _SiluUnit(wiring.Component):
    """What :class:`Silu` and :class:`SwiGlu` share."""

    _gated: bool
    _title: str

    def __init__(
        self,
        *,
        wide_format: BlockFormat,
        format: BlockFormat,
        lanes_in: int = 4,
        lanes: int = 1,
        lanes_out: int = 4,
        exp2_bits: int = 5,
        reciprocal_bits: int = 5,
    ):
        for name, value in (("Wide format", wide_format), ("Format", format)):
            if not isinstance(value, BlockFormat):
                raise TypeError(f"{name} of a {self._title} must be a BlockFormat, not {value!r}")
        element = wide_format.element
        if not element.is_integer or element.bits > _CODE_BITS:
            raise ValueError(
                f"Wide format of a {self._title} must have integer elements of at most "
                f"{_CODE_BITS} bits, not {wide_format.name}"
            )
        if wide_format.block_size != format.block_size:
            raise ValueError(
                f"Formats of a {self._title} must have one block size, not "
                f"{wide_format.block_size} and {format.block_size}"
            )
        if not isinstance(lanes, int):
            raise TypeError(f"Lanes of a {self._title} must be an integer, not {lanes!r}")
        for name, value in (("Input", lanes_in), ("Output", lanes_out)):
            if not isinstance(value, int):
                raise TypeError(
                    f"{name} lanes of a {self._title} must be an integer, not {value!r}"
                )
            if lanes < 1 or value < 1 or value % lanes:
                raise ValueError(
                    f"{name} lanes of a {self._title} must be a multiple of its lanes ({lanes}), "
                    f"not {value}"
                )
        self._wide_format = wide_format
        self._format = format
        self._lanes_in = lanes_in
        self._lanes = lanes
        self._lanes_out = lanes_out
        self._tables = (
            exp2_table(check_index_bits(exp2_bits, f"a {self._title}'s power")),
            reciprocal_table(check_index_bits(reciprocal_bits, f"a {self._title}'s reciprocal")),
        )
        silu_bits = element.bits + 2
        self._quantizer = Quantizer(
            mantissa_bits=silu_bits + element.bits if self._gated else silu_bits,
            lanes=lanes,
            formats=format,
        )
        super().__init__(
            {
                "i": In(stream.Signature(BlockBeat(format=wide_format, lanes=lanes_in))),
                "o": Out(stream.Signature(BlockBeat(format=format, lanes=lanes_out))),
            }
        )

    @property
    def wide_format(self) -> BlockFormat:
        """Format of the operands."""
        return self._wide_format

    @property
    def format(self) -> BlockFormat:
        """Format of the result."""
        return self._format

    @property
    def lanes_in(self) -> int:
        """Elements an input beat."""
        return self._lanes_in

    @property
    def lanes(self) -> int:
        """Elements computed a cycle."""
        return self._lanes

    @property
    def lanes_out(self) -> int:
        """Elements an output beat."""
        return self._lanes_out

    @property
    def _stages(self) -> int:
        """Cycles from an element's issue to its push."""
        return _SILU_STAGE + (2 if self._gated else 1)

    @property
    def _beats(self) -> int:
        """Input beats of a block."""
        return self._wide_format.block_size // self._lanes_in

    @property
    def _ring_depth(self) -> int:
        """Beats of an operand that the unit holds: two blocks."""
        return max(_ROWS, 2 * self._beats)

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a block's last beat to that of its first output beat."""
        groups = self._wide_format.block_size // self._lanes
        # The first group is issued two cycles after the first beat that it needs, and the beats
        # come at most as fast as they are used up.
        busy = groups - self._beats if self._lanes < self._lanes_in else 0
        packing = self._lanes_out // self._lanes if self._lanes_out > self._lanes else 0
        return 1 + busy + self._stages + 1 + self._quantizer.latency + packing

    @property
    def interval(self) -> int:
        """Cycles from one block of the result to the next."""
        operands = 2 if self._gated else 1
        return max(self._wide_format.block_size // self._lanes, operands * self._beats)

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs."""
        operands = 2 if self._gated else 1
        beat = Shape.cast(self.i.payload.shape()).width
        queued = Shape.cast(self._quantizer.i.payload.shape()).width
        ours = operands * beat * self._ring_depth + queued * queue_depth(self._stages)
        return {
            "multipliers": (4 if self._gated else 3) * self._lanes,
            "memory_bits": ours + self._quantizer.cost()["memory_bits"],
            "block_rams": 0,
        }

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantizer = quantizer = self._quantizer
        m.submodules.packer = packer = _Packer(
            element_format=self._format, lanes_in=self._lanes, lanes_out=self._lanes_out
        )
        m.submodules.queue = queue = OutputQueue(
            shape=quantizer.i.payload.shape(), depth=queue_depth(self._stages)
        )
        wiring.connect(m, queue.o, quantizer.i)
        wiring.connect(m, quantizer.o, packer.i)
        wiring.connect(m, packer.o, wiring.flipped(self.o))

        shape = self.i.payload.shape()
        m.submodules.gates = gates = StreamFifo(shape=shape, depth=self._ring_depth)
        issue, last = Signal(), Signal()
        bias = SCALE_BIAS + self._wide_format.element.fraction_bits
        if self._gated:
            m.submodules.ups = ups = StreamFifo(shape=shape, depth=self._ring_depth)
            present = self._split(m, gates, ups, issue & last)
            late = delay(m, issue, _SILU_STAGE, "late")
            others, other_scale, ups_last = self._group(m, ups, late, "up")
            m.d.comb += ups.o.ready.eq(late & ups_last)
        else:
            wiring.connect(m, wiring.flipped(self.i), gates.i)
            present = Const(1)
        codes, scale, gates_last = self._group(m, gates, issue, "gate")
        m.d.comb += [
            last.eq(gates_last),
            issue.eq(gates.o.valid & present & queue.free),
            gates.o.ready.eq(issue & last),
            queue.reserve.eq(issue),
            queue.i.valid.eq(delay(m, issue, self._stages, "issued")),
        ]
        for lane in range(self._lanes):
            mantissa, exponent = _silu(m, codes[lane], scale, bias, f"lane_{lane}", self._tables)
            if self._gated:
                mantissa = DSP.product(m, mantissa, others[lane], f"result_{lane}")
                exponent = register(m, exponent + other_scale - 2 * bias, f"result_exponent_{lane}")
            else:
                exponent = exponent - bias
            m.d.comb += [
                queue.i.payload.mantissas[lane].eq(mantissa),
                queue.i.payload.exponents[lane].eq(exponent),
            ]
        return m

    def _split(self, m: Module, gates: StreamFifo, ups: StreamFifo, used: Value) -> Signal:
        """Send the blocks to both queues in turn; whether a beat of ``ups`` is not used yet."""
        beat = Signal(range(self._beats))
        second = Signal()
        for queue, chosen in ((gates, ~second), (ups, second)):
            m.d.comb += [
                queue.i.payload.eq(self.i.payload),
                queue.i.valid.eq(self.i.valid & chosen),
            ]
        m.d.comb += self.i.ready.eq(Mux(second, ups.i.ready, gates.i.ready))
        moved = self.i.valid & self.i.ready
        with m.If(moved):
            m.d.sync += beat.eq(beat + 1)
            with m.If(beat == self._beats - 1):
                m.d.sync += [beat.eq(0), second.eq(~second)]
        # One less than the count, so that the sign bit says "none".
        unused = Signal(signed(bits_for(self._ring_depth) + 1), init=-1)
        count(m, unused, up=moved & second, down=used)
        return ~unused[-1]  # pyright: ignore[reportReturnType]

    def _group(
        self, m: Module, queue: StreamFifo, step: Value, name: str
    ) -> tuple[list[Value], Value, Value]:
        """Registered codes and scale of the next group of lanes, and whether its beat ends."""
        groups = self._lanes_in // self._lanes
        head = queue.o.payload
        index = Signal(range(groups), name=f"{name}_group")
        if groups > 1:
            last = index == groups - 1
            with m.If(step):
                m.d.sync += index.eq(Mux(last, 0, index + 1))
        else:
            last = Const(1)
        codes = []
        for lane in range(self._lanes):
            choices = Array(head.elements[n * self._lanes + lane] for n in range(groups))
            value = Signal(signed(self._wide_format.element.bits), name=f"{name}_head_{lane}")
            m.d.comb += value.eq(choices[index])
            codes.append(register(m, value, f"{name}_{lane}"))
        return codes, register(m, head.scale, f"{name}_scale"), last


class Silu(_SiluUnit):
    """``x * sigmoid(x)`` of wide blocks, requantised: bit for bit ``golden.pointwise.silu``.

    The exponential's and the reciprocal's tables are those of the other units. A negative input
    takes ``2**t / (1 + 2**t)``, so that both tails have the right relative error.

    Parameters
    ----------
    wide_format : BlockFormat
        Format of the input: integer elements of at most 16 bits.
    format : BlockFormat
        Format of the output: one that :class:`Quantizer` makes.
    lanes_in, lanes_out : int
        Elements of an input and of an output beat.
    lanes : int
        Elements computed a cycle; divides both.
    exp2_bits, reciprocal_bits : int
        3, 4 or 5: logarithm of each table's entries.

    Members
    -------
    i : ``In(stream.Signature(BlockBeat(format=wide_format, lanes=lanes_in)))``
    o : ``Out(stream.Signature(BlockBeat(format=format, lanes=lanes_out)))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: :attr:`latency` from a block's last beat to its first result, :attr:`interval` cycles a
    block: ``block_size / lanes``, or the input's beats if they are more.

    Cost: three DSP slices a lane; queues in distributed memory (:meth:`cost`).
    """

    _gated = False
    _title = "SiLU"


class SwiGlu(_SiluUnit):
    """``silu(gate) * up`` of wide blocks, requantised: bit for bit ``golden.pointwise.swiglu``.

    The input alternates: one block of ``gate``, then the same block of ``up``.

    Parameters
    ----------
    wide_format : BlockFormat
        Format of both operands: integer elements of at most 16 bits.
    format : BlockFormat
        Format of the output: one that :class:`Quantizer` makes.
    lanes_in, lanes_out : int
        Elements of an input and of an output beat.
    lanes : int
        Elements computed a cycle; divides both.
    exp2_bits, reciprocal_bits : int
        3, 4 or 5: logarithm of each table's entries.

    Members
    -------
    i : ``In(stream.Signature(BlockBeat(format=wide_format, lanes=lanes_in)))``
    o : ``Out(stream.Signature(BlockBeat(format=format, lanes=lanes_out)))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: :attr:`latency` from the last beat of a block of ``up`` to the first result,
    :attr:`interval` cycles a block: ``block_size / lanes``, or both blocks' beats if they are more.

    Cost: four DSP slices a lane; queues in distributed memory (:meth:`cost`).
    """

    _gated = True
    _title = "gated SiLU"
