"""Clock generation: PLL settings in exact arithmetic, and components around the primitives."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from amaranth.hdl import Const, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["EcpPll", "EcpPllSettings", "Mmcm", "MmcmSettings", "solve_ecp5", "solve_mmcm"]

_MHZ = 1_000_000
_TOLERANCE = Fraction(1, 100)


@dataclass(frozen=True)
class EcpPllSettings:
    """Dividers of an EHXPLLL: ``output = input / reference * feedback * primary / output_div``.

    The primary output closes the loop; the output is the secondary one. Frequencies are exact.
    """

    reference_div: int
    feedback_div: int
    primary_div: int
    output_div: int
    vco_hz: Fraction
    output_hz: Fraction


@dataclass(frozen=True)
class MmcmSettings:
    """Dividers of an MMCME2: ``output = input / reference * multiplier / output_div``."""

    reference_div: int
    multiplier: Fraction
    output_div: Fraction
    vco_hz: Fraction
    output_hz: Fraction


def _check(input_hz: int, output_hz: int) -> None:
    for name, value in (("Input", input_hz), ("Output", output_hz)):
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"{name} frequency must be a positive integer, not {value!r}")


def _best(candidates, input_hz: int, output_hz: int):
    # Nearest frequency; then the lower one; then the fastest phase detector and VCO.
    def cost(settings):
        error = abs(settings.output_hz - output_hz)
        return error, settings.output_hz, settings.reference_div, -settings.vco_hz

    best = min(candidates, key=cost, default=None)
    if best is None or abs(best.output_hz - output_hz) > output_hz * _TOLERANCE:
        nearest = "" if best is None else f": the nearest is {float(best.output_hz):.0f} Hz"
        raise ValueError(f"No PLL setting makes {output_hz} Hz from {input_hz} Hz{nearest}")
    return best


def solve_ecp5(input_hz: int, output_hz: int) -> EcpPllSettings:
    """Return the dividers of an ECP5 PLL that come nearest to a frequency.

    Keeps to the limits of the data sheet: input 8 to 400 MHz, phase detector 3.125 to 400 MHz, VCO
    400 to 800 MHz, output 3.125 to 400 MHz.

    Raises
    ------
    ValueError
        If no setting comes within 1 %.
    """
    _check(input_hz, output_hz)
    return _best(_ecp5_candidates(input_hz, output_hz), input_hz, output_hz)


def _ecp5_candidates(input_hz: int, output_hz: int) -> Iterator[EcpPllSettings]:
    lowest = Fraction(25, 8) * _MHZ
    if not 8 * _MHZ <= input_hz <= 400 * _MHZ or not lowest <= output_hz <= 400 * _MHZ:
        return
    for reference in range(1, 129):
        detector = Fraction(input_hz, reference)
        if detector < lowest:
            break
        # The product of feedback and primary divider is all that matters to the frequency.
        least = -(-400 * _MHZ // detector)
        most = 800 * _MHZ // detector
        for product in range(int(least), int(most) + 1):
            vco = detector * product
            exact = vco / output_hz
            for output in {int(exact), int(exact) + 1}:
                primary = _split(product, detector, output)
                if primary and 1 <= output <= 128 and lowest <= vco / output <= 400 * _MHZ:
                    yield EcpPllSettings(
                        reference, product // primary, primary, output, vco, vco / output
                    )


def _split(product: int, detector: Fraction, output: int) -> int | None:
    """Return the divider of the primary output nearest to ``output`` that closes the loop."""
    primaries = []
    for primary in range(1, 129):
        feedback, rest = divmod(product, primary)
        # The primary output runs at the detector's frequency times the feedback divider.
        if rest == 0 and feedback <= 80 and detector * feedback <= 400 * _MHZ:
            primaries.append(primary)
    return min(primaries, key=lambda primary: abs(primary - output), default=None)


def solve_mmcm(input_hz: int, output_hz: int) -> MmcmSettings:
    """Return the dividers of a 7-series MMCM that come nearest to a frequency.

    Keeps to the limits of the slowest speed grade: input 10 to 800 MHz, phase detector 10 to 450
    MHz, VCO 600 to 1200 MHz, output 4.69 to 800 MHz. Multiplier and output divider go in eighths.

    Raises
    ------
    ValueError
        If no setting comes within 1 %.
    """
    _check(input_hz, output_hz)
    return _best(_mmcm_candidates(input_hz, output_hz), input_hz, output_hz)


def _mmcm_candidates(input_hz: int, output_hz: int) -> Iterator[MmcmSettings]:
    if not 10 * _MHZ <= input_hz <= 800 * _MHZ or not 4_690_000 <= output_hz <= 800 * _MHZ:
        return
    for reference in range(1, 107):
        detector = Fraction(input_hz, reference)
        if detector > 450 * _MHZ:
            continue
        if detector < 10 * _MHZ:
            break
        for eighths in range(16, 513):
            vco = detector * eighths / 8
            if not 600 * _MHZ <= vco <= 1200 * _MHZ:
                continue
            exact = 8 * vco / output_hz
            for output in {int(exact), int(exact) + 1}:
                # The divider is 1, or 2 to 128 in eighths.
                if output == 8 or 16 <= output <= 1024:
                    divider = Fraction(output, 8)
                    yield MmcmSettings(reference, Fraction(eighths, 8), divider, vco, vco / divider)


class _ClockGenerator(wiring.Component):
    def __init__(self, input_hz: int, settings) -> None:
        self.input_hz = input_hz
        self.settings = settings
        super().__init__({"clk_i": In(1), "clk_o": Out(1), "locked": Out(1)})

    @property
    def output_hz(self) -> int:
        """Frequency that is made, rounded to whole hertz."""
        return round(self.settings.output_hz)

    def elaborate(self, platform):
        m = Module()
        if platform is None:
            # In simulation, the clock that is wanted is the one that comes in.
            m.d.comb += [self.clk_o.eq(self.clk_i), self.locked.eq(1)]
            return m
        clk = Signal(name="clk_pll")
        m.submodules.pll = self._instance(m, clk)
        m.d.comb += self.clk_o.eq(clk)
        platform.add_clock_constraint(clk, float(self.settings.output_hz))
        return m


class EcpPll(_ClockGenerator):
    """PLL of an ECP5 (EHXPLLL).

    Without a platform, the clock passes through and ``locked`` is high.

    Parameters
    ----------
    input_hz, output_hz : int
        Frequency of the clock that comes in, and of the one wanted.

    Members
    -------
    clk_i : In(1)
        Clock that comes in.
    clk_o : Out(1)
        Clock that is made.
    locked : Out(1)
        The clock is stable.

    Attributes
    ----------
    settings : EcpPllSettings
        The dividers.
    output_hz : int
        Frequency that is made.

    Raises
    ------
    ValueError
        If no setting comes within 1 % of the frequency.

    Cost: one EHXPLLL.
    """

    def __init__(self, *, input_hz: int, output_hz: int):
        super().__init__(input_hz, solve_ecp5(input_hz, output_hz))

    def _instance(self, m: Module, clk: Signal) -> Instance:
        settings = self.settings
        feedback = Signal()
        return Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{self.input_hz / _MHZ:.6f}",
            a_FREQUENCY_PIN_CLKOS=f"{float(settings.output_hz) / _MHZ:.6f}",
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC",
            p_OUTDIVIDER_MUXD="DIVD",
            p_CLKI_DIV=settings.reference_div,
            p_CLKFB_DIV=settings.feedback_div,
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=settings.primary_div,
            p_CLKOP_CPHASE=settings.primary_div - 1,
            p_CLKOP_FPHASE=0,
            p_CLKOS_ENABLE="ENABLED",
            p_CLKOS_DIV=settings.output_div,
            p_CLKOS_CPHASE=settings.output_div - 1,
            p_CLKOS_FPHASE=0,
            p_FEEDBK_PATH="CLKOP",
            i_CLKI=self.clk_i,
            i_CLKFB=feedback,
            i_RST=Const(0),
            i_STDBY=Const(0),
            i_PHASESEL0=Const(0),
            i_PHASESEL1=Const(0),
            i_PHASEDIR=Const(1),
            i_PHASESTEP=Const(1),
            i_PHASELOADREG=Const(1),
            i_PLLWAKESYNC=Const(0),
            i_ENCLKOP=Const(0),
            i_ENCLKOS=Const(0),
            o_CLKOP=feedback,
            o_CLKOS=clk,
            o_LOCK=self.locked,
        )


class Mmcm(_ClockGenerator):
    """Clock manager of a Xilinx 7-series device (MMCME2_BASE and a BUFG).

    Parameters, members, attributes and errors are those of :class:`EcpPll`.

    Cost: one MMCME2 and two BUFG.
    """

    def __init__(self, *, input_hz: int, output_hz: int):
        super().__init__(input_hz, solve_mmcm(input_hz, output_hz))

    def _instance(self, m: Module, clk: Signal) -> Instance:
        settings = self.settings
        feedback = Signal()
        feedback_buffered = Signal()
        raw = Signal()
        m.submodules.feedback_buffer = Instance("BUFG", i_I=feedback, o_O=feedback_buffered)
        m.submodules.clock_buffer = Instance("BUFG", i_I=raw, o_O=clk)
        return Instance(
            "MMCME2_BASE",
            p_CLKIN1_PERIOD=1e9 / self.input_hz,
            p_DIVCLK_DIVIDE=settings.reference_div,
            p_CLKFBOUT_MULT_F=float(settings.multiplier),
            p_CLKOUT0_DIVIDE_F=float(settings.output_div),
            i_CLKIN1=self.clk_i,
            i_CLKFBIN=feedback_buffered,
            i_PWRDWN=Const(0),
            i_RST=Const(0),
            o_CLKFBOUT=feedback,
            o_CLKOUT0=raw,
            o_LOCKED=self.locked,
        )
