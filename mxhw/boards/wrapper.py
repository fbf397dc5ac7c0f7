"""Top levels: a decoder behind the host's byte link, and that design on a board."""

from typing import Any

from amaranth.build import ResourceError
from amaranth.hdl import ClockDomain, ClockSignal, Const, Elaboratable, Instance, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer

from mxhw.boards.catalog import Board
from mxhw.boards.clock import EcpPll, Mmcm, solve_ecp5, solve_mmcm
from mxhw.dataflow.frames import LOGITS_PER_BEAT
from mxhw.dataflow.host import HostController
from mxhw.dataflow.link import link, payload_shape
from mxhw.dataflow.logits import LogitsRegroup
from mxhw.dataflow.uart import UartReceiver, UartTransmitter, bit_period
from mxhw.errors import UserError

__all__ = ["DEFAULT_BAUD", "TIMEOUT_BITS", "BoardTop", "HostedDecoder", "achievable_hz"]

DEFAULT_BAUD = 2_000_000
"""Baud rate that is meant where none is given."""

TIMEOUT_BITS = 4096
"""Bits of silence that end an incomplete frame."""


def achievable_hz(board: Board, clock_hz: int) -> int:
    """Return the frequency nearest to ``clock_hz`` that the PLL of a board's device makes.

    Raises
    ------
    ValueError
        If it is off by more than 1 %.
    """
    solve = solve_ecp5 if board.device.family == "ecp5" else solve_mmcm
    return round(solve(board.clock_hz, clock_hz).output_hz)


class HostedDecoder(wiring.Component):
    """A decoder and the host controller that feeds it; also what is simulated.

    Parameters
    ----------
    decoder : :class:`amaranth.lib.wiring.Component`
        Component with streams ``i_step``, ``o_token`` and ``o_logits``, the counterparts of those
        of :class:`~mxhw.dataflow.host.HostController`; its logits may come in other beats.
    vocabulary, context, model_hash, clock_hz, name
        As for the controller.
    baud : int
        Baud rate of the line, which the timeout of incomplete frames depends on.

    Members
    -------
    i_byte, o_byte, line_error, busy
        Those of the controller.
    """

    def __init__(
        self,
        *,
        decoder: Any,
        vocabulary: int,
        context: int,
        model_hash: bytes,
        clock_hz: int,
        baud: int = DEFAULT_BAUD,
        name: str = "mxhw",
    ):
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._host = HostController(
            vocabulary=vocabulary,
            context=context,
            model_hash=model_hash,
            clock_hz=clock_hz,
            timeout_cycles=TIMEOUT_BITS * clock_hz // baud,
            name=name,
        )
        members = self._host.signature.members
        super().__init__({key: members[key] for key in ("i_byte", "o_byte", "line_error", "busy")})

    def elaborate(self, platform):
        """Connect the decoder and the controller."""
        m = Module()
        m.submodules.host = host = self._host
        m.submodules.decoder = decoder = self._decoder
        link(m, wiring.flipped(self.i_byte), host.i_byte)
        link(m, host.o_byte, wiring.flipped(self.o_byte))
        link(m, host.o_step, decoder.i_step)
        link(m, decoder.o_token, host.i_token)
        logits = decoder.o_logits
        lanes = payload_shape(logits).length
        if lanes != LOGITS_PER_BEAT:
            m.submodules.regroup = regroup = LogitsRegroup(
                length=self._vocabulary, lanes_in=lanes, lanes_out=LOGITS_PER_BEAT
            )
            link(m, logits, regroup.i)
            logits = regroup.o
        link(m, logits, host.i_logits)
        m.d.comb += [host.line_error.eq(self.line_error), self.busy.eq(host.busy)]
        return m


class BoardTop(Elaboratable):
    """The whole design on a board: clock, serial port, host controller, decoder and LEDs.

    The domain ``sync`` comes from a PLL and is held in reset until the PLL has locked. LED 0 blinks
    while the clock runs, LED 1 is lit while a request is served, where the board has them.

    Parameters
    ----------
    decoder : :class:`amaranth.lib.wiring.Component`
        As for :class:`HostedDecoder`; so are ``vocabulary``, ``context``, ``model_hash``, ``name``.
    board : Board
        The board.
    clock_hz : int
        Frequency wanted for ``sync``.
    baud : int
        Baud rate of the serial port.

    Attributes
    ----------
    clock_hz : int
        Frequency of ``sync`` that the PLL makes.

    Raises
    ------
    UserError
        If the board has no serial port, or cannot make the frequency or the baud rate.
    """

    def __init__(
        self,
        *,
        decoder: Any,
        vocabulary: int,
        context: int,
        model_hash: bytes,
        board: Board,
        clock_hz: int,
        baud: int = DEFAULT_BAUD,
        name: str = "mxhw",
    ):
        if not board.has_uart:
            raise UserError(f"Board '{board.name}' has no serial port to talk to the host")
        self._board = board
        self._wanted_hz = clock_hz
        self._baud = baud
        try:
            self.clock_hz = achievable_hz(board, clock_hz)
            bit_period(self.clock_hz, baud)
        except ValueError as error:
            raise UserError(f"Board '{board.name}': {error}") from error
        self._parameters = {
            "decoder": decoder,
            "vocabulary": vocabulary,
            "context": context,
            "model_hash": model_hash,
            "clock_hz": self.clock_hz,
            "baud": baud,
            "name": name,
        }

    def elaborate(self, platform):
        """Build the design for a platform of the board."""
        m = Module()
        self._build_clock(m, platform)
        m.submodules.design = design = HostedDecoder(**self._parameters)

        uart = platform.request("uart", 0, dir="-")
        m.submodules.rx_buffer = rx_buffer = io.Buffer(io.Direction.Input, uart.rx)
        m.submodules.tx_buffer = tx_buffer = io.Buffer(io.Direction.Output, uart.tx)
        m.submodules.rx = rx = UartReceiver(clock_hz=self.clock_hz, baud=self._baud)
        m.submodules.tx = tx = UartTransmitter(clock_hz=self.clock_hz, baud=self._baud)
        link(m, rx.o, design.i_byte)
        link(m, design.o_byte, tx.i)
        m.d.comb += [
            rx.rx.eq(rx_buffer.i),
            tx_buffer.o.eq(tx.tx),
            design.line_error.eq(rx.framing_error | rx.overrun),
        ]

        blink = Signal(25)
        m.d.sync += blink.eq(blink + 1)
        for number, light in enumerate((blink[-1], design.busy)):
            try:
                led = platform.request("led", number, dir="-")
            except ResourceError:
                break
            m.submodules[f"led_buffer{number}"] = led_buffer = io.Buffer(io.Direction.Output, led)
            m.d.comb += led_buffer.o.eq(light)
        return m

    def _build_clock(self, m, platform) -> None:
        clock = platform.request(platform.default_clk, dir="-")
        m.submodules.clock_buffer = clock_buffer = io.Buffer(io.Direction.Input, clock)
        reset = Const(0)
        if platform.default_rst is not None:
            button = platform.request(platform.default_rst, dir="-")
            m.submodules.reset_buffer = reset_buffer = io.Buffer(io.Direction.Input, button)
            reset = reset_buffer.i
        kind = EcpPll if self._board.device.family == "ecp5" else Mmcm
        m.submodules.pll = pll = kind(input_hz=self._board.clock_hz, output_hz=self._wanted_hz)
        m.d.comb += pll.clk_i.eq(clock_buffer.i)

        if self._board.device.family == "ecp5":
            # As Amaranth does for its own default domain: the device's global reset, released
            # synchronously, instead of a reset net to every flip-flop.
            m.domains.sync = ClockDomain(reset_less=True)
            stages = [Signal(name=f"running{index}") for index in range(2)]
            inputs = (pll.locked & ~reset, stages[0])
            for index, (source, stage) in enumerate(zip(inputs, stages, strict=True)):
                m.submodules[f"running{index}"] = Instance(
                    "FD1S3AX", p_GSR="DISABLED", i_CK=pll.clk_o, i_D=source, o_Q=stage
                )
            m.submodules.global_reset = Instance("SGSR", i_CLK=pll.clk_o, i_GSR=stages[1])
        else:
            m.domains.sync = ClockDomain()
            m.submodules.reset = ResetSynchronizer(~pll.locked | reset, domain="sync")
        m.d.comb += ClockSignal("sync").eq(pll.clk_o)
