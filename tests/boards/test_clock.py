from fractions import Fraction

import pytest
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, Signal
from amaranth.sim import Simulator

from mxhw.boards.clock import EcpPll, Mmcm, solve_ecp5, solve_mmcm

MHZ = 1_000_000


@pytest.mark.parametrize("input_mhz", [12, 25, 48, 50, 100])
@pytest.mark.parametrize("output_mhz", [10, 50, 65, 66, 72, 83, 97, 125, 200])
def test_ecp5_settings_keep_the_limits(input_mhz, output_mhz):
    settings = solve_ecp5(input_mhz * MHZ, output_mhz * MHZ)
    detector = Fraction(input_mhz * MHZ, settings.reference_div)
    assert 3_125_000 <= detector <= 400 * MHZ
    assert detector * settings.feedback_div <= 400 * MHZ
    assert settings.vco_hz == detector * settings.feedback_div * settings.primary_div
    assert 400 * MHZ <= settings.vco_hz <= 800 * MHZ
    assert settings.output_hz == settings.vco_hz / settings.output_div
    assert abs(settings.output_hz - output_mhz * MHZ) <= output_mhz * MHZ // 100
    for divider in (settings.reference_div, settings.primary_div, settings.output_div):
        assert 1 <= divider <= 128
    assert 1 <= settings.feedback_div <= 80


def test_ecp5_settings_are_exact_where_they_can_be():
    settings = solve_ecp5(25 * MHZ, 65 * MHZ)
    assert settings.output_hz == 65 * MHZ
    assert (settings.reference_div, settings.feedback_div) == (1, 2)
    assert (settings.primary_div, settings.output_div) == (13, 10)


@pytest.mark.parametrize("output_mhz", [10, 50, 65, 83, 97, 200])
def test_mmcm_settings_keep_the_limits(output_mhz):
    settings = solve_mmcm(100 * MHZ, output_mhz * MHZ)
    assert settings.vco_hz == 100 * MHZ * settings.multiplier / settings.reference_div
    assert 600 * MHZ <= settings.vco_hz <= 1200 * MHZ
    assert settings.output_hz == settings.vco_hz / settings.output_div
    assert abs(settings.output_hz - output_mhz * MHZ) <= output_mhz * MHZ // 100
    assert 2 <= settings.multiplier <= 64
    assert (8 * settings.multiplier).denominator == 1
    assert (8 * settings.output_div).denominator == 1


@pytest.mark.parametrize(
    ("solve", "input_hz", "output_hz", "message"),
    [
        (solve_ecp5, 25 * MHZ, 500 * MHZ, "No PLL setting makes 500000000 Hz from 25000000 Hz"),
        (solve_ecp5, 5 * MHZ, 50 * MHZ, "No PLL setting makes 50000000 Hz from 5000000 Hz"),
        (solve_mmcm, 100 * MHZ, 1 * MHZ, "No PLL setting makes 1000000 Hz from 100000000 Hz"),
        (solve_ecp5, 0, 1, "Input frequency must be a positive integer, not 0"),
        (solve_mmcm, 1, 2.5, "Output frequency must be a positive integer, not 2.5"),
    ],
)
def test_unreachable(solve, input_hz, output_hz, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        solve(input_hz, output_hz)


@pytest.mark.parametrize("kind", [EcpPll, Mmcm])
def test_clock_passes_through_in_simulation(kind):
    pll = kind(input_hz=100 * MHZ, output_hz=65 * MHZ)
    assert pll.output_hz == 65 * MHZ

    class Top(Elaboratable):
        count = Signal(8)

        def elaborate(self, platform):
            m = Module()
            m.domains.made = ClockDomain(reset_less=True)
            m.submodules.pll = pll
            m.d.comb += [pll.clk_i.eq(ClockSignal("sync")), ClockSignal("made").eq(pll.clk_o)]
            m.d.made += self.count.eq(self.count + 1)
            # The domain of the simulator's clock.
            m.d.sync += Signal(name="unused").eq(1)
            return m

    top = Top()

    async def bench(ctx):
        await ctx.tick().repeat(10)
        await ctx.delay(1e-9)
        assert ctx.get(pll.locked)
        assert ctx.get(top.count) == 10

    sim = Simulator(top)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
