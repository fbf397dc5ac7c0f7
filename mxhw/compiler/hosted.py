"""A build's design behind the host's link, as it is simulated."""

from mxhw.boards.wrapper import HostedDecoder, achievable_hz
from mxhw.compiler.context import Context
from mxhw.errors import UserError

__all__ = ["SIMULATED_BITS_A_CYCLE", "clock_hz", "hosted_decoder"]

SIMULATED_BITS_A_CYCLE = 0.5
"""Rate that a simulated design takes its line to have, which decides how long a silence ends an
incomplete frame: 8192 cycles. There is no line in a simulation, and waiting costs real time."""


def clock_hz(context: Context) -> int:
    """Clock that the PLL of the settings' board makes.

    Raises
    ------
    UserError
        If it cannot make one near the clock asked for.
    """
    wanted = context.settings.clock_mhz
    try:
        return achievable_hz(context.board, round(wanted * 1e6))
    except ValueError as error:
        raise UserError(
            f"Clock of {wanted:g} MHz cannot be made on {context.board.name!r}: {error}"
        ) from error


def hosted_decoder(context: Context) -> HostedDecoder:
    """The decoder and the controller that serves a host, for simulation; without a serial line."""
    frequency = clock_hz(context)
    return HostedDecoder(
        decoder=context.component(),
        vocabulary=context.config.vocabulary_size,
        context=context.config.context,
        model_hash=context.model_hash,
        clock_hz=frequency,
        baud=round(frequency * SIMULATED_BITS_A_CYCLE),
        name=context.design_name,
    )
