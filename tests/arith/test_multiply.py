# amaranth: UnusedElaboratable=no
import itertools
import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.multiply import DspMultiplier, LutMultiplier
from mxhw.arith.pipeline import OutputQueue, delay
from tests.support import check_stream


class Product(wiring.Component):
    def __init__(self, multiplier, a, b):
        self.multiplier = multiplier
        self.result = signed(a.width + b.width + 1)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"a": a, "b": b}))),
                "o": Out(stream.Signature(self.result)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = OutputQueue(shape=self.result, depth=16)
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        accept = self.i.valid & queue.free
        product = self.multiplier.product(m, self.i.payload.a, self.i.payload.b, "product")
        m.d.comb += [
            self.i.ready.eq(queue.free),
            queue.reserve.eq(accept),
            queue.i.valid.eq(delay(m, accept, self.multiplier.latency, "valid")),
            queue.i.payload.eq(product),
        ]
        return m


def values(shape):
    half = 1 << (shape.width - 1)
    return range(-half, half) if shape.signed else range(2 * half)


@pytest.mark.parametrize("multiplier", [DspMultiplier(), LutMultiplier(), DspMultiplier(3)])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (signed(5), signed(5)),
        (unsigned(4), signed(3)),
        (signed(6), unsigned(1)),
        (signed(4), signed(1)),
        (unsigned(3), unsigned(5)),
    ],
)
def test_products_of_all_values(multiplier, a, b):
    pairs = list(itertools.product(values(a), values(b)))
    rows = [{"a": x, "b": y} for x, y in pairs]
    check_stream(
        Product(multiplier, a, b), {"i": rows}, {"o": [x * y for x, y in pairs]}, stalls=[(1, 1)]
    )


def test_wide_products():
    rng = random.Random(1)
    rows = [(rng.randrange(-512, 512), rng.randrange(-64, 64)) for _ in range(300)]
    rows += itertools.product((-512, 511), (-64, 63))
    unit = Product(LutMultiplier(), signed(10), signed(7))
    expected = [a * b for a, b in rows]
    check_stream(unit, {"i": [{"a": a, "b": b} for a, b in rows]}, {"o": expected})


def test_lut_multiplier_needs_no_multiplier():
    assert "$mul" in rtlil.convert(Product(DspMultiplier(), signed(10), signed(7)))
    assert "$mul" not in rtlil.convert(Product(LutMultiplier(), signed(10), signed(7)))
    assert (DspMultiplier.multipliers, LutMultiplier.multipliers) == (1, 0)


def test_stages_are_checked():
    with pytest.raises(
        ValueError, match=r"^Stages of a multiplier must be between 1 and 3, not 4$"
    ):
        DspMultiplier(4)
    with pytest.raises(TypeError, match=r"^Stages of a multiplier must be an integer, not 1\.0$"):
        LutMultiplier(1.0)
