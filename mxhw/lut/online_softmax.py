"""Softmax numerators in one pass: powers of two below an integer running maximum, and their sum."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.dot import queue_depth
from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register
from mxhw.lut.exp2 import exp2_latency, exp2_value
from mxhw.lut.pwl import check_index_bits
from mxhw.lut.uniform import EXP2_FRACTION_BITS
from mxhw.sw.golden.reduced import ONLINE_GUARD_BITS, ONLINE_MOST_SHIFT, ONLINE_SMALLEST

__all__ = ["Numerator", "OnlineSoftmax", "Score"]

_MANTISSA_BITS = 16
_SCORE_BITS = (14, 32)
_LENGTHS = (1, 1 << 14)


class Score(data.StructLayout):
    """A base-2 logit with 12 fraction bits, and whether it ends its row."""

    def __init__(self, *, score_bits: int):
        super().__init__({"score": signed(score_bits), "last": unsigned(1)})


class Numerator(data.StructLayout):
    """``mantissa * 2**(-15 - down)`` below ``2**maximum``, and the row's sum up to here.

    Sums that were made before this element move ``shift`` places to the right, with it included
    they are at the new maximum. ``total`` has 31 fraction bits.
    """

    def __init__(self, *, maximum_bits: int, total_bits: int):
        super().__init__(
            {
                "mantissa": unsigned(_MANTISSA_BITS),
                "down": unsigned(ONLINE_SMALLEST.bit_length()),
                "shift": unsigned(ONLINE_MOST_SHIFT.bit_length()),
                "maximum": signed(maximum_bits),
                "total": unsigned(total_bits),
                "last": unsigned(1),
            }
        )


class OnlineSoftmax(wiring.Component):
    """Numerators and total of a softmax in one pass: ``golden.reduced.online_softmax``, bit by bit.

    The maximum is that of the scores' whole parts, so that a new one costs a shift. What consumes
    the numerators moves its own sums by the same shifts, and divides by the last total: no score is
    stored. Relative error of the total against float64, random rows of 1 to 16,384: 3.1e-5. A row
    of one score of whole value has the total 1.

    Parameters
    ----------
    score_bits : int
        Width of a score, 14 to 32, 12 of them fraction.
    longest : int
        Longest row, 1 to 16,384.
    index_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(Score(score_bits=score_bits)))``
    o : ``Out(stream.Signature(Numerator(...)))``
        One for every score.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not an integer or out of range.

    Timing: latency 7, interval 1, also between rows.

    Cost: a table and its product in LUTs, two shifters, no DSP slice.
    """

    def __init__(self, *, score_bits: int = 24, longest: int = 1 << 14, index_bits: int = 5):
        for value, name, (low, high) in (
            (score_bits, "Score width", _SCORE_BITS),
            (longest, "Longest row", _LENGTHS),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} of an online softmax must be an integer, not {value!r}")
            if not low <= value <= high:
                raise ValueError(
                    f"{name} of an online softmax must be between {low} and {high}, not {value}"
                )
        self._score_bits = score_bits
        self._longest = longest
        self._index_bits = check_index_bits(index_bits, "an online softmax")
        self._total_bits = _MANTISSA_BITS + ONLINE_GUARD_BITS + (longest - 1).bit_length()
        self._o_shape = Numerator(
            maximum_bits=score_bits - EXP2_FRACTION_BITS, total_bits=self._total_bits
        )
        super().__init__(
            {
                "i": In(stream.Signature(Score(score_bits=score_bits))),
                "o": Out(stream.Signature(self._o_shape)),
            }
        )

    @property
    def score_bits(self) -> int:
        """Width of a score."""
        return self._score_bits

    @property
    def longest(self) -> int:
        """Longest row."""
        return self._longest

    @property
    def index_bits(self) -> int:
        """Logarithm of the table's entries."""
        return self._index_bits

    @property
    def _stages(self) -> int:
        """Registers: the score, its power, the maximum, the total."""
        return 1 + exp2_latency() + 2

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a score to that of its numerator."""
        return self._stages + 1

    @property
    def interval(self) -> int:
        """Cycles from one score to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and block RAMs."""
        return {
            "multipliers": 0,
            "memory_bits": queue_depth(self._stages) * self._o_shape.size,
            "block_rams": 0,
        }

    def elaborate(self, platform):
        """Power, running maximum and running sum."""
        m = Module()
        m.submodules.queue = queue = OutputQueue(
            shape=self._o_shape, depth=queue_depth(self._stages)
        )
        taken = Signal()
        m.d.comb += [self.i.ready.eq(queue.free), taken.eq(self.i.valid & queue.free)]
        score = register(m, self.i.payload.score, "score")
        mantissa, whole = exp2_value(m, score, "power", self._index_bits)
        before = 1 + exp2_latency()
        last = delay_value(m, self.i.payload.last, before, "last")
        valid = delay(m, taken, before, "taken")

        maximum = Signal(signed(self._score_bits - EXP2_FRACTION_BITS))
        first = Signal(init=1)
        rise = Signal(signed(len(maximum) + 1))
        m.d.comb += rise.eq(whole - maximum)
        higher = first | ~rise[-1]
        with m.If(valid):
            m.d.sync += first.eq(last)
            with m.If(higher):
                m.d.sync += maximum.eq(whole)
        up = Mux(first | rise[-1], 0, rise.as_unsigned())
        down = Mux(higher, 0, (-rise).as_unsigned())
        far = down > ONLINE_SMALLEST
        shift = register(m, Mux(up > ONLINE_MOST_SHIFT, ONLINE_MOST_SHIFT, up)[:6], "shift")
        down = register(m, Mux(far, ONLINE_SMALLEST, down)[:5], "down")
        mantissa = register(m, Mux(far, 0, mantissa), "mantissa")
        last = register(m, last, "last_1")
        begins = register(m, first, "begins")
        valid = delay(m, valid, 1, "valid")

        total = Signal(self._total_bits, reset_less=True)
        term = Cat(Const(0, ONLINE_GUARD_BITS), mantissa) >> down
        with m.If(valid):
            m.d.sync += total.eq(Mux(begins, 0, total >> shift) + term)
        result = queue.i.payload
        m.d.comb += [
            queue.reserve.eq(taken),
            queue.i.valid.eq(delay(m, valid, 1, "valid_1")),
            result.mantissa.eq(register(m, mantissa, "mantissa_1")),
            result.down.eq(register(m, down, "down_1")),
            result.shift.eq(register(m, shift, "shift_1")),
            result.maximum.eq(register(m, maximum, "maximum_1")),
            result.last.eq(register(m, last, "last_2")),
            result.total.eq(total),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        return m
