"""A design of its own that uses the library: dot products of long vectors, checked with golden."""

import sys

import torch
from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from mxhw.arith import Accumulator, BlockDot
from mxhw.dataflow import link, payload_shape
from mxhw.formats import parse_format
from mxhw.sw.golden import quantize
from mxhw.sw.golden.linear import matrix_vector


class DotProduct(wiring.Component):
    """Dot product of two vectors of ``blocks`` blocks: a pair of blocks a cycle, in order."""

    def __init__(self, *, format, blocks):
        self._blocks = blocks
        self._dot = BlockDot(x_format=format, w_format=format)
        self._sum = Accumulator(product_bits=self._dot.product_bits, max_terms=blocks)
        super().__init__(
            {
                "i": In(stream.Signature(payload_shape(self._dot.i))),
                "o": Out(stream.Signature(payload_shape(self._sum.o))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dot = dot = self._dot
        m.submodules.sum = total = self._sum
        link(m, wiring.flipped(self.i), dot.i)
        link(m, total.o, wiring.flipped(self.o))

        # Between the units: mark the first and the last block of each vector.
        block = Signal(range(self._blocks))
        m.d.comb += [
            total.i.valid.eq(dot.o.valid),
            dot.o.ready.eq(total.i.ready),
            total.i.payload.product.eq(dot.o.payload.product),
            total.i.payload.exponent.eq(dot.o.payload.exponent),
            total.i.payload.first.eq(block == 0),
            total.i.payload.last.eq(block == self._blocks - 1),
        ]
        with m.If(dot.o.valid & dot.o.ready):
            m.d.sync += block.eq(block + 1)
            with m.If(total.i.payload.last):
                m.d.sync += block.eq(0)
        return m


def block_of(vector, index):
    """Block ``index`` of an MX tensor of one row, as a stream's payload."""
    size = vector.format.block_size
    codes = vector.elements[index * size : (index + 1) * size]
    return {"elements": codes.tolist(), "scale": int(vector.scales[index])}


def simulate(pairs, format, blocks):
    """Results of the hardware: a list of (mantissa, exponent)."""
    unit = DotProduct(format=format, blocks=blocks)
    results = []

    async def feed(ctx):
        ctx.set(unit.i.valid, 1)
        for x, w in pairs:
            for index in range(blocks):
                ctx.set(unit.i.payload, {"x": block_of(x, index), "w": block_of(w, index)})
                await ctx.tick().until(unit.i.ready)
        ctx.set(unit.i.valid, 0)

    async def collect(ctx):
        ctx.set(unit.o.ready, 1)
        for _ in pairs:
            (result,) = await ctx.tick().sample(unit.o.payload).until(unit.o.valid)
            results.append((result.mantissa, result.exponent))

    simulator = Simulator(unit)
    simulator.add_clock(1e-8)
    simulator.add_testbench(feed)
    simulator.add_testbench(collect)
    simulator.run()
    return results


def main():
    """Three dot products of 128 elements: hardware, golden and float32."""
    torch.manual_seed(1)
    format, blocks = parse_format("mxint8"), 4
    floats = torch.randn(3, 2, blocks * format.block_size)
    pairs = [(quantize(x, format), quantize(w, format)) for x, w in floats]
    for (x, w), (mantissa, exponent), exact in zip(
        pairs, simulate(pairs, format, blocks), floats.prod(1).sum(-1), strict=True
    ):
        golden = matrix_vector(x, w[None])
        if (mantissa, exponent) != (int(golden.mantissa), int(golden.exponent)):
            raise SystemExit(f"Hardware {mantissa, exponent} differs from golden {golden}")
        value = mantissa * 2.0**exponent
        sys.stdout.write(f"{value:+.4f} in hardware and golden, {exact:+.4f} in float32\n")


if __name__ == "__main__":
    main()
