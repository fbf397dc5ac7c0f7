# amaranth: UnusedElaboratable=no
"""Rotary position embedding of the query and key heads of a layer."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat
from mxhw.dataflow.attention_output import join_beats, split_beats
from mxhw.dataflow.key_cache import column_cost
from mxhw.formats import SCALE_BIAS, BlockFormat
from mxhw.sw.golden.rope import ROPE_FRACTION_BITS, rope_tables

__all__ = ["Rope"]

_ANGLE_BITS = ROPE_FRACTION_BITS + 2
_PAIR = 2
_STAGES = 4
"""Table read, fabric register, products, sums."""


class Rope(wiring.Component):
    """Rotate the pairs of every head by the angles of the position, and requantise.

    Contract: :func:`mxhw.sw.golden.rope.rope`, bit for bit. For each position, ``query_heads``
    heads come and then ``key_heads`` heads; they leave on ports of their own, in order.

    Parameters
    ----------
    context : int
        Number of positions.
    head_size : int
        Elements of a head, whole blocks.
    theta : float
        Base of the angles.
    rotary : int, optional
        Head size of the model, by default ``head_size``.
    slots : int
        Equal parts of a head, each with a head of the model: they have the same angles.
    query_heads, key_heads : int
        Heads of a position.
    wide_format, format : BlockFormat
        Integer formats of the input (at most 18 bits) and the outputs, with one block size.
    lanes : int
        Elements of a beat, even.

    Members
    -------
    i_position : ``In(stream.Signature(unsigned(...)))``
        The position, once for each group of heads, which waits for it.
    i : ``In(stream.Signature(BlockBeat(wide_format, lanes)))``
    o_query, o_key : ``Out(stream.Signature(BlockBeat(format, lanes)))``

    Raises
    ------
    TypeError
        If a format is no block format.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` from a block's last beat to its first output; ``interval`` ``block_size / 2``
    cycles a block, one pair a cycle.

    Cost
    ----
    4 DSP slices, and a table of 32 bits for each pair and position.
    """

    def __init__(
        self,
        *,
        context: int,
        head_size: int,
        theta: float,
        query_heads: int,
        key_heads: int,
        wide_format: BlockFormat,
        format: BlockFormat,
        lanes: int = 4,
        rotary: int | None = None,
        slots: int = 1,
    ):
        for one in (wide_format, format):
            if not isinstance(one, BlockFormat):
                raise TypeError(f"Format of a rotation must be a block format, not {one!r}")
            if not one.element.is_integer:
                raise ValueError(f"Format of a rotation must have integer elements, not {one.name}")
        if not 4 <= wide_format.element.bits <= 18:
            raise ValueError(
                f"Input of a rotation must have 4 to 18 bits, not {wide_format.element.bits}"
            )
        if format.block_size != wide_format.block_size:
            raise ValueError(
                f"Formats of a rotation must have one block size, not {wide_format.block_size} "
                f"and {format.block_size}"
            )
        for name, count in (
            ("Context", context),
            ("Query heads", query_heads),
            ("Key heads", key_heads),
        ):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} of a rotation must be a positive integer, not {count!r}")
        if not isinstance(head_size, int) or head_size < 1 or head_size % format.block_size:
            raise ValueError(
                f"Head size of a rotation must be a multiple of the block size "
                f"({format.block_size}), not {head_size!r}"
            )
        if rotary is not None and (not isinstance(rotary, int) or rotary < 2 or rotary % _PAIR):
            raise ValueError(f"Rotary size must be a positive even number, not {rotary!r}")
        if not isinstance(slots, int) or slots < 1 or head_size % (_PAIR * slots):
            raise ValueError(
                f"Slots of a rotation must divide the pairs of a head ({head_size // _PAIR}), "
                f"not {slots!r}"
            )
        if not theta > 0:
            raise ValueError(f"Base of a rotation must be positive, not {theta!r}")
        if not isinstance(lanes, int) or lanes < _PAIR or lanes % _PAIR:
            raise ValueError(f"Lanes of a rotation must be whole pairs, not {lanes!r}")
        i_shape = BlockBeat(format=wide_format, lanes=lanes)
        o_shape = BlockBeat(format=format, lanes=lanes)
        self._context = context
        self._head_size = head_size
        self._theta = theta
        self._rotary = rotary
        self._slots = slots
        self._query_heads = query_heads
        self._key_heads = key_heads
        self._wide_format = wide_format
        self._format = format
        self._lanes = lanes
        # A rotation lengthens no pair, so that a sum needs one bit less than its terms give.
        self._quantizer = Quantizer(
            mantissa_bits=wide_format.element.bits + ROPE_FRACTION_BITS + 1,
            lanes=_PAIR,
            formats=format,
            shared_exponent=True,
        )
        super().__init__(
            {
                "i_position": In(stream.Signature(unsigned(max(1, ceil_log2(context))))),
                "i": In(stream.Signature(i_shape)),
                "o_query": Out(stream.Signature(o_shape)),
                "o_key": Out(stream.Signature(o_shape)),
            }
        )

    @property
    def context(self) -> int:
        """Number of positions."""
        return self._context

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self._head_size

    @property
    def query_heads(self) -> int:
        """Query heads of a position."""
        return self._query_heads

    @property
    def key_heads(self) -> int:
        """Key heads of a position."""
        return self._key_heads

    @property
    def lanes(self) -> int:
        """Elements of a beat."""
        return self._lanes

    @property
    def latency(self) -> int:
        """Cycles from a block's last beat to the first of its output."""
        return _STAGES + self._quantizer.latency + self._lanes // _PAIR - 1

    @property
    def interval(self) -> int:
        """Cycles from one block to the next."""
        return self._format.block_size // _PAIR

    @property
    def _pairs(self) -> int:
        """Pairs with angles of their own."""
        return self._head_size // self._slots // _PAIR

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs."""
        depth = self._context * self._pairs
        table = column_cost(depth=depth, rows=1, widths=[2 * _ANGLE_BITS])
        return {
            "multipliers": 4,
            "memory_bits": self._quantizer.cost()["memory_bits"],
            "block_rams": table["block_rams"],
        }

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantizer = quantizer = self._quantizer
        narrow = stream.Signature(BlockBeat(format=self._wide_format, lanes=_PAIR)).create(
            path=("narrow",)
        )
        split_beats(m, self.i, narrow)

        # Which pair of which head: the address of its angle is kept by counting.
        pairs = self._pairs
        heads = (self._query_heads + self._key_heads) * self._slots
        depth = self._context * pairs
        busy = Signal()
        head = Signal(range(max(heads, 2)))
        pair = Signal(range(max(pairs, 2)))
        start = Signal(range(depth))
        accept = Signal()
        advance = Signal()
        full = Signal(_STAGES)
        m.d.comb += [
            self.i_position.ready.eq(~busy),
            advance.eq(~full[-1] | quantizer.i.ready),
            narrow.ready.eq(busy & advance),
            accept.eq(narrow.valid & narrow.ready),
            quantizer.i.valid.eq(full[-1]),
        ]
        with m.If(~busy):
            m.d.sync += [
                busy.eq(self.i_position.valid),
                start.eq(self.i_position.payload * pairs),
            ]
        with m.If(accept):
            m.d.sync += pair.eq(pair + 1)
            with m.If(pair == pairs - 1):
                m.d.sync += [pair.eq(0), head.eq(head + 1)]
                with m.If(head == heads - 1):
                    m.d.sync += [head.eq(0), busy.eq(0)]

        cosine, sine = rope_tables(
            self._context, self._head_size, self._theta, self._rotary, self._slots
        )
        mask = (1 << _ANGLE_BITS) - 1
        m.submodules.angles = angles = memory.Memory(
            shape=unsigned(2 * _ANGLE_BITS),
            depth=depth,
            init=[
                (c & mask) | (s & mask) << _ANGLE_BITS
                for c, s in zip(cosine.flatten().tolist(), sine.flatten().tolist(), strict=True)
            ],
            attrs={"ram_style": "block"},
        )
        read = angles.read_port()
        m.d.comb += [read.addr.eq(start + pair), read.en.eq(advance)]

        shape = signed(self._wide_format.element.bits)
        values = [
            [Signal(shape, name=f"value_{stage}_{lane}", reset_less=True) for lane in range(_PAIR)]
            for stage in range(2)
        ]
        c = Signal(signed(_ANGLE_BITS), reset_less=True)
        s = Signal(signed(_ANGLE_BITS), reset_less=True)
        products = [
            [
                Signal(signed(shape.width + _ANGLE_BITS), name=f"product_{x}_{y}", reset_less=True)
                for y in range(2)
            ]
            for x in range(_PAIR)
        ]
        mantissas = quantizer.i.payload.mantissas
        exponent = narrow.payload.scale - (
            SCALE_BIAS + self._wide_format.element.fraction_bits + ROPE_FRACTION_BITS
        )
        with m.If(advance):
            m.d.sync += full.eq(Cat(accept, full))
            for stage in range(_STAGES):
                target = (
                    quantizer.i.payload.exponent
                    if stage == _STAGES - 1
                    else Signal(exponent.shape(), name=f"exponent_{stage}", reset_less=True)
                )
                m.d.sync += target.eq(exponent)
                exponent = target
            m.d.sync += Cat(c, s).eq(read.data)
            for lane in range(_PAIR):
                m.d.sync += [
                    values[0][lane].eq(narrow.payload.elements[lane]),
                    values[1][lane].eq(values[0][lane]),
                    products[lane][0].eq(values[1][lane] * c),
                    products[lane][1].eq(values[1][lane] * s),
                ]
            m.d.sync += [
                mantissas[0].eq(products[0][0] - products[1][1]),
                mantissas[1].eq(products[0][1] + products[1][0]),
            ]
        self._route(m, quantizer)
        return m

    def _route(self, m: Module, quantizer: Quantizer) -> None:
        """Gather beats, and give the first heads of a position to the queries' port."""
        joined = self.o_query.signature.flip().create(path=("joined",))
        join_beats(m, quantizer.o, joined)
        beats = self._head_size // self._lanes
        query_beats = self._query_heads * beats
        all_beats = query_beats + self._key_heads * beats
        beat = Signal(range(all_beats))
        is_key = Signal()
        m.d.comb += [
            self.o_query.payload.eq(joined.payload),
            self.o_key.payload.eq(joined.payload),
            self.o_query.valid.eq(joined.valid & ~is_key),
            self.o_key.valid.eq(joined.valid & is_key),
            joined.ready.eq(Mux(is_key, self.o_key.ready, self.o_query.ready)),
        ]
        with m.If(joined.valid & joined.ready):
            m.d.sync += beat.eq(beat + 1)
            with m.If(beat == query_beats - 1):
                m.d.sync += is_key.eq(1)
            with m.If(beat == all_beats - 1):
                m.d.sync += [is_key.eq(0), beat.eq(0)]
