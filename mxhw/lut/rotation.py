"""Cosine and sine of a phase in turns: the angles of a rotary position embedding."""

from amaranth.hdl import Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data

from mxhw.arith.pipeline import delay_value, register
from mxhw.lut.pwl import (
    DSP,
    FunctionUnit,
    Multiplier,
    check_index_bits,
    table_latency,
    table_value,
)
from mxhw.lut.uniform import SINE_CODE_BITS, VALUE_FRACTION_BITS, sine_table

__all__ = ["Angle", "Rotation"]

_PHASE_BITS = 32
_VALUE_BITS = VALUE_FRACTION_BITS + 2


class Angle(data.StructLayout):
    """Cosine and sine with 15 fraction bits."""

    def __init__(self):
        super().__init__({"cosine": signed(_VALUE_BITS), "sine": signed(_VALUE_BITS)})


class Rotation(FunctionUnit):
    """Cosine and sine of a phase: bit for bit ``golden.reduced.rotation``.

    A phase of 32 bits that wraps with a full turn keeps its accuracy at any position: the product
    of a position and a frequency in turns needs its low 32 bits only. Maximum absolute error, the
    rounding of the phase to 16 bits included: 2.5e-3, 6.4e-4 and 1.9e-4 with 8, 16 and 32 entries.

    Parameters
    ----------
    index_bits : int
        3, 4 or 5: logarithm of the table's entries.
    multiplier : DspMultiplier or LutMultiplier
        Strategy of the two slopes' products.

    Members
    -------
    i : ``In(stream.Signature(unsigned(32)))``
        ``2**32`` is a full turn.
    o : ``Out(stream.Signature(Angle()))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is wrong.

    Timing: latency 5 + the multiplier's, interval 1.

    Cost: two DSP slices or none; the table twice.
    """

    def __init__(self, *, index_bits: int = 5, multiplier: Multiplier = DSP):
        self._index_bits = check_index_bits(index_bits, "a rotation")
        if not isinstance(multiplier, Multiplier):
            raise TypeError(
                f"Multiplier of a rotation must be a DspMultiplier or a LutMultiplier, "
                f"not {multiplier!r}"
            )
        self._multiplier = multiplier
        super().__init__(
            i_shape=unsigned(_PHASE_BITS),
            o_shape=Angle(),
            stages=2 + table_latency(multiplier),
        )

    @property
    def index_bits(self) -> int:
        """Logarithm of the table's entries."""
        return self._index_bits

    @property
    def multipliers(self) -> int:
        """DSP slices."""
        return 2 * self._multiplier.multipliers

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Cosine and sine."""
        drop = _PHASE_BITS - SINE_CODE_BITS - 2
        rounded = register(m, (payload[drop - 1 :] + 1)[1:][: SINE_CODE_BITS + 2], "rounded")
        code, quadrant = rounded[:SINE_CODE_BITS], rounded[SINE_CODE_BITS:]
        table, later = sine_table(self._index_bits), table_latency(self._multiplier)
        rising = table_value(m, table, code, "rising", self._multiplier)
        mirrored = Signal(SINE_CODE_BITS)
        m.d.comb += mirrored.eq(-code)
        falling = table_value(m, table, mirrored, "falling", self._multiplier)
        top = delay_value(m, ~code.any(), later, "top")
        quadrant = delay_value(m, quadrant, later, "quadrant")
        falling = Mux(top, 1 << VALUE_FRACTION_BITS, falling)
        values = {
            "sine": (Mux(quadrant[0], falling, rising), quadrant[1]),
            "cosine": (Mux(quadrant[0], rising, falling), quadrant[0] ^ quadrant[1]),
        }
        return {
            name: register(m, Mux(negative, -value, value)[:_VALUE_BITS].as_signed(), name)
            for name, (value, negative) in values.items()
        }
