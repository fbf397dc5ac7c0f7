"""Sums of terms with different exponents, aligned to the running maximum exponent."""

from amaranth.hdl import Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register, wire
from mxhw.arith.shapes import EXPONENT_BITS

__all__ = ["Accumulator", "AlignedSum", "accumulator_bits"]


def accumulator_bits(product_bits: int, max_terms: int, guard_bits: int) -> int:
    """Width of an accumulator that cannot overflow."""
    return product_bits + guard_bits + (max_terms - 1).bit_length()


class AlignedSum(Elaboratable):
    """Align and add, a pipeline that never stalls.

    The exponent of a term comes two cycles before the term itself, since the shift amounts follow
    from exponents alone; a dot product's tree hides these cycles.

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
        The sum, and the largest exponent of its terms; the mantissa's unit is ``guard_bits`` below.
    """

    latency = 5

    def __init__(
        self, *, product_bits: int, mantissa_bits: int, exponent_bits: int, guard_bits: int
    ):
        self._guard_bits = guard_bits
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
        # First cycle: the running maximum of the exponents, a loop of one comparison.
        maximum = Signal.like(self.i_exponent, reset_less=True)
        distance = wire(m, self.i_exponent - maximum, "distance")
        with m.If(self.i_valid & (self.i_first | ~distance[-1])):
            m.d.sync += maximum.eq(self.i_exponent)
        distance = register(m, distance, "distance_1")
        first = register(m, self.i_first, "first_1")

        # Second cycle: how far the term or the sum moves. One of both stays where it is.
        term_width = len(self.i_product) + self._guard_bits
        negative = distance[-1]
        term_shift = _limit(m, -distance, negative & ~first, bits_for(term_width - 1), "term")
        sum_shift = _limit(m, distance, ~negative, bits_for(len(self.o_mantissa) - 1), "sum")
        term_shift = register(m, term_shift, "term_shift_2")
        sum_shift = delay_value(m, register(m, sum_shift, "sum_shift_2"), 2, "sum_shift_2")
        first = delay_value(m, first, 3, "first_1")

        # Third and fourth cycle: the term's shift.
        term = Signal(signed(term_width))
        m.d.comb += term.eq(self.i_product << self._guard_bits)
        steps = len(term_shift)
        split = steps // 2
        term = register(m, _shift(m, term, term_shift, range(steps - 1, split - 1, -1)), "term_3")
        term_shift = register(m, term_shift[:split], "term_shift_3")
        term = register(m, _shift(m, term, term_shift, range(split - 1, -1, -1)), "term_4")

        # Fifth cycle: the sum's shift and the addition, a loop.
        total = Signal.like(self.o_mantissa, reset_less=True)
        moved = _shift(m, total, sum_shift, range(len(sum_shift) - 1, -1, -1))
        with m.If(delay(m, self.i_valid, 4, "valid")):
            m.d.sync += total.eq(Mux(first, 0, moved) + term)
        m.d.comb += [
            self.o_valid.eq(delay(m, self.i_valid & self.i_last, self.latency, "last")),
            self.o_mantissa.eq(total),
            self.o_exponent.eq(delay_value(m, maximum, 4, "maximum")),
        ]
        return m


class Accumulator(wiring.Component):
    """Sum of terms with different exponents.

    Contract (:func:`mxhw.sw.golden.integer.accumulate`): the sum starts as ``p << guard_bits`` at
    the first term's exponent. Each further term ``p`` at ``e`` moves the sum ``a`` at ``E`` to
    ``E' = max(E, e)`` and ``a' = floor(a * 2**(E - E')) + floor((p << guard_bits) * 2**(e - E'))``.
    It cannot overflow.

    Parameters
    ----------
    product_bits : int
        Width of the signed terms.
    max_terms : int
        Largest number of terms of a sum.
    guard_bits : int
        Bits kept below the largest exponent's unit.

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

    def __init__(self, *, product_bits: int, max_terms: int, guard_bits: int = 8):
        _check_integer("Product width", product_bits, 2)
        _check_integer("Number of terms", max_terms, 1)
        _check_integer("Number of guard bits", guard_bits, 0)
        self._product_bits = product_bits
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
    def mantissa_bits(self) -> int:
        """Width of the sum."""
        return accumulator_bits(self._product_bits, self._max_terms, self._guard_bits)

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


def _check_integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name} of an accumulator must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name} of an accumulator must be at least {least}, not {value}")


def _limit(m: Module, value: Value, enable: Value, bits: int, name: str) -> Value:
    """A value that counts only while ``enable`` is high (and then is not negative), clamped."""
    value = wire(m, value, f"{name}_distance")
    high = value[bits:-1].any()
    return (value[:bits] | high.replicate(bits)) & enable.replicate(bits)


def _shift(m: Module, value: Signal, amount: Value, steps: range) -> Value:
    """Arithmetic right shift by some bits of the amount."""
    for step in steps:
        value = wire(m, Mux(amount[step], value >> (1 << step), value), f"shift_{step}")
    return value
