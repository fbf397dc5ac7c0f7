# amaranth: UnusedElaboratable=no
"""The residual stream: a stored wide vector that is loaded once and added to."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat
from mxhw.formats import SCALE_BIAS, SCALE_BITS, BlockFormat

__all__ = ["Residual"]

_GUARD_BITS = 8
_STAGES = 3
_COARSE_BITS = 3
"""Low bits of a shift amount that the second shift stage takes."""


class Residual(wiring.Component):
    """A vector of MX blocks that is loaded and then added to, block by block.

    Contract: a vector on ``i_load`` replaces the stored one. A vector on ``i_add`` replaces it by
    the sum, :func:`mxhw.sw.golden.pointwise.add` bit for bit. Either way the new vector leaves on
    ``o``. One vector is served at a time and begins when the one before has left; the next waits.

    Parameters
    ----------
    dim : int
        Elements of the vector, whole blocks.
    wide_format : BlockFormat
        Integer format of 4 to 24 bits.
    lanes : int
        Elements of a beat.
    adds : int or None
        Additions between two loads: then the streams alone decide the result. Without it a load
        goes before an addition that waits at the same time.

    Members
    -------
    i_load, i_add : ``In(stream.Signature(BlockBeat(wide_format, lanes)))``
    o : ``Out(stream.Signature(BlockBeat(wide_format, lanes)))``

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    A load passes at once. ``latency`` from the last beat of an added block to the first of the sum:
    3 cycles and the quantiser's; ``interval`` from one addition to the next.

    Cost
    ----
    One shifter and one adder a lane (of two operands only the smaller moves), the quantiser, and
    the vector in memory.
    """

    def __init__(
        self, *, dim: int, wide_format: BlockFormat, lanes: int = 4, adds: int | None = None
    ):
        if not isinstance(wide_format, BlockFormat):
            raise TypeError(f"Format of a residual must be a block format, not {wide_format!r}")
        bits = wide_format.element.bits
        if not wide_format.element.is_integer or bits < 4:
            raise ValueError(
                f"Format of a residual must have integer elements of at least 4 bits, "
                f"not {wide_format.name}"
            )
        if not isinstance(dim, int):
            raise TypeError(f"Dimension of a residual must be an integer, not {dim!r}")
        size = wide_format.block_size
        if dim < 1 or dim % size:
            raise ValueError(
                f"Dimension of a residual must be a multiple of the block size ({size}), not {dim}"
            )
        if adds is not None and (not isinstance(adds, int) or adds < 0):
            raise ValueError(f"Number of additions must be a natural number, not {adds!r}")
        beat = BlockBeat(format=wide_format, lanes=lanes)
        self._dim = dim
        self._wide_format = wide_format
        self._lanes = lanes
        self._adds = adds
        self._quantizer = Quantizer(
            mantissa_bits=bits + _GUARD_BITS + 1,
            lanes=lanes,
            formats=wide_format,
            shared_exponent=True,
        )
        super().__init__(
            {
                "i_load": In(stream.Signature(beat)),
                "i_add": In(stream.Signature(beat)),
                "o": Out(stream.Signature(beat)),
            }
        )

    @property
    def dim(self) -> int:
        """Elements of the vector."""
        return self._dim

    @property
    def wide_format(self) -> BlockFormat:
        """Format of the vector."""
        return self._wide_format

    @property
    def lanes(self) -> int:
        """Elements of a beat."""
        return self._lanes

    @property
    def adds(self) -> int | None:
        """Additions between two loads."""
        return self._adds

    @property
    def beats(self) -> int:
        """Beats of the vector."""
        return self._dim // self._lanes

    @property
    def latency(self) -> int:
        """Cycles from the last beat of an added block to the first of its sum."""
        return _STAGES + self._quantizer.latency

    @property
    def interval(self) -> int:
        """Cycles from one addition to the next."""
        block = self._wide_format.block_size // self._lanes
        return block - 1 + self.latency + self.beats + 1

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        cost = self._quantizer.cost()
        stored = (self._lanes * self._wide_format.element.bits + SCALE_BITS) * self.beats
        return {**cost, "memory_bits": cost["memory_bits"] + stored, "block_rams": 0}

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantizer = quantizer = self._quantizer
        beat = self.o.payload.shape()
        m.submodules.vector = vector = memory.Memory(
            shape=unsigned(beat.size), depth=self.beats, init=[]
        )
        write = vector.write_port()
        read = vector.read_port()

        idle = Signal(init=1)
        load_first = Signal()
        loading = Signal()
        adding = Signal()
        busy_loading = Signal()
        busy_adding = Signal()
        m.d.comb += [
            loading.eq(busy_loading | (idle & load_first)),
            adding.eq(busy_adding | (idle & ~load_first)),
        ]

        # In: the stored beat is read a cycle ahead.
        accept = Signal()
        advance = Signal()
        taken = Signal()
        first = Signal(range(max(self.beats, 2)))
        following = Signal.like(first)
        m.d.comb += [
            self.i_add.ready.eq(adding & ~taken & advance),
            accept.eq(self.i_add.valid & self.i_add.ready),
            following.eq(first),
            read.addr.eq(following),
        ]
        with m.If(accept):
            last_in = first == self.beats - 1
            m.d.comb += following.eq(Mux(last_in, 0, first + 1))
            m.d.sync += [first.eq(following), taken.eq(last_in)]
        stored = data.View(beat, read.data)
        self._align(m, self.i_add.payload, stored, accept, advance)

        # Out: what leaves is what is stored.
        put = Signal()
        place = Signal(range(max(self.beats, 2)))
        last = Signal()
        settle = Signal()
        m.d.comb += [
            self.o.valid.eq(Mux(loading, self.i_load.valid, quantizer.o.valid)),
            self.o.payload.eq(
                Mux(loading, self.i_load.payload.as_value(), quantizer.o.payload.as_value())
            ),
            self.i_load.ready.eq(loading & self.o.ready),
            quantizer.o.ready.eq(~loading & self.o.ready),
            put.eq(self.o.valid & self.o.ready),
            last.eq(put & (place == self.beats - 1)),
            write.addr.eq(place),
            write.data.eq(self.o.payload),
            write.en.eq(put),
        ]
        with m.If(put):
            m.d.sync += place.eq(Mux(last, 0, place + 1))
        with m.If(idle):
            with m.If(load_first & self.i_load.valid):
                m.d.sync += [idle.eq(0), busy_loading.eq(1)]
            with m.If(accept):
                m.d.sync += [idle.eq(0), busy_adding.eq(1)]
        with m.If(last):
            m.d.sync += [busy_loading.eq(0), busy_adding.eq(0), idle.eq(0), settle.eq(1)]
        with m.If(settle):
            # A cycle in which the first beat, perhaps just written, is read.
            m.d.sync += [settle.eq(0), idle.eq(1), taken.eq(0)]

        if self._adds is None:
            m.d.comb += load_first.eq(self.i_load.valid)
        else:
            left = Signal(range(self._adds + 1))
            m.d.comb += load_first.eq(left == 0)
            with m.If(last):
                m.d.sync += left.eq(Mux(left == 0, self._adds, left - 1))
        return m

    def _align(self, m: Module, new, stored, accept: Signal, advance: Signal) -> None:
        """Three stages to the quantiser: exponents, coarse shift, fine shift and sum."""
        bits = self._wide_format.element.bits
        target = self._quantizer.i
        full = Signal(_STAGES)
        m.d.comb += [
            advance.eq(~full[-1] | target.ready),
            target.valid.eq(full[-1]),
        ]

        def register(value: Value, name: str) -> Signal:
            result = Signal(value.shape(), name=name, reset_less=True)
            with m.If(advance):
                m.d.sync += result.eq(value)
            return result

        with m.If(advance):
            m.d.sync += full.eq(Cat(accept, full))
        lanes = range(self._lanes)
        old_values = [register(stored.elements[lane], f"old_{lane}") for lane in lanes]
        new_values = [register(new.elements[lane], f"new_{lane}") for lane in lanes]
        old_scale = register(stored.scale, "old_scale")
        new_scale = register(new.scale, "new_scale")
        rise = register(new.scale - stored.scale, "rise")
        fall = register(stored.scale - new.scale, "fall")

        # Only the operand of the smaller exponent moves. The sum has a fixed number of bits below
        # the other's unit, so that a shift by all the operand's bits leaves its sign.
        shift_bits = (bits + _GUARD_BITS).bit_length()
        distance = Mux(rise[-1], fall[:SCALE_BITS], rise[:SCALE_BITS])
        far = distance[shift_bits:].any()
        distance = distance[:shift_bits] | far.replicate(shift_bits)
        fine = register(distance[:_COARSE_BITS], "fine")
        scale = register(Mux(rise[-1], old_scale, new_scale), "scale")
        sums = []
        for lane in lanes:
            fixed = register(Mux(rise[-1], old_values[lane], new_values[lane]), f"fixed_{lane}")
            moving = Mux(rise[-1], new_values[lane], old_values[lane]).as_signed()
            raised = Cat(Const(0, _GUARD_BITS), moving).as_signed()
            coarse = register(
                (raised >> Cat(Const(0, _COARSE_BITS), distance[_COARSE_BITS:])), f"moved_{lane}"
            )
            total = Cat(Const(0, _GUARD_BITS), fixed).as_signed() + (coarse >> fine)
            sums.append(register(total, f"sum_{lane}"))
        scale = register(scale, "sum_scale")
        below = SCALE_BIAS + self._wide_format.element.fraction_bits + _GUARD_BITS
        m.d.comb += target.payload.exponent.eq(scale - below)
        for lane in lanes:
            m.d.comb += target.payload.mantissas[lane].eq(sums[lane])
