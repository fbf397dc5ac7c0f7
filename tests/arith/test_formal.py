# amaranth: UnusedElaboratable=no
"""Bounded proofs, for small parameters and every input: stream contract, no overflow, no loss.

Yosys' own solver checks all input sequences of a number of cycles from reset.
"""

from fractions import Fraction

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Array, Assert, Assume, Cat, Elaboratable, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.accumulate import Accumulator, AlignedSum
from mxhw.arith.dot_product import DotProduct
from mxhw.arith.elementwise import Requantizer
from mxhw.arith.pipeline import StreamFifo
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.formats import SCALE_BIAS, BlockFormat, parse_format
from tests.yosys import run_yosys

SCRIPT = """
read_rtlil unit.il
prep -flatten -top top
memory_map
chformal -lower
opt -full
sat -verify -prove-asserts -set-assumes -tempinduct-baseonly -maxsteps {cycles}
"""


def prove(harness: Elaboratable, cycles: int, folder) -> bool:
    """Whether no assertion fails within so many cycles."""
    (folder / "unit.il").write_text(rtlil.convert(harness, emit_src=False))
    (folder / "unit.ys").write_text(SCRIPT.format(cycles=cycles))
    status, output = run_yosys(folder, "unit.ys")
    assert "Executing SAT pass" in output, output[-2000:]
    assert status == 0 or "proof did fail" in output, output[-2000:]
    return status == 0


class StreamContract(wiring.Component):
    """An offered payload stays until it is taken; inputs are free."""

    def __init__(self, unit, *, drop=False):
        self.unit = unit
        self.drop = drop
        super().__init__(unit.signature)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self.unit
        for name in _ports(unit, "i"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(unit, name))
        for name, port in _ports(unit, "o").items():
            wiring.connect(m, port, wiring.flipped(getattr(self, name)))
            payload = port.payload.as_value() if hasattr(port.payload, "as_value") else port.payload
            waiting = Signal()
            before = Signal(len(payload))
            m.d.sync += [
                waiting.eq(port.valid & (self.drop | ~port.ready)),
                before.eq(payload),
            ]
            with m.If(waiting):
                m.d.comb += [Assert(port.valid), Assert(payload == before)]
        return m


def _ports(unit, prefix):
    return {
        name: getattr(unit, name)
        for name in unit.signature.members
        if name == prefix or name.startswith(f"{prefix}_")
    }


def quantizer(*names, bits=2, lanes=8, shared=False):
    formats = [parse_format(name) for name in names]
    return Quantizer(mantissa_bits=bits, lanes=lanes, formats=formats, shared_exponent=shared)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "cycles"),
    [
        (lambda: StreamFifo(shape=3, depth=2), 14),
        (lambda: StreamFifo(shape=2, depth=3), 14),
        (lambda: Accumulator(product_bits=2, max_terms=2, guard_bits=1), 12),
        (lambda: Accumulator(product_bits=2, max_terms=2, guard_bits=1, align_bits=1), 12),
        (
            lambda: Requantizer(
                x_format=parse_format("mxint3_b8"), format=parse_format("mxint2_b8"), lanes=8
            ),
            11,
        ),
        (
            lambda: DotProduct(
                x_format=parse_format("mxint2_b8"), w_format=parse_format("mxint2_b8"), max_terms=2
            ),
            13,
        ),
        (lambda: quantizer("mxint2_b8"), 11),
        (lambda: quantizer("mxint2_b8", lanes=4), 11),
        (lambda: quantizer("mxint3_b8", "mxint2_b8", shared=True), 10),
        (lambda: quantizer("mxfp4_b8"), 12),
        (lambda: quantizer("mxint2_b8_rceil", lanes=4, shared=True), 13),
    ],
)
def test_streams_keep_their_contract(make, cycles, tmp_path):
    assert prove(StreamContract(make()), cycles, tmp_path)


@pytest.mark.slow
def test_a_broken_contract_is_found(tmp_path):
    """A payload that was taken does not stay: the harness must see it."""
    assert not prove(StreamContract(StreamFifo(shape=2, depth=2), drop=True), 8, tmp_path)


class NoOverflow(wiring.Component):
    """Two sums, one with spare bits: equal for every sequence of terms."""

    def __init__(self, *, max_terms, width_error=0, **options):
        self.options = options
        self.max_terms = max_terms
        self.width_error = width_error
        super().__init__(
            {
                "product": In(options["product_bits"]),
                "exponent": In(signed(4)),
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = self.options["product_bits"]
        accumulator = Accumulator(max_terms=self.max_terms, **self.options)
        sums = []
        count = Signal(range(self.max_terms + 1))
        for index, spare in enumerate((-self.width_error, 4)):
            total = AlignedSum(
                product_bits=bits,
                mantissa_bits=accumulator.mantissa_bits + spare,
                exponent_bits=6,
                guard_bits=self.options["guard_bits"],
                align_bits=self.options.get("align_bits", 0),
            )
            m.submodules[f"sum_{index}"] = total
            late = [Signal(signed(bits)) for _ in range(2)]
            m.d.sync += [late[0].eq(self.product), late[1].eq(late[0])]
            m.d.comb += [
                total.i_valid.eq(self.valid),
                total.i_first.eq(self.first),
                total.i_last.eq(self.last),
                total.i_exponent.eq(self.exponent),
                total.i_product.eq(late[1]),
            ]
            sums.append(total)
        # The terms of a sum are counted, and never more than allowed.
        with m.If(self.valid):
            m.d.sync += count.eq(1)
            with m.If(~self.first):
                m.d.sync += count.eq(count + 1)
                m.d.comb += [Assume(count != 0), Assume(count < self.max_terms)]
        with m.If(sums[0].o_valid):
            m.d.comb += Assert(sums[0].o_mantissa == sums[1].o_mantissa)
        m.d.comb += self.done.eq(sums[0].o_valid)
        return m


@pytest.mark.slow
@pytest.mark.parametrize("align_bits", [0, 1])
def test_sums_do_not_overflow(align_bits, tmp_path):
    options = {"product_bits": 3, "guard_bits": 1, "align_bits": align_bits, "max_terms": 3}
    assert prove(NoOverflow(**options), 10, tmp_path)


@pytest.mark.slow
def test_a_sum_of_too_few_bits_is_found(tmp_path):
    options = {"product_bits": 3, "guard_bits": 1, "max_terms": 3, "width_error": 2}
    assert not prove(NoOverflow(**options), 10, tmp_path)


class Rounding(wiring.Component):
    """The first block that a quantiser takes, against what the specification says of it.

    Lanes beyond the first two are zero. Nothing here can overflow: widths follow from the operands,
    but for distances so long that all they leave is nothing, or more than the largest element.
    """

    def __init__(self, unit, error=0):
        self.unit = unit
        self.error = error
        shape = unit.i.payload.shape()
        super().__init__({"payload": In(shape), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self.unit
        taken = Signal.like(self.payload)
        started = Signal()
        m.d.comb += [
            unit.i.valid.eq(~started),
            unit.i.payload.eq(self.payload),
            unit.o.ready.eq(1),
            self.done.eq(unit.o.valid),
        ]
        beat = self.payload.beat if len(unit.formats) > 1 else self.payload
        m.d.comb += [Assume(beat.mantissas[lane] == 0) for lane in range(2, unit.lanes)]
        with m.If(~started & unit.i.ready):
            m.d.sync += [started.eq(1), taken.eq(self.payload)]
        chosen, beat = 0, taken
        if len(unit.formats) > 1:
            chosen, beat = taken.select, taken.beat
            m.d.comb += Assume(self.payload.select < len(unit.formats))
        for index, format in enumerate(unit.formats):
            scale, codes = self._expected(m, beat, format)
            with m.If(unit.o.valid & (chosen == index)):
                m.d.comb += Assert(unit.o.payload.scale == scale + self.error)
                for lane, code in enumerate(codes):
                    m.d.comb += Assert(unit.o.payload.elements[lane] == code)
        return m

    def _expected(self, m, beat, format: BlockFormat):
        element, bits = format.element, self.unit.mantissa_bits
        raised = [raises(format, value) for value in range(1 << bits)]
        lengths = Array(value.bit_length() - 1 + raised[value] for value in range(1 << bits))
        values = []
        for lane in range(2):
            mantissa = beat.mantissas[lane]
            magnitude = Signal(bits)
            m.d.comb += magnitude.eq(Mux(mantissa[-1], -mantissa, mantissa))
            exponent = beat.exponent if self.unit.shared_exponent else beat.exponents[lane]
            values.append((mantissa[-1], magnitude, exponent))
        tops = [exponent + lengths[magnitude] for _, magnitude, exponent in values]
        empty = [magnitude == 0 for _, magnitude, _ in values]
        higher = Mux(empty[1] | (~empty[0] & (tops[0] > tops[1])), *tops)
        unit = Signal(signed(EXPONENT_BITS + 3))
        low, high = -SCALE_BIAS, SCALE_BIAS
        wanted = higher - element.max_exponent
        m.d.comb += unit.eq(Mux(wanted < low, low, Mux(wanted > high, high, wanted)))
        scale = Mux(Cat(empty).all(), 0, unit + SCALE_BIAS)
        codes = [self._code(m, format, unit, *value) for value in values]
        return scale, codes + [0] * (self.unit.lanes - 2)

    def _code(self, m, format: BlockFormat, unit, negative, magnitude, exponent):
        """How many of the midpoints between codes the magnitude is above; or at, if odd."""
        element = format.element
        # Longer distances to the right leave less than half a step, to the left the largest code.
        right = self.unit.mantissa_bits + element.fraction_bits + 1
        left = element.max_exponent + 2
        distance = Signal(range(left + right + 1))
        moved = exponent - unit + right
        m.d.comb += distance.eq(Mux(moved < 0, 0, Mux(moved > left + right, left + right, moved)))
        value = Mux(moved < 0, 0, magnitude << distance)
        reached = []
        for code, midpoint in enumerate(midpoints(element)):
            threshold = midpoint * (1 << right)
            assert threshold.denominator == 1
            reached.append(value >= int(threshold) + 1 - code % 2)
        code = Signal(range(len(reached) + 1))
        m.d.comb += code.eq(sum(reached))
        if element.is_integer:
            return Mux(negative, -code, code)
        return Cat(code, negative)


def midpoints(element) -> list[Fraction]:
    """Between the magnitudes of codes that follow each other, in the unit of the scale."""
    table = element.spelled_table().tolist()
    magnitudes = table[: table.index(element.max_significand) + 1]
    pairs = zip(magnitudes, magnitudes[1:], strict=False)
    return [Fraction(low + high, 2 << element.fraction_bits) for low, high in pairs]


def raises(format: BlockFormat, value: int) -> bool:
    """Whether the scale rule takes the next power of two for this magnitude."""
    if format.scale_rule == "floor" or not value:
        return False
    element = format.element
    share = Fraction(value, 1 << (value.bit_length() - 1))
    if format.scale_rule == "rceil":
        largest = element.max_significand
        return share > Fraction(largest, 1 << (largest.bit_length() - 1))
    precision = element.fraction_bits if element.is_integer else element.mantissa_bits
    return share * (1 << precision) + Fraction(1, 2) >= 2 << precision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "bits", "shared"),
    [
        (["mxint3_b8"], 3, False),
        (["mxint3_b8"], 3, True),
        (["mxint3_b8", "mxint2_b8"], 4, True),
        (["mxint3_b8_even"], 4, True),
        (["mxfp4_b8"], 3, False),
        (["mxfp4_b8"], 5, True),
        (["mxfp4_b8_rceil"], 4, True),
    ],
)
def test_blocks_are_rounded_without_overflow(names, bits, shared, tmp_path):
    """Every pair of exact values, at every exponent of 12 bits."""
    unit = quantizer(*names, bits=bits, shared=shared)
    assert prove(Rounding(unit), unit.latency + 2, tmp_path)


@pytest.mark.slow
def test_a_wrong_scale_is_found(tmp_path):
    unit = quantizer("mxint3_b8", bits=3, shared=True)
    assert not prove(Rounding(unit, error=1), unit.latency + 2, tmp_path)
