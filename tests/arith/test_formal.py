# amaranth: UnusedElaboratable=no
"""Bounded proofs, for small parameters and every input: stream contract, no overflow, no loss.

Yosys' own solver checks all input sequences of a number of cycles from reset.
"""

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Elaboratable, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.accumulate import Accumulator, AlignedSum
from mxhw.arith.dot_product import DotProduct
from mxhw.arith.elementwise import Requantizer
from mxhw.arith.pipeline import StreamFifo
from mxhw.formats import parse_format
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
