# amaranth: UnusedElaboratable=no
"""Attention output: the weighted sums of a head, divided by the softmax total and requantised."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat
from mxhw.formats import SCALE_BIAS, BlockFormat
from mxhw.lut.reciprocal import Reciprocal

__all__ = ["AttentionOutput", "join_beats", "split_beats", "total_bits"]

_FACTOR_BITS = 16
_TOTAL_FRACTION_BITS = 31
_STAGES = 2


def total_bits(context: int) -> int:
    """Width of the sum of up to ``context`` softmax numerators."""
    return _TOTAL_FRACTION_BITS + 1 + ceil_log2(context)


def split_beats(m: Module, source, target, *, payload=None) -> Signal:
    """Offer each beat of ``source`` as several narrower ones; return the last one's signal.

    ``target`` is a stream interface of narrower beats with the members of :class:`BlockBeat`.
    """
    wide, narrow = source.payload.elements, target.payload.elements
    lanes = len(narrow)
    parts = len(wide) // lanes
    part = Signal(range(max(parts, 2)), name="split_part")
    last = Signal(name="split_last")
    m.d.comb += [
        last.eq(part == parts - 1),
        target.valid.eq(source.valid),
        target.payload.scale.eq(source.payload.scale),
        source.ready.eq(target.ready & last),
    ]
    with m.Switch(part):
        for number in range(parts):
            with m.Case(number):
                for lane in range(lanes):
                    m.d.comb += narrow[lane].eq(wide[number * lanes + lane])
    with m.If(source.valid & target.ready):
        m.d.sync += part.eq(Mux(last, 0, part + 1))
    return last


def join_beats(m: Module, source, target) -> None:
    """Offer successive beats of ``source`` as one wider beat of ``target``, without delay.

    All but the last part wait in a register.
    """
    narrow, wide = source.payload.elements, target.payload.elements
    lanes = len(narrow)
    parts = len(wide) // lanes
    part = Signal(range(max(parts, 2)), name="join_part")
    last = Signal(name="join_last")
    m.d.comb += [
        last.eq(part == parts - 1),
        target.valid.eq(source.valid & last),
        source.ready.eq(~last | target.ready),
        target.payload.scale.eq(source.payload.scale),
    ]
    with m.If(source.valid & source.ready):
        m.d.sync += part.eq(Mux(last, 0, part + 1))
    for lane in range(lanes):
        m.d.comb += wide[(parts - 1) * lanes + lane].eq(narrow[lane])
        for number in range(parts - 1):
            held = Signal(narrow[lane].shape(), name=f"held_{number}_{lane}", reset_less=True)
            m.d.comb += wide[number * lanes + lane].eq(held)
            with m.If(source.valid & (part == number)):
                m.d.sync += held.eq(narrow[lane])


class AttentionOutput(wiring.Component):
    """Divide the probability-weighted sums of a head by the softmax total and requantise.

    Contract: the second half of :func:`mxhw.sw.golden.attention.values`, bit for bit: each element
    times the table's reciprocal of the total, quantised block by block.

    Parameters
    ----------
    wide_format : BlockFormat
        Integer format of the sums, 4 to 17 bits.
    format : BlockFormat
        Integer format of the output, with the same block size.
    head_size : int
        Elements that share a total: whole blocks, or an equal part of one in whole beats.
    context : int
        Largest number of positions; gives the width of the total.
    lanes : int
        Elements of a beat.
    multipliers : int
        Products a cycle, a divisor of ``lanes``.
    reciprocal_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(BlockBeat(wide_format, lanes)))``
        The sums of one head after another.
    i_total : ``In(stream.Signature(unsigned(total_bits(context))))``
        One total a head, not 0, with 31 fraction bits; it may come long before the sums.
    o : ``Out(stream.Signature(BlockBeat(format, lanes)))``

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` from a block's last beat to its first output: 2 cycles, the quantiser's, and the
    gathering of a beat. ``reciprocal_latency`` is what a total must come earlier than the first
    sum for the sums not to wait. ``interval`` ``block_size / multipliers`` cycles a block.

    Cost
    ----
    ``multipliers`` DSP slices for the products and one for the reciprocal.
    """

    def __init__(
        self,
        *,
        wide_format: BlockFormat,
        format: BlockFormat,
        head_size: int,
        context: int,
        lanes: int = 4,
        multipliers: int = 2,
        reciprocal_bits: int = 5,
    ):
        for one in (wide_format, format):
            if not isinstance(one, BlockFormat):
                raise TypeError(
                    f"Format of an attention output must be a block format, not {one!r}"
                )
            if not one.element.is_integer:
                raise ValueError(
                    f"Format of an attention output must have integer elements, not {one.name}"
                )
        if not 4 <= wide_format.element.bits <= 17:
            raise ValueError(
                f"Sums of an attention output must have 4 to 17 bits, "
                f"not {wide_format.element.bits}"
            )
        if format.block_size != wide_format.block_size:
            raise ValueError(
                f"Formats of an attention output must have one block size, "
                f"not {wide_format.block_size} and {format.block_size}"
            )
        size = format.block_size
        if (
            not isinstance(head_size, int)
            or head_size < 1
            or (head_size % size and size % head_size)
        ):
            raise ValueError(
                f"Head size of an attention output must be a multiple or an equal part of the "
                f"block size ({size}), not {head_size!r}"
            )
        if not isinstance(context, int) or context < 1:
            raise ValueError(
                f"Context of an attention output must be a positive integer, not {context!r}"
            )
        i_shape = BlockBeat(format=wide_format, lanes=lanes)
        if head_size % lanes:
            raise ValueError(
                f"Lanes of an attention output must divide the head size ({head_size}), not {lanes}"
            )
        if not isinstance(multipliers, int) or multipliers < 1 or lanes % multipliers:
            raise ValueError(
                f"Multipliers of an attention output must divide the lanes ({lanes}), "
                f"not {multipliers!r}"
            )
        self._wide_format = wide_format
        self._format = format
        self._head_size = head_size
        self._context = context
        self._lanes = lanes
        self._multipliers = multipliers
        self._reciprocal = Reciprocal(input_bits=total_bits(context), index_bits=reciprocal_bits)
        # The factor is at most 1 in 15 fraction bits, so the product fits without its top bit.
        self._quantizer = Quantizer(
            mantissa_bits=wide_format.element.bits + _FACTOR_BITS - 1,
            lanes=multipliers,
            formats=format,
            # Each head has an exponent of its total.
            shared_exponent=head_size % size == 0,
        )
        super().__init__(
            {
                "i": In(stream.Signature(i_shape)),
                "i_total": In(stream.Signature(unsigned(total_bits(context)))),
                "o": Out(stream.Signature(BlockBeat(format=format, lanes=lanes))),
            }
        )

    @property
    def wide_format(self) -> BlockFormat:
        """Format of the sums."""
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
    def multipliers(self) -> int:
        """Products a cycle."""
        return self._multipliers

    @property
    def latency(self) -> int:
        """Cycles from a block's last beat to the first of its output."""
        # The last beat is taken with the last of its parts; a first beat waits for all of its own.
        return _STAGES + self._quantizer.latency + self._lanes // self._multipliers - 1

    @property
    def reciprocal_latency(self) -> int:
        """Cycles from a total to the first product that it allows."""
        return self._reciprocal.latency

    @property
    def interval(self) -> int:
        """Cycles from one block to the next."""
        return self._format.block_size // self._multipliers

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs."""
        parts = (self._quantizer.cost(), self._reciprocal.cost())
        return {
            "multipliers": self._multipliers + sum(part["multipliers"] for part in parts),
            "memory_bits": sum(part["memory_bits"] for part in parts),
            "block_rams": 0,
        }

    def elaborate(self, platform):
        m = Module()
        m.submodules.reciprocal = reciprocal = self._reciprocal
        m.submodules.quantizer = quantizer = self._quantizer
        wiring.connect(m, wiring.flipped(self.i_total), reciprocal.i)
        factor = reciprocal.o

        narrow = stream.Signature(
            BlockBeat(format=self._wide_format, lanes=self._multipliers)
        ).create(path=("narrow",))
        split_beats(m, self.i, narrow)

        advance = Signal()
        full = Signal(_STAGES)
        accept = Signal()
        left = Signal(range(max(self._head_size // self._multipliers, 2)))
        end = left == self._head_size // self._multipliers - 1
        m.d.comb += [
            advance.eq(~full[-1] | quantizer.i.ready),
            narrow.ready.eq(advance & factor.valid),
            accept.eq(narrow.valid & narrow.ready),
            factor.ready.eq(accept & end),
            quantizer.i.valid.eq(full[-1]),
        ]
        with m.If(accept):
            m.d.sync += left.eq(Mux(end, 0, left + 1))

        product_in = Signal(narrow.payload.elements.shape(), reset_less=True)
        factor_in = Signal(unsigned(_FACTOR_BITS), reset_less=True)
        shared = quantizer.shared_exponent
        payload = quantizer.i.payload
        targets = [payload.exponent] if shared else [*payload.exponents]
        exponent_in = Signal(targets[0].shape(), reset_less=True)
        fraction = self._wide_format.element.fraction_bits
        # Both the total and the exponent of its reciprocal count from the total's last bit.
        offset = _TOTAL_FRACTION_BITS - SCALE_BIAS - fraction
        with m.If(advance):
            m.d.sync += [
                full.eq(Cat(accept, full)),
                product_in.eq(narrow.payload.elements),
                factor_in.eq(factor.payload.mantissa),
                exponent_in.eq(narrow.payload.scale + factor.payload.exponent + offset),
                *[target.eq(exponent_in) for target in targets],
            ]
            for lane in range(self._multipliers):
                m.d.sync += quantizer.i.payload.mantissas[lane].eq(product_in[lane] * factor_in)
        join_beats(m, quantizer.o, self.o)
        return m
