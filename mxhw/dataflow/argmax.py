"""Index of the largest of a vector of fixed-point numbers: the greedy choice of a token."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from mxhw.dataflow.fixed import FixedBeat
from mxhw.sw.golden.linear import FIXED_BITS

__all__ = ["ArgMax"]


class ArgMax(wiring.Component):
    """Index of the largest of every ``length`` values; the first of equals.

    Contract: :func:`mxhw.sw.golden.linear.argmax`. A vector takes ``ceil(length / lanes)`` beats;
    lanes behind its end are ignored.

    Parameters
    ----------
    length : int
        Values of a vector.
    lanes : int
        Values of a beat, a power of two.

    Members
    -------
    i : ``In(stream.Signature(FixedBeat(lanes)))``
    o : ``Out(stream.Signature(unsigned(...)))``
        One index a vector.

    Raises
    ------
    TypeError
        If a parameter is not an integer.
    ValueError
        If a parameter is out of range.

    Timing
    ------
    ``latency`` ``1 + log2(lanes)`` cycles from the last beat to the index; one beat a cycle, also
    from one vector to the next.

    Cost
    ----
    ``lanes`` comparators.
    """

    def __init__(self, *, length: int, lanes: int = 4):
        if not isinstance(length, int):
            raise TypeError(f"Length of a vector must be an integer, not {length!r}")
        if length < 1:
            raise ValueError(f"Length of a vector must be at least 1, not {length}")
        if not isinstance(lanes, int):
            raise TypeError(f"Number of lanes must be an integer, not {lanes!r}")
        if lanes < 1 or lanes & (lanes - 1):
            raise ValueError(f"Number of lanes must be a power of two, not {lanes}")
        self._length = length
        self._lanes = lanes
        super().__init__(
            {
                "i": In(stream.Signature(FixedBeat(lanes=lanes))),
                "o": Out(stream.Signature(unsigned(max(1, ceil_log2(length))))),
            }
        )

    @property
    def length(self) -> int:
        """Values of a vector."""
        return self._length

    @property
    def lanes(self) -> int:
        """Values of a beat."""
        return self._lanes

    @property
    def latency(self) -> int:
        """Cycles from the last beat of a vector to its index."""
        return 1 + ceil_log2(self._lanes)

    @property
    def interval(self) -> int:
        """Cycles from one vector to the next."""
        return -(-self._length // self._lanes)

    def cost(self) -> dict[str, int]:
        """DSP slices, bits of distributed memory and ECP5 block RAMs."""
        return {"multipliers": 0, "memory_bits": 0, "block_rams": 0}

    def elaborate(self, platform):
        m = Module()
        levels = ceil_log2(self._lanes)
        beats = self.interval
        advance = Signal()
        full = Signal(levels + 1)
        done = Signal()
        m.d.comb += [
            advance.eq(~done | self.o.ready),
            self.i.ready.eq(advance),
            self.o.valid.eq(done),
            full[0].eq(self.i.valid),
        ]

        # Beats are counted at the entrance, to hide the lanes behind the end, and at the end.
        last_in = self._count_beats(m, advance & self.i.valid, "in")
        present = self._length - (beats - 1) * self._lanes
        lowest = -(1 << (FIXED_BITS - 1))
        candidates = []
        for lane in range(self._lanes):
            value = self.i.payload[lane]
            if lane >= present:
                # Equal values keep their order, so the lowest value never displaces a real one.
                value = Mux(last_in, lowest, value).as_signed()
            candidates.append((value, Signal(0)))
        for level in range(levels):
            winners = []
            for index in range(0, len(candidates), 2):
                (left, left_index), (right, right_index) = candidates[index : index + 2]
                value = Signal(signed(FIXED_BITS), name=f"value_{level}_{index}", reset_less=True)
                place = Signal(level + 1, name=f"place_{level}_{index}", reset_less=True)
                later = Signal(name=f"later_{level}_{index}")
                m.d.comb += later.eq(right > left)
                with m.If(advance):
                    m.d.sync += [
                        value.eq(Mux(later, right, left)),
                        place.eq(Cat(Mux(later, right_index, left_index)[:level], later)),
                    ]
                winners.append((value, place))
            candidates = winners
            with m.If(advance):
                m.d.sync += full[level + 1].eq(full[level])

        ((value, place),) = candidates
        step = advance & full[levels]
        beat = Signal(range(max(beats, 2)))
        last = self._count_beats(m, step, "out", beat)
        best = Signal(signed(FIXED_BITS), reset_less=True)
        with m.If(step), m.If((beat == 0) | (value > best)):
            m.d.sync += [best.eq(value), self.o.payload.eq(Cat(place, beat))]
        with m.If(advance):
            m.d.sync += done.eq(step & last)
        return m

    def _count_beats(self, m: Module, step, name: str, beat: Signal | None = None):
        """Count the beats of each vector; whether the present one is the last."""
        if beat is None:
            beat = Signal(range(max(self.interval, 2)), name=f"beat_{name}")
        last = Signal(name=f"last_{name}")
        m.d.comb += last.eq(beat == self.interval - 1)
        with m.If(step):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        return last
