"""Fixed point of exact values: what scores and logits are compared in."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.shapes import EXPONENT_BITS, WideBeat
from mxhw.sw.golden.linear import FIXED_BITS, FIXED_FRACTION_BITS

__all__ = ["FixedBeat", "ToFixed"]

_LARGEST_LEFT_SHIFT = 20
_SHIFT_BITS = 6
_MAX_MANTISSA_BITS = (1 << _SHIFT_BITS) - _LARGEST_LEFT_SHIFT


class FixedBeat(data.ArrayLayout):
    """``lanes`` signed numbers of 24 bits with 12 fraction bits."""

    def __init__(self, *, lanes: int):
        self.lanes = lanes
        super().__init__(signed(FIXED_BITS), lanes)


def _shift(m: Module, value, select, *, step: int, keep: int):
    """``value >> (select * step)`` in ``keep`` bits, and whether that loses high bits."""
    sign = value[-1]
    words, losses = [], []
    for low in range(0, step << len(select), step):
        kept = value[low : low + keep]
        high = value[low + keep - 1 :]
        words.append(Cat(kept, sign.replicate(keep - len(kept))))
        losses.append((high != sign.replicate(len(high))) if len(high) else Const(0, 1))
    # Two-way multiplexers, which an LUT's output multiplexers serve; a switch gives a decoder.
    for bit in select:
        words = [Mux(bit, one, zero) for zero, one in zip(words[::2], words[1::2], strict=True)]
        losses = [Mux(bit, one, zero) for zero, one in zip(losses[::2], losses[1::2], strict=True)]
    result = Signal(signed(keep), name=f"shifted_{step}")
    lost = Signal(name=f"lost_{step}")
    m.d.comb += [result.eq(words[0]), lost.eq(losses[0])]
    return result, lost


class ToFixed(wiring.Component):
    """Fixed point of each lane of a beat of exact values.

    Contract: :func:`mxhw.sw.golden.linear.to_fixed`, bit for bit: ``mantissa * 2**(exponent + 12)``
    with the power limited to ``2**20``, rounded to minus infinity, saturated to 24 bits.

    Parameters
    ----------
    mantissa_bits : int
        Width of the mantissas, 2 to 44.
    lanes : int
        Values of a beat.

    Members
    -------
    i : ``In(stream.Signature(WideBeat(lanes, mantissa_bits)))``
    o : ``Out(stream.Signature(FixedBeat(lanes)))``

    Raises
    ------
    TypeError
        If a parameter is not an integer.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` 4 cycles, one beat a cycle.

    Cost
    ----
    One barrel shifter a lane: every power is a right shift of the mantissa moved 20 places up.
    """

    def __init__(self, *, mantissa_bits: int = 35, lanes: int = 4):
        if not isinstance(mantissa_bits, int):
            raise TypeError(f"Width of a mantissa must be an integer, not {mantissa_bits!r}")
        if not 2 <= mantissa_bits <= _MAX_MANTISSA_BITS:
            raise ValueError(
                f"Width of a mantissa must be between 2 and {_MAX_MANTISSA_BITS}, "
                f"not {mantissa_bits}"
            )
        if not isinstance(lanes, int):
            raise TypeError(f"Number of lanes must be an integer, not {lanes!r}")
        if lanes < 1:
            raise ValueError(f"Number of lanes must be at least 1, not {lanes}")
        self._mantissa_bits = mantissa_bits
        self._lanes = lanes
        super().__init__(
            {
                "i": In(stream.Signature(WideBeat(lanes=lanes, mantissa_bits=mantissa_bits))),
                "o": Out(stream.Signature(FixedBeat(lanes=lanes))),
            }
        )

    @property
    def mantissa_bits(self) -> int:
        """Width of the mantissas."""
        return self._mantissa_bits

    @property
    def lanes(self) -> int:
        """Values of a beat."""
        return self._lanes

    @property
    def latency(self) -> int:
        """Cycles from a beat to its result."""
        return 4

    @property
    def interval(self) -> int:
        """Cycles from one beat to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        return {"multipliers": 0, "memory_bits": 0, "block_rams": 0}

    def elaborate(self, platform):
        m = Module()
        advance = Signal()
        full = Signal(self.latency)
        m.d.comb += [
            advance.eq(~full[-1] | self.o.ready),
            self.i.ready.eq(advance),
            self.o.valid.eq(full[-1]),
        ]
        with m.If(advance):
            m.d.sync += full.eq(Cat(self.i.valid, full))
        for lane in range(self._lanes):
            m.submodules[f"lane_{lane}"] = self._elaborate_lane(
                self.i.payload.mantissas[lane],
                self.i.payload.exponents[lane],
                self.o.payload[lane],
                advance,
            )
        return m

    def _elaborate_lane(self, mantissa, exponent, result, advance) -> Module:
        m = Module()
        # Right shift of ``mantissa << 20``, a number of 64 bits at most: 63 leaves only the sign.
        most = (1 << _SHIFT_BITS) - 1
        zero = _LARGEST_LEFT_SHIFT - FIXED_FRACTION_BITS
        right = Signal(signed(EXPONENT_BITS + 1))
        amount = Signal(unsigned(_SHIFT_BITS), reset_less=True)
        wide = Signal(signed(self._mantissa_bits), reset_less=True)
        m.d.comb += right.eq(zero - exponent)
        with m.If(advance):
            m.d.sync += [
                wide.eq(mantissa),
                amount.eq(
                    Mux(right[-1], 0, Mux(right[_SHIFT_BITS:-1].any(), most, right[:_SHIFT_BITS]))
                ),
            ]

        raised = wide << _LARGEST_LEFT_SHIFT
        coarse, lost_16 = _shift(m, raised, amount[4:6], step=16, keep=FIXED_BITS + 15)
        medium, lost_4 = _shift(m, coarse, amount[2:4], step=4, keep=FIXED_BITS + 3)
        fine_in = Signal(signed(FIXED_BITS + 3), reset_less=True)
        fine_amount = Signal(2, reset_less=True)
        lost_in = Signal(reset_less=True)
        sign = Signal(reset_less=True)
        with m.If(advance):
            m.d.sync += [
                fine_in.eq(medium),
                fine_amount.eq(amount[:2]),
                lost_in.eq(lost_16 | lost_4),
                sign.eq(wide[-1]),
            ]

        fine, lost_1 = _shift(m, fine_in, fine_amount, step=1, keep=FIXED_BITS)
        cut = Signal(signed(FIXED_BITS), reset_less=True)
        over = Signal(reset_less=True)
        negative = Signal(reset_less=True)
        with m.If(advance):
            m.d.sync += [cut.eq(fine), over.eq(lost_in | lost_1), negative.eq(sign)]

        limit = 1 << (FIXED_BITS - 1)
        with m.If(advance):
            m.d.sync += result.eq(Mux(over, Mux(negative, -limit, limit - 1), cut))
        return m
