"""Dot products of vectors of MX blocks: products, their sum, and the sum across blocks, in one."""

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.accumulate import AlignedSum, accumulator_bits, check_accumulator, sum_reach
from mxhw.arith.dot import queue_depth, unit_exponent
from mxhw.arith.pipeline import (
    PAIRS_A_CHAIN,
    OutputQueue,
    add_constant,
    delay,
    delay_value,
    register,
    wire,
)
from mxhw.arith.products import choose_products
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat
from mxhw.formats import SCALE_BITS, SCALE_NAN, BlockFormat

__all__ = ["DotProduct", "check_formats"]

_LEAD = 2
"""Cycles that :class:`AlignedSum` wants an exponent before its term."""


class DotProduct(wiring.Component):
    """Dot product of two vectors of blocks, a pair of blocks a cycle.

    Contract (:func:`mxhw.sw.golden.dot.dot_product`): the exact integer dot product of each pair of
    blocks, at the sum of both scale bytes, accumulated over the blocks in order, aligned to the
    largest exponent so far. It cannot overflow. A sum and its exponent are exact but for what
    alignment cuts, ``guard_bits`` below the unit of the largest exponent, by flooring.

    Without ``full_range`` the most negative code of an integer element must not come: no quantiser
    of ours produces it, and it would cost a bit in every adder.

    Without ``nan`` the scale byte 255 and codes that mean NaN or infinity must not come; they
    count as the numbers that their fields spell. With it a flag stands beside the sum: one of its
    blocks had such a byte or code.

    Parameters
    ----------
    x_format, w_format : BlockFormat
        Formats of one block size.
    max_terms : int
        Largest number of blocks of a vector.
    guard_bits : int
        Bits kept below the unit of the largest exponent, at least.
    align_bits : int
        0 to 4; more make the loop of the accumulator shorter (:class:`Accumulator`).
    multiplier : strategy, optional
        What makes the products (:mod:`mxhw.arith.multiply`). By default hardware multipliers,
        and lookup tables for MXFP4.
    pairs_a_chain : int
        Sums in one adder of the tree: more are smaller and slower.
    full_range : bool
        Admit the most negative code of integer elements.
    nan : bool
        Watch for NaN.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``x`` and ``w``, a whole block of each as :class:`BlockBeat`; ``first`` and ``last``: of a
        vector.
    o : ``Out(stream.Signature(StructLayout))``
        ``mantissa`` (signed, :attr:`mantissa_bits`) and ``exponent`` (signed, 12 bits); with
        ``nan`` also ``nan``.

    Raises
    ------
    TypeError, ValueError
        If a format or parameter is not supported, or the block sizes differ.

    Timing: :attr:`latency` from a vector's last pair, interval 1 a pair.

    Cost: a multiplier a lane, or none with lookup tables; no block memory.
    """

    def __init__(
        self,
        *,
        x_format: BlockFormat,
        w_format: BlockFormat,
        max_terms: int,
        guard_bits: int = 8,
        align_bits: int = 0,
        multiplier=None,
        pairs_a_chain: int = PAIRS_A_CHAIN,
        full_range: bool = False,
        nan: bool = False,
    ):
        check_formats(x_format, w_format)
        check_accumulator(2, max_terms, guard_bits, align_bits)
        self._products = choose_products(x_format, w_format, multiplier, pairs_a_chain, full_range)
        self._max_terms = max_terms
        self._guard_bits = guard_bits
        self._align_bits = align_bits
        self._nan = bool(nan)
        size = x_format.block_size
        output = {"mantissa": signed(self.mantissa_bits), "exponent": signed(EXPONENT_BITS)}
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "x": BlockBeat(format=x_format, lanes=size),
                                "w": BlockBeat(format=w_format, lanes=size),
                                "first": 1,
                                "last": 1,
                            }
                        )
                    )
                ),
                "o": Out(stream.Signature(data.StructLayout(output | ({"nan": 1} if nan else {})))),
            }
        )

    @property
    def x_format(self) -> BlockFormat:
        """Format of the first factor."""
        return self._products.x_format

    @property
    def w_format(self) -> BlockFormat:
        """Format of the second factor."""
        return self._products.w_format

    @property
    def max_terms(self) -> int:
        """Largest number of blocks of a vector."""
        return self._max_terms

    @property
    def guard_bits(self) -> int:
        """Bits kept below the unit of the largest exponent."""
        return self._guard_bits

    @property
    def align_bits(self) -> int:
        """Low bits of exponents that the sum's exponent does not have."""
        return self._align_bits

    @property
    def mantissa_bits(self) -> int:
        """Width of the sum."""
        bits = self._products.product_bits
        return accumulator_bits(bits, self._max_terms, self._guard_bits, self._align_bits)

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a vector's last pair to that of its sum."""
        return self._products.latency - _LEAD + AlignedSum.latency + 1

    @property
    def interval(self) -> int:
        """Cycles from one pair to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        width = self.mantissa_bits + EXPONENT_BITS + self._nan
        return {
            "multipliers": self._products.multipliers,
            "memory_bits": width * queue_depth(self.latency - 1),
        }

    def elaborate(self, platform):
        m = Module()
        products = self._products
        limit = products.max_product
        m.submodules.sum = total = AlignedSum(
            product_bits=products.product_bits,
            mantissa_bits=self.mantissa_bits,
            exponent_bits=SCALE_BITS + 2,
            guard_bits=self._guard_bits,
            align_bits=self._align_bits,
            max_product=limit,
            reach=sum_reach(limit, self._max_terms, self._guard_bits, self._align_bits),
        )
        # Low bits of the exponent are constant; the queue holds the others.
        unit = unit_exponent(self.x_format, self.w_format) - self._guard_bits
        align = 1 << self._align_bits
        high = range(unit // align, unit // align + (2 * SCALE_NAN) // align + 1)
        members = {"mantissa": signed(self.mantissa_bits), "exponent": high}
        m.submodules.out = out = OutputQueue(
            shape=data.StructLayout(members | ({"nan": 1} if self._nan else {})),
            depth=queue_depth(self.latency - 1),
        )
        stored = out.o.payload
        m.d.comb += [
            self.o.valid.eq(out.o.valid),
            out.o.ready.eq(self.o.ready),
            self.o.payload.mantissa.eq(stored.mantissa),
            self.o.payload.exponent.eq(
                Cat(Const(unit % align, self._align_bits), stored.exponent).as_signed()
            ),
        ]
        if self._nan:
            m.d.comb += self.o.payload.nan.eq(stored.nan)
        payload = self.i.payload
        accept = wire(m, self.i.valid & out.free, "accept")
        m.d.comb += [
            self.i.ready.eq(out.free),
            out.reserve.eq(accept & payload.last),
        ]
        x, w = payload.x.elements, payload.w.elements
        lanes = range(products.size)
        product = products.sum(m, [x[lane] for lane in lanes], [w[lane] for lane in lanes])
        # The scales are added at once; their sum waits for the product.
        wait = products.latency - _LEAD
        scale = register(m, payload.x.scale + payload.w.scale, "scale")
        late = delay_value(m, Cat(payload.first, payload.last), wait, "ends")
        m.d.comb += [
            total.i_valid.eq(delay(m, accept, wait, "accept")),
            total.i_first.eq(late[0]),
            total.i_last.eq(late[1]),
            total.i_exponent.eq(delay_value(m, scale, wait - 1, "scale")),
            total.i_product.eq(product),
            out.i.valid.eq(total.o_valid),
            out.i.payload.mantissa.eq(total.o_mantissa),
            out.i.payload.exponent.eq(
                add_constant(
                    total.o_exponent[self._align_bits : SCALE_BITS + 1],
                    unit // align,
                    len(out.i.payload.exponent),
                )
            ),
        ]
        if self._nan:
            watch = register(m, self._is_nan(m), "nan_1")
            watch = delay_value(m, watch, self.latency - 3, "nan")
            first = delay_value(m, payload.first, self.latency - 2, "nan_first")
            valid = delay(m, accept, self.latency - 2, "nan_valid")
            seen = Signal()
            with m.If(valid):
                m.d.sync += seen.eq(watch | (seen & ~first))
            m.d.comb += out.i.payload.nan.eq(seen)
        return m

    def _is_nan(self, m: Module) -> Value:
        """Whether the pair of blocks at the input has a NaN scale or a special code."""
        flags = []
        for name, block, format in (
            ("x", self.i.payload.x, self.x_format),
            ("w", self.i.payload.w, self.w_format),
        ):
            element = format.element
            flags.append(block.scale.all())
            if not element.has_nan:
                continue
            special = (1 << (element.bits - 1)) - (
                1 if not element.has_infinity else 1 << element.mantissa_bits
            )
            bits = 0 if not element.has_infinity else element.mantissa_bits
            for lane in range(format.block_size):
                code = block.elements[lane][bits : element.bits - 1]
                flags.append(wire(m, code == special >> bits, f"nan_{name}_{lane}"))
        return Cat(flags).any()


def check_formats(x_format: BlockFormat, w_format: BlockFormat) -> None:
    """Check that two formats can be multiplied: block formats of one block size.

    Raises
    ------
    TypeError, ValueError
        If they cannot.
    """
    for format in (x_format, w_format):
        if not isinstance(format, BlockFormat):
            raise TypeError(f"Format of a dot product must be a BlockFormat, not {format!r}")
    if x_format.block_size != w_format.block_size:
        raise ValueError(
            f"Formats of a dot product must have one block size, not {x_format.block_size} and "
            f"{w_format.block_size}"
        )
