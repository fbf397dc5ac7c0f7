"""What the two engines share: errors, the roles of streams, and the check of raw values."""

import enum
from collections.abc import Iterable

from mxhw.cosim._design import StreamPort
from mxhw.errors import MxhwError, UserError

__all__ = ["Handle", "Role", "SimulationTimeout", "Stop", "StreamContractError", "check_rows"]


class SimulationTimeout(MxhwError):
    """The streams waited for did not finish in the number of cycles allowed."""


class StreamContractError(MxhwError):
    """A stream dropped ``valid`` or changed its payload before the transfer."""


class Role(enum.IntEnum):
    """What the engine does with a stream; the numbers are those of ``driver.cc``."""

    INPUT = 0
    OUTPUT = 1
    PROBE = 2


class Stop(enum.IntEnum):
    """Why a run stopped; the numbers are those of ``driver.cc``."""

    DONE = 0
    LIMIT = 1
    VALID_DROPPED = 2
    PAYLOAD_CHANGED = 3
    ASSERTION = 4


class Handle:
    """A stream known to the engine: its port, its number in the engine and its counts so far."""

    def __init__(self, port: StreamPort, role: Role, number: int) -> None:
        self.port = port
        self.role = role
        self.number = number
        self.requested = 0
        self.taken = 0


def check_rows(rows: Iterable[int], width: int, what: str) -> list[int]:
    """Return ``rows`` as a list, insisting that each fits into ``width`` bits.

    Raises
    ------
    UserError
        If one does not; ``what`` is the subject of the message, with a place for the value.
    """
    checked = list(rows)
    if checked and (min(checked) < 0 or max(checked) >> width):
        wrong = next(row for row in checked if row < 0 or row >> width)
        raise UserError(f"{what.format(wrong)} is not in range(0, 2**{width})")
    return checked
