"""Sums of terms with different exponents, aligned to the running maximum exponent."""

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.pipeline import OutputQueue, delay, delay_value, negate_if, register, wire
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.arith.shift import limit_shift, select_shift, shift_left, shift_right

__all__ = [
    "Accumulator",
    "AlignedSum",
    "accumulator_bits",
    "check_accumulator",
    "sum_reach",
]

_MAX_ALIGN_BITS = 4
_ONE_HOT_ALIGN_BITS = 3
"""From so many on, the sum's shift has few enough distances for one choice among all."""


def accumulator_bits(
    product_bits: int, max_terms: int, guard_bits: int, align_bits: int = 0
) -> int:
    """Width of an accumulator that cannot overflow."""
    return product_bits + guard_bits + (1 << align_bits) - 1 + (max_terms - 1).bit_length()


def sum_reach(max_product: int, max_terms: int, guard_bits: int, align_bits: int = 0) -> int:
    """Distance from which nothing but the sign is left of a sum that another term is added to."""
    largest = max_product * max(max_terms - 1, 1) << (guard_bits + (1 << align_bits) - 1)
    return largest.bit_length()


class AlignedSum(Elaboratable):
    """Align and add, a pipeline that never stalls.

    The exponent of a term comes two cycles before the term itself, since the shift amounts follow
    from exponents alone; a dot product's tree hides these cycles.

    The sum shifts and adds in one cycle, which bounds the clock. With ``align_bits`` the sum's
    exponent is a multiple of ``2**align_bits``, so that this loop has fewer shift steps; the terms'
    other steps stand before it, and the sum is ``2**align_bits - 1`` bits wider.

    Parameters
    ----------
    product_bits, mantissa_bits, exponent_bits, guard_bits, align_bits : int
        Widths, and those of the contract (:class:`Accumulator`).
    max_product : int, optional
        Largest magnitude of a term.
    reach : int, optional
        Largest distance that a sum need be moved (:func:`sum_reach`).

    Members
    -------
    i_valid, i_first, i_last : Signal
        A term's exponent is present; it is its sum's first term; its last.
    i_exponent : Signal
        Signed exponent of the term.
    i_product : Signal
        The term, two cycles after its exponent.
    o_valid : Signal
        A sum is complete: ``latency`` cycles after its last term's exponent.
    o_mantissa, o_exponent : Signal
        The sum, and the largest exponent of its terms (a multiple of ``2**align_bits``); the
        mantissa's unit is ``guard_bits`` below.
    """

    latency = 5

    def __init__(
        self,
        *,
        product_bits: int,
        mantissa_bits: int,
        exponent_bits: int,
        guard_bits: int,
        align_bits: int = 0,
        max_product: int | None = None,
        reach: int | None = None,
    ):
        self._guard_bits = guard_bits
        self._align_bits = align_bits
        self._max_product = max_product or 1 << (product_bits - 1)
        self._reach = mantissa_bits - 1 if reach is None else reach
        self.i_valid = Signal()
        self.i_first = Signal()
        self.i_last = Signal()
        self.i_exponent = Signal(signed(exponent_bits))
        self.i_product = Signal(signed(product_bits))
        self.o_valid = Signal()
        self.o_mantissa = Signal(signed(mantissa_bits))
        self.o_exponent = Signal(signed(exponent_bits))

    def elaborate(self, platform):
        m = Module()
        align = self._align_bits
        unit = 1 << align
        # First cycle: the running maximum of the exponents, a loop of one comparison.
        coarse = self.i_exponent[align:].as_signed()
        maximum = Signal(signed(len(coarse)), reset_less=True)
        distance = wire(m, coarse - maximum, "distance")
        with m.If(self.i_valid & (self.i_first | ~distance[-1])):
            m.d.sync += maximum.eq(coarse)
        distance = register(m, distance, "distance_1")
        first = register(m, self.i_first, "first_1")

        # Second cycle: how far the term or the sum moves. One of both stays where it is.
        term_width = len(self.i_product) + self._guard_bits + unit - 1
        term_reach = self._max_product.bit_length() + self._guard_bits + unit - 1
        negative = distance[-1]
        term_bits = bits_for(-(-term_reach // unit))
        sum_bits = bits_for(-(-self._reach // unit))
        # The negative of a negative number: low bits in a few lookup tables, the rest only limits.
        low = distance[:term_bits]
        opposite = Cat(negate_if(Const(1, 1), low)[:term_bits], ~low.any(), ~distance[term_bits:])
        term_shift = limit_shift(m, opposite, negative & ~first, term_bits, "term")
        sum_shift = limit_shift(m, distance, ~negative, sum_bits, "sum")
        term_shift = register(m, term_shift, "term_shift_2")
        sum_early = delay_value(m, register(m, sum_shift, "sum_shift_2"), 1, "sum_shift_2")
        first_early = delay_value(m, first, 2, "first_1")
        sum_shift = register(m, sum_early, "sum_shift_4")
        first = register(m, first_early, "first_4")

        # Third and fourth cycle: the term's shift.
        term = Signal(signed(term_width))
        fine = delay_value(m, self.i_exponent[:align], 2, "fine")
        m.d.comb += term.eq(shift_left(m, self.i_product, fine) << self._guard_bits)
        split = len(term_shift) if align else len(term_shift) // 2
        high = range(len(term_shift) - 1, split - 1, -1)
        term = register(m, shift_right(m, term, term_shift, high, unit), "term_3")
        term_shift = register(m, term_shift[:split], "term_shift_3")
        low = range(split - 1, -1, -1)
        term = register(m, shift_right(m, term, term_shift, low, unit), "term_4")

        # Fifth cycle: the sum's shift and the addition, a loop.
        total = Signal.like(self.o_mantissa, reset_less=True)
        if align < _ONE_HOT_ALIGN_BITS:
            moved = shift_right(m, total, sum_shift, range(len(sum_shift) - 1, -1, -1), unit)
            moved = Mux(first, 0, moved)
        else:
            moved = select_shift(m, total, sum_early, first_early, unit)
        with m.If(delay(m, self.i_valid, 4, "valid")):
            m.d.sync += total.eq(moved + term)
        m.d.comb += [
            self.o_valid.eq(delay(m, self.i_valid & self.i_last, self.latency, "last")),
            self.o_mantissa.eq(total),
            self.o_exponent.eq(delay_value(m, maximum, 4, "maximum") << align),
        ]
        return m


class Accumulator(wiring.Component):
    """Sum of terms with different exponents.

    Contract (:func:`mxhw.sw.golden.integer.accumulate`): the sum starts as ``p << guard_bits`` at
    the first term's exponent. Each further term ``p`` at ``e`` moves the sum ``a`` at ``E`` to
    ``E' = max(E, e)`` and ``a' = floor(a * 2**(E - E')) + floor((p << guard_bits) * 2**(e - E'))``.
    It cannot overflow. With ``align_bits`` the sum's exponents are multiples of ``2**align_bits``
    at or below those of the terms, and terms lie that much higher.

    Parameters
    ----------
    product_bits : int
        Width of the signed terms.
    max_terms : int
        Largest number of terms of a sum.
    guard_bits : int
        Bits kept below the largest exponent's unit, at least.
    align_bits : int
        0 to 4: more make the loop of shift and addition shorter, for a higher clock.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``product`` (signed), ``exponent`` (signed, 12 bits), ``first`` and ``last``: of a sum.
    o : ``Out(stream.Signature(StructLayout))``
        ``mantissa`` (signed, :attr:`mantissa_bits`) and ``exponent`` (signed, 12 bits), a sum.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no integer or too small.

    Timing: latency 6 from the last term, interval 1 a term.

    Cost: no multipliers.
    """

    def __init__(
        self, *, product_bits: int, max_terms: int, guard_bits: int = 8, align_bits: int = 0
    ):
        check_accumulator(product_bits, max_terms, guard_bits, align_bits)
        self._product_bits = product_bits
        self._align_bits = align_bits
        self._max_terms = max_terms
        self._guard_bits = guard_bits
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "product": signed(product_bits),
                                "exponent": signed(EXPONENT_BITS),
                                "first": 1,
                                "last": 1,
                            }
                        )
                    )
                ),
                "o": Out(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "mantissa": signed(self.mantissa_bits),
                                "exponent": signed(EXPONENT_BITS),
                            }
                        )
                    )
                ),
            }
        )

    @property
    def product_bits(self) -> int:
        """Width of the terms."""
        return self._product_bits

    @property
    def max_terms(self) -> int:
        """Largest number of terms of a sum."""
        return self._max_terms

    @property
    def guard_bits(self) -> int:
        """Bits kept below the largest exponent's unit."""
        return self._guard_bits

    @property
    def align_bits(self) -> int:
        """Low bits of exponents that the sum's exponent does not have."""
        return self._align_bits

    @property
    def mantissa_bits(self) -> int:
        """Width of the sum."""
        return accumulator_bits(
            self._product_bits, self._max_terms, self._guard_bits, self._align_bits
        )

    @property
    def latency(self) -> int:
        """Cycles from the transfer of the last term to that of the sum."""
        return AlignedSum.latency + 1

    @property
    def interval(self) -> int:
        """Cycles from one term to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        return {"multipliers": 0, "memory_bits": (self.mantissa_bits + EXPONENT_BITS) * 16}

    def elaborate(self, platform):
        m = Module()
        m.submodules.sum = core = AlignedSum(
            product_bits=self._product_bits,
            mantissa_bits=self.mantissa_bits,
            exponent_bits=EXPONENT_BITS,
            guard_bits=self._guard_bits,
            align_bits=self._align_bits,
            reach=sum_reach(
                1 << (self._product_bits - 1), self._max_terms, self._guard_bits, self._align_bits
            ),
        )
        m.submodules.out = out = OutputQueue(shape=self.o.payload.shape(), depth=16)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        payload = self.i.payload
        accept = Signal()
        m.d.comb += [
            accept.eq(self.i.valid & out.free),
            self.i.ready.eq(out.free),
            out.reserve.eq(accept & payload.last),
            core.i_valid.eq(accept),
            core.i_first.eq(payload.first),
            core.i_last.eq(payload.last),
            core.i_exponent.eq(payload.exponent),
            core.i_product.eq(delay_value(m, payload.product, 2, "product")),
            out.i.valid.eq(core.o_valid),
            out.i.payload.mantissa.eq(core.o_mantissa),
            out.i.payload.exponent.eq(core.o_exponent - self._guard_bits),
        ]
        return m


def check_accumulator(product_bits: int, max_terms: int, guard_bits: int, align_bits: int) -> None:
    """Check the parameters of an accumulator.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no integer or out of its range.
    """
    _check_integer("Product width", product_bits, 2)
    _check_integer("Number of terms", max_terms, 1)
    _check_integer("Number of guard bits", guard_bits, 0)
    _check_integer("Number of alignment bits", align_bits, 0)
    if align_bits > _MAX_ALIGN_BITS:
        raise ValueError(
            f"Number of alignment bits of an accumulator must be at most {_MAX_ALIGN_BITS}, "
            f"not {align_bits}"
        )


def _check_integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} of an accumulator must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name} of an accumulator must be at least {least}, not {value}")
