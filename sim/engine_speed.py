"""Measure the speed of both simulation engines on a multiply-accumulate unit.

Usage: ``python sim/engine_speed.py --json FILE [--lanes 32] [--cycles 500000]``
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.cosim.engine import make_engine


class Dot(wiring.Component):
    """Products of ``lanes`` pairs of int8, a registered adder tree and an accumulator."""

    def __init__(self, lanes):
        self.lanes = lanes
        vector = data.ArrayLayout(signed(8), lanes)
        pair = data.StructLayout({"a": vector, "b": vector})
        super().__init__({"i": In(stream.Signature(pair)), "o": Out(stream.Signature(signed(32)))})

    def elaborate(self, platform):
        """Elaborate the unit; one transfer per cycle."""
        m = Module()
        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        level = [self.i.payload.a[k] * self.i.payload.b[k] for k in range(self.lanes)]
        valid = self.i.valid
        while True:
            registers = [
                Signal.like(item, name=f"level_{len(level)}_{k}") for k, item in enumerate(level)
            ]
            moved = Signal(name=f"valid_{len(level)}")
            with m.If(step):
                m.d.sync += moved.eq(valid)
                m.d.sync += [left.eq(right) for left, right in zip(registers, level, strict=True)]
            level, valid = registers, moved
            if len(level) == 1:
                break
            level = [left + right for left, right in zip(level[::2], level[1::2], strict=True)]
        with m.If(step):
            m.d.sync += self.o.valid.eq(valid)
            with m.If(valid):
                m.d.sync += self.o.payload.eq(self.o.payload + level[0])
        return m


def measure(lanes, engine, count):
    """Return the seconds of set-up, the cycles, the seconds of running and the last result."""
    rng = random.Random(1)
    payloads = [rng.getrandbits(16 * lanes) for _ in range(count)]
    start = time.perf_counter()
    with make_engine(Dot(lanes), engine) as sim:
        setup = time.perf_counter() - start
        sim.put("i", payloads)
        sim.collect("o", count)
        # Time of the processor: both engines use one thread, and the machine may have other work.
        start = time.process_time()
        sim.run_until(timeout_cycles=4 * count + 100)
        return setup, sim.cycles, time.process_time() - start, sim.take("o")[:1000]


def main():
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--lanes", type=int, default=32, help="lanes, a power of two")
    parser.add_argument("--cycles", type=int, default=500_000, help="transfers in native code")
    arguments = parser.parse_args()
    figures = {"lanes": arguments.lanes}
    results = []
    for engine, count in (
        ("pysim", max(1000, arguments.cycles // 200)),
        ("cxxrtl", arguments.cycles),
    ):
        setup, cycles, seconds, rows = measure(arguments.lanes, engine, count)
        results.append(rows)
        figures[engine] = {
            "setup_s": round(setup, 3),
            "cycles": cycles,
            "cycles_per_s": round(cycles / seconds),
        }
        print(f"{engine}: {cycles / seconds:,.0f} cycles/s, set-up {setup:.2f} s")
    figures["ratio"] = round(
        figures["cxxrtl"]["cycles_per_s"] / figures["pysim"]["cycles_per_s"], 1
    )
    print(f"ratio: {figures['ratio']}")
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if results[0] != results[1]:
        sys.exit("The engines disagree")


if __name__ == "__main__":
    main()
