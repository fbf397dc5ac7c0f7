# amaranth: UnusedElaboratable=no
"""RMSNorm of a vector of wide blocks: one pass for the sum of squares, one to scale."""

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.accumulate import AlignedSum, accumulator_bits
from mxhw.arith.dot import queue_depth
from mxhw.arith.multiply import DspMultiplier
from mxhw.arith.pipeline import (
    OutputQueue,
    adder_tree,
    delay,
    delay_value,
    register,
    tree_levels,
)
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat
from mxhw.formats import SCALE_BIAS, BlockFormat
from mxhw.lut.pwl import check_index_bits
from mxhw.lut.rsqrt import rsqrt_latency, rsqrt_value
from mxhw.lut.uniform import VALUE_FRACTION_BITS
from mxhw.sw.golden.norm import NormConstants
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["RmsNorm"]

_CODE_BITS = 16
_EPSILON_BITS = 17
_FACTOR_BITS = 17
_DISTRIBUTED_ROWS = 64
_BLOCK_RAM_WIDTH = 36
_BLOCK_RAM_DEPTH = 512
_DSP = DspMultiplier()


class RmsNorm(wiring.Component):
    """``x / sqrt(mean(x**2) + epsilon) * weight``: bit for bit ``golden.norm.rms_norm``.

    A vector is collected while its squares are summed; then the factor follows, and the vector is
    read again, scaled and requantised. The same multipliers square and scale.

    The unit serves the norms of a token in turn: vector ``n`` takes ``weights[n]``, and after the
    last weight the first one follows.

    Parameters
    ----------
    dim : int
        Elements of a vector, whole blocks.
    epsilon : float
        Added to the mean square; positive.
    width : int, optional
        Elements that the mean is over; the others, up to ``dim``, are zeros that fill a block.
    wide_format : BlockFormat
        Format of the input: integer elements of at most 16 bits.
    format : BlockFormat
        Format of the output: one that :class:`Quantizer` makes.
    lanes : int
        Elements of a beat.
    weights : sequence of MXTensor, optional
        Weights ``[dim]`` in the wide format, one for each norm of a token; without them all are 1.
    rsqrt_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(BlockBeat(format=wide_format, lanes=lanes)))``
        ``ready`` is a register; low from a vector's last beat until it is read again.
    o : ``Out(stream.Signature(BlockBeat(format=format, lanes=lanes)))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing
    ------
    :attr:`latency` from a vector's last beat to the first beat of its result,
    :attr:`interval` from a vector to the next: both passes' beats and, with four lanes, 12 cycles
    for the factor (14 if the length is no power of two).

    Cost
    ----
    A DSP slice a lane, another one with weights, one for the root and one for a length that
    is no power of two; the vector and the weights in memory (:meth:`cost`).
    """

    def __init__(
        self,
        *,
        dim: int,
        epsilon: float,
        width: int | None = None,
        wide_format: BlockFormat,
        format: BlockFormat,
        lanes: int = 4,
        weights: Sequence[MXTensor] | None = None,
        rsqrt_bits: int = 5,
    ):
        for name, value in (("Wide format", wide_format), ("Format", format)):
            if not isinstance(value, BlockFormat):
                raise TypeError(f"{name} of a norm must be a BlockFormat, not {value!r}")
        element = wide_format.element
        if not element.is_integer or element.bits > _CODE_BITS:
            raise ValueError(
                f"Wide format of a norm must have integer elements of at most {_CODE_BITS} bits, "
                f"not {wide_format.name}"
            )
        if wide_format.block_size != format.block_size:
            raise ValueError(
                f"Formats of a norm must have one block size, not {wide_format.block_size} and "
                f"{format.block_size}"
            )
        for name, value in (("Length", dim), ("Lanes", lanes)):
            if not isinstance(value, int):
                raise TypeError(f"{name} of a norm must be an integer, not {value!r}")
        size = wide_format.block_size
        if dim < 1 or dim % size:
            raise ValueError(
                f"Length of a norm must be a multiple of the block size ({size}), not {dim}"
            )
        width = dim if width is None else width
        if not 1 <= width <= dim:
            raise ValueError(f"Width of a norm must be 1 to its length ({dim}), not {width}")
        if not isinstance(epsilon, int | float):
            raise TypeError(f"Epsilon of a norm must be a number, not {epsilon!r}")
        if not epsilon > 0:
            raise ValueError(f"Epsilon of a norm must be positive, not {epsilon!r}")
        self._weights = None if weights is None else _check_weights(weights, dim, wide_format)
        self._dim = dim
        self._epsilon = float(epsilon)
        self._wide_format = wide_format
        self._format = format
        self._lanes = lanes
        self._rsqrt_bits = check_index_bits(rsqrt_bits, "a norm")
        self._constants = NormConstants.of(width, epsilon)
        i_shape = BlockBeat(format=wide_format, lanes=lanes)
        weight_bits = _FACTOR_BITS - 1 if weights is None else element.bits
        self._quantizer = Quantizer(
            mantissa_bits=element.bits + weight_bits,
            lanes=lanes,
            formats=format,
            shared_exponent=True,
        )
        super().__init__(
            {
                "i": In(stream.Signature(i_shape)),
                "o": Out(stream.Signature(BlockBeat(format=format, lanes=lanes))),
            }
        )

    @property
    def dim(self) -> int:
        """Elements of a vector."""
        return self._dim

    @property
    def epsilon(self) -> float:
        """Added to the mean square."""
        return self._epsilon

    @property
    def wide_format(self) -> BlockFormat:
        """Format of the input."""
        return self._wide_format

    @property
    def format(self) -> BlockFormat:
        """Format of the output."""
        return self._format

    @property
    def lanes(self) -> int:
        """Elements of a beat."""
        return self._lanes

    @property
    def norms(self) -> int:
        """Weight vectors; 0 without weights."""
        return len(self._weights or ())

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a vector's last beat to that of its first output beat."""
        return self._issue_stage + self._beats - 1 + self._stages + 1 + self._quantizer.latency

    @property
    def interval(self) -> int:
        """Cycles from one vector to the next."""
        return 2 * self._words + self._issue_stage

    # Stages after a beat's transfer: it is registered, squared, summed and added to its block.

    @property
    def _term_stage(self) -> int:
        return 2 + tree_levels(self._lanes) + 1

    @property
    def _total_stage(self) -> int:
        # The exponent of a block goes into the sum two cycles before the block's squares.
        return self._term_stage - 2 + AlignedSum.latency

    @property
    def _issue_stage(self) -> int:
        # The factor meets the first beat one cycle after the latter's address.
        return self._total_stage + rsqrt_latency(self._constants.inverse_mantissa) - 1

    @property
    def _stages(self) -> int:
        """Cycles from a beat's address in the second pass to its push."""
        return 3 if self._weights is None else 4

    @property
    def _beats(self) -> int:
        """Beats of a block."""
        return self._wide_format.block_size // self._lanes

    @property
    def _words(self) -> int:
        """Beats of a vector."""
        return self._dim // self._lanes

    @property
    def _distributed(self) -> bool:
        """Whether the vector is too short for a block RAM."""
        return self._words <= _DISTRIBUTED_ROWS

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs of 512 words of 36 bits."""
        divide = self._constants.inverse_mantissa != 1 << VALUE_FRACTION_BITS
        lanes = self._lanes * (1 if self._weights is None else 2)
        beat = Shape.cast(self.i.payload.shape()).width
        queued = Shape.cast(self._quantizer.i.payload.shape()).width
        memory_bits = queued * queue_depth(self._stages) + self._quantizer.cost()["memory_bits"]
        block_rams = _block_rams(beat, self._words * self.norms)
        if self._distributed:
            memory_bits += beat * self._words
        else:
            block_rams += _block_rams(beat, self._words)
        return {
            "multipliers": lanes + 1 + int(divide),
            "memory_bits": memory_bits,
            "block_rams": block_rams,
        }

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantizer = quantizer = self._quantizer
        m.submodules.queue = queue = OutputQueue(
            shape=quantizer.i.payload.shape(), depth=queue_depth(self._stages)
        )
        wiring.connect(m, queue.o, quantizer.i)
        wiring.connect(m, quantizer.o, wiring.flipped(self.o))

        # Control: collect the vector, wait for the factor, read the vector.
        take, issue, start = Signal(), Signal(), Signal()
        index = Signal(range(max(2, self._words)))
        last = index == self._words - 1
        collecting = Signal(init=1)
        m.d.comb += [self.i.ready.eq(collecting), take.eq(self.i.valid & collecting)]
        with m.If(take | issue):
            m.d.sync += index.eq(Mux(last, 0, index + 1))
        with m.FSM():
            with m.State("collect"), m.If(take & last):
                m.d.sync += collecting.eq(0)
                m.next = "wait"
            with m.State("wait"), m.If(start):
                m.next = "scale"
            with m.State("scale"):
                m.d.comb += issue.eq(queue.free)
                with m.If(issue & last):
                    m.next = "turn"
            with m.State("turn"):
                # The last beat read enters the multipliers in this cycle.
                m.d.sync += collecting.eq(1)
                m.next = "collect"

        # What both passes share: a beat, the other factor, and their products.
        reading = delay(m, issue, 1, "reading")
        factor, factor_exponent = Signal(_FACTOR_BITS - 1), Signal(signed(EXPONENT_BITS))
        stored = self._vector(m, index, take)
        source = self.i.payload
        scale = register(m, Mux(reading, stored.scale, source.scale), "scale")
        values, products = [], []
        for lane in range(self._lanes):
            left = Signal(signed(self._wide_format.element.bits), name=f"left_{lane}")
            right = Signal(signed(_FACTOR_BITS), name=f"right_{lane}")
            m.d.comb += left.eq(Mux(reading, stored.elements[lane], source.elements[lane]))
            m.d.comb += right.eq(Mux(reading, factor, source.elements[lane]))
            values.append(register(m, left, f"value_{lane}"))
            other = register(m, right, f"other_{lane}")
            products.append(_DSP.product(m, values[-1], other, f"product_{lane}"))
        m.d.comb += [self._write.data.elements[lane].eq(value) for lane, value in enumerate(values)]
        m.d.comb += self._write.data.scale.eq(scale)

        self._sum(m, products, scale, index, take, start, factor, factor_exponent)
        self._scale(m, products, scale, factor_exponent, issue, queue)
        return m

    def _vector(self, m: Module, index: Value, take: Value):
        """Memory of the vector: written a cycle after the transfer, read with a register."""
        shape = self.i.payload.shape()
        m.submodules.vector = vector = memory.Memory(
            shape=shape,
            depth=self._words,
            init=[],
            attrs={"ram_style": "distributed" if self._distributed else "block"},
        )
        self._write = vector.write_port()
        read = vector.read_port()
        m.d.comb += [
            self._write.addr.eq(delay_value(m, index, 1, "write_index")),
            self._write.en.eq(delay(m, take, 1, "written")),
            read.addr.eq(index),
        ]
        return read.data

    def _sum(self, m, products, scale, index, take, start, factor, factor_exponent) -> None:
        """Sum of squares, aligned over the blocks, and the factor that follows from it."""
        size = self._wide_format.block_size
        square_bits = 2 * self._wide_format.element.bits - 1
        block_bits = square_bits + tree_levels(size)
        product_bits = max(block_bits, _EPSILON_BITS) + 1
        beat = index[: tree_levels(self._beats)]
        first, last = take & (beat == 0), take & (beat == self._beats - 1)
        total = AlignedSum(
            product_bits=product_bits,
            mantissa_bits=accumulator_bits(product_bits, self._dim // size + 1, 0),
            exponent_bits=EXPONENT_BITS,
            guard_bits=0,
        )
        m.submodules.total = total

        squares = adder_tree(m, [product[:square_bits] for product in products], "squares")
        block = Signal(block_bits, reset_less=True)
        stage = self._term_stage
        begins = delay(m, first, stage - 1, "block_begins")
        grows = delay(m, take, stage - 1, "block_grows")
        with m.If(grows):
            m.d.sync += block.eq(Mux(begins, 0, block) + squares)

        # Epsilon is the first term; it goes ahead of the first block.
        begin = delay(m, take & (index == 0), stage - 3, "begin")
        constants = self._constants
        bias = SCALE_BIAS + self._wide_format.element.fraction_bits
        unit = delay_value(m, scale, stage - 3, "unit")
        m.d.comb += [
            total.i_valid.eq(begin | delay(m, last, stage - 2, "ended")),
            total.i_first.eq(begin),
            total.i_last.eq(delay(m, take & (index == self._words - 1), stage - 2, "end")),
            total.i_exponent.eq(Mux(begin, constants.epsilon_exponent, (unit << 1) - 2 * bias)),
            total.i_product.eq(
                Mux(delay(m, begin, 2, "epsilon"), constants.epsilon_mantissa, block)
            ),
        ]
        # The sum keeps its value until the next vector, and so do all stages behind it.
        mantissa, exponent = rsqrt_value(
            m,
            total.o_mantissa[:-1],
            total.o_exponent,
            constants.inverse_mantissa,
            constants.inverse_exponent,
            "factor",
            self._rsqrt_bits,
        )
        m.d.comb += [factor.eq(mantissa), factor_exponent.eq(exponent)]
        wait = rsqrt_latency(constants.inverse_mantissa) - 2
        m.d.comb += start.eq(delay(m, total.o_valid, wait, "found"))

    def _scale(self, m, products, scale, factor_exponent, issue, queue) -> None:
        """Second pass: times the weight, and into the queue."""
        bits = self._wide_format.element.bits
        bias = SCALE_BIAS + self._wide_format.element.fraction_bits
        exponent = register(m, scale + factor_exponent - bias, "scaled_exponent")
        results = products
        if self._weights is not None:
            weight = self._weight(m, issue)
            results = []
            for lane, product in enumerate(products):
                scaled = product[VALUE_FRACTION_BITS:][: bits + 1].as_signed()
                results.append(_DSP.product(m, scaled, weight.elements[lane], f"weighted_{lane}"))
            exponent = register(
                m, exponent + weight.scale + (VALUE_FRACTION_BITS - bias), "weighted_exponent"
            )
        m.d.comb += [
            queue.reserve.eq(issue),
            queue.i.valid.eq(delay(m, issue, self._stages, "issued")),
            queue.i.payload.exponent.eq(exponent),
        ]
        for lane, result in enumerate(results):
            m.d.comb += queue.i.payload.mantissas[lane].eq(result)

    def _weight(self, m: Module, issue: Value):
        """The next beat of weights, three cycles after its vector's beat was addressed."""
        shape = self.i.payload.shape()
        rows = _weight_rows(self._weights, self._lanes)  # pyright: ignore[reportArgumentType]
        m.submodules.weights = weights = memory.Memory(
            shape=unsigned(Shape.cast(shape).width),
            depth=len(rows),
            init=rows,
            attrs={"ram_style": "block"},
        )
        read = weights.read_port()
        # One cycle later than the vector's beat, for one register less.
        advance = delay(m, issue, 1, "weight_advance")
        address = Signal(range(max(2, len(rows))))
        with m.If(advance):
            m.d.sync += address.eq(Mux(address == len(rows) - 1, 0, address + 1))
        m.d.comb += read.addr.eq(address)
        return data.View(shape, register(m, read.data, "weight"))


def _block_rams(width: int, depth: int) -> int:
    return -(-width // _BLOCK_RAM_WIDTH) * -(-depth // _BLOCK_RAM_DEPTH)


def _check_weights(
    weights: Sequence[MXTensor], dim: int, format: BlockFormat
) -> tuple[MXTensor, ...]:
    weights = tuple(weights)
    if not weights:
        raise ValueError("Weights of a norm must be at least one vector, or None")
    for weight in weights:
        if not isinstance(weight, MXTensor):
            raise TypeError(f"Weight of a norm must be an MXTensor, not {weight!r}")
        if weight.format != format:
            raise ValueError(
                f"Weight of a norm must have the wide format {format.name}, "
                f"not {weight.format.name}"
            )
        if tuple(weight.elements.shape) != (dim,):
            raise ValueError(
                f"Weight of a norm must have the shape ({dim},), not {tuple(weight.elements.shape)}"
            )
    return weights


def _weight_rows(weights: Sequence[MXTensor], lanes: int) -> list[int]:
    """Beats of all weights, as bits."""
    rows = []
    for weight in weights:
        bits = weight.format.element.bits
        mask = (1 << bits) - 1
        elements = weight.elements.tolist()
        scales = weight.scales.tolist()
        for start in range(0, len(elements), lanes):
            word = scales[start // weight.format.block_size] << bits * lanes
            for lane in range(lanes):
                word |= (elements[start + lane] & mask) << bits * lane
            rows.append(word)
    return rows
