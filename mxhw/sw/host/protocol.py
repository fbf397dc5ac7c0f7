"""Frames of the link between host and design: the one description that both sides are built from.

A frame is the sync byte ``0xA5``, a type byte, the payload's length (2 bytes), the payload, and a
CRC-16 (2 bytes) over all of it but the sync byte. Multi-byte numbers are little-endian throughout,
and the CRC is the reflected CCITT one known as X.25 (CRC16_IBM_SDLC of Amaranth's catalog).

Requests come from the host and replies from the design; ``docs/reference/host-protocol.md`` tells
which reply belongs to which request. :mod:`mxhw.dataflow.host` is the design's side and
:mod:`mxhw.sw.host.client` the host's.
"""

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "FRAME_OVERHEAD",
    "GENERATE_FORMAT",
    "LOGIT_FRACTION_BITS",
    "PROTOCOL_VERSION",
    "SYNC",
    "Capability",
    "DoneReply",
    "ErrorCode",
    "ErrorReply",
    "Frame",
    "FrameDecoder",
    "GenerateFlag",
    "Identity",
    "Reply",
    "Request",
    "RunState",
    "Status",
    "StatusFlag",
    "StatusReply",
    "TokenReply",
    "crc16",
    "encode_frame",
    "pack_generate",
    "pack_tokens",
    "unpack_logits",
]

PROTOCOL_VERSION = 1
"""Version of this description; the design states its own in :class:`Identity`."""

SYNC = 0xA5
"""First byte of every frame."""

FRAME_OVERHEAD = 6
"""Bytes of a frame that are not payload."""

LOGIT_FRACTION_BITS = 12
"""Logits are signed 32-bit numbers in units of ``2**-12``."""

GENERATE_FORMAT = "<HHH"
"""Payload of :attr:`Request.GENERATE`: count, :class:`GenerateFlag`, stop token."""


class Request(enum.IntEnum):
    """Types of the frames from the host."""

    IDENTIFY = 0x01
    RESET = 0x02
    PROMPT = 0x03
    GENERATE = 0x04
    STEP = 0x05
    STATUS = 0x06
    STOP = 0x07


class Reply(enum.IntEnum):
    """Types of the frames from the design."""

    IDENTITY = 0x81
    DONE = 0x82
    TOKEN = 0x83
    LOGITS = 0x84
    STATUS = 0x85
    ERROR = 0x8F


class GenerateFlag(enum.IntFlag):
    """Options of :attr:`Request.GENERATE`."""

    LOGITS = 1
    STOP_TOKEN = 2


class Capability(enum.IntFlag):
    """What a design can do, in :class:`Identity`."""

    LOGITS = 1


class Status(enum.IntEnum):
    """Why a request ended, in :class:`DoneReply`."""

    COMPLETE = 0
    CONTEXT_FULL = 1
    STOP_TOKEN = 2
    STOPPED = 3


class ErrorCode(enum.IntEnum):
    """Why a request was refused, in :class:`ErrorReply`; nothing of the request was acted upon."""

    BAD_CRC = 1
    BAD_LENGTH = 2
    UNKNOWN_TYPE = 3
    PROMPT_TOO_LONG = 4
    TOKEN_RANGE = 5
    BUSY = 6
    TRUNCATED = 7
    NOISE = 8
    NO_TOKEN = 9
    BAD_FLAGS = 10


class RunState(enum.IntEnum):
    """What the design is doing, in :class:`StatusReply`."""

    IDLE = 0
    PROMPT = 1
    GENERATE = 2
    STEP = 3


class StatusFlag(enum.IntFlag):
    """Conditions in :class:`StatusReply`."""

    TOKEN_WAITING = 1


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x8408 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _make_table()


def crc16(data: bytes) -> int:
    """Return the CRC-16/X.25 of ``data``."""
    crc = 0xFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFF


def encode_frame(kind: int, payload: bytes = b"") -> bytes:
    """Return the bytes of a frame.

    Raises
    ------
    ValueError
        If the payload does not fit into a frame.
    """
    if len(payload) > 0xFFFF:
        raise ValueError(f"Payload of a frame must have at most 65535 bytes, not {len(payload)}")
    body = struct.pack("<BH", kind, len(payload)) + payload
    return bytes([SYNC]) + body + struct.pack("<H", crc16(body))


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """Return token ids as the payload of :attr:`Request.PROMPT` or :attr:`Request.STEP`."""
    tokens = list(tokens)
    return struct.pack(f"<{len(tokens)}H", *tokens)


def pack_generate(count: int, *, logits: bool = False, stop_token: int | None = None) -> bytes:
    """Return the payload of :attr:`Request.GENERATE`."""
    flags = GenerateFlag(0)
    if logits:
        flags |= GenerateFlag.LOGITS
    if stop_token is not None:
        flags |= GenerateFlag.STOP_TOKEN
    return struct.pack(GENERATE_FORMAT, count, flags, stop_token or 0)


def unpack_logits(payload: bytes) -> tuple[float, ...]:
    """Return the logits in the payload of :attr:`Reply.LOGITS`."""
    raw = struct.unpack(f"<{len(payload) // 4}i", payload)
    return tuple(value / (1 << LOGIT_FRACTION_BITS) for value in raw)


@dataclass(frozen=True)
class Frame:
    """A frame that arrived whole: its type and its payload."""

    kind: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes of the frame."""
        return encode_frame(self.kind, self.payload)


@dataclass(frozen=True)
class Identity:
    """Payload of :attr:`Reply.IDENTITY`: the design and the model in it."""

    FORMAT = "<BBHH8sI"

    vocabulary: int
    context: int
    model_hash: bytes
    clock_hz: int
    capabilities: Capability = Capability.LOGITS
    protocol_version: int = PROTOCOL_VERSION
    name: str = "mxhw"

    def encode(self) -> bytes:
        """Return the payload."""
        fixed = struct.pack(
            self.FORMAT,
            self.protocol_version,
            self.capabilities,
            self.vocabulary,
            self.context,
            self.model_hash,
            self.clock_hz,
        )
        return fixed + self.name.encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Identity":
        """Return the identity in a payload; raises ValueError if it is malformed."""
        size = struct.calcsize(cls.FORMAT)
        if len(payload) < size:
            raise ValueError(f"Identity must have at least {size} bytes, not {len(payload)}")
        version, flags, vocabulary, context, model_hash, clock_hz = struct.unpack_from(
            cls.FORMAT, payload
        )
        return cls(
            vocabulary=vocabulary,
            context=context,
            model_hash=model_hash,
            clock_hz=clock_hz,
            capabilities=Capability(flags),
            protocol_version=version,
            name=payload[size:].decode("utf-8", "replace"),
        )


@dataclass(frozen=True)
class DoneReply:
    """Payload of :attr:`Reply.DONE`: how the request of type ``request`` ended.

    ``count`` is the number of tokens that were fed (PROMPT) or produced (GENERATE, STEP). Of the
    ``cycles`` since the request was accepted, ``wait_cycles`` passed waiting for the decoder.
    """

    FORMAT = "<BBHII"

    request: int
    status: Status
    count: int
    cycles: int
    wait_cycles: int

    @classmethod
    def decode(cls, payload: bytes) -> "DoneReply":
        """Return the reply in a payload; raises ValueError if it is malformed."""
        request, status, count, cycles, wait = _unpack(cls, payload)
        return cls(request, Status(status), count, cycles, wait)


@dataclass(frozen=True)
class TokenReply:
    """Payload of :attr:`Reply.TOKEN`: a token that was produced, and its position.

    A position equal to the context says that the token has no place left in it.
    """

    FORMAT = "<HH"

    token: int
    position: int

    @classmethod
    def decode(cls, payload: bytes) -> "TokenReply":
        """Return the reply in a payload; raises ValueError if it is malformed."""
        return cls(*_unpack(cls, payload))


@dataclass(frozen=True)
class StatusReply:
    """Payload of :attr:`Reply.STATUS`.

    ``position`` is the number of places of the context in use. The counters wrap around at 65536:
    frames with a wrong CRC, frames broken in other ways, and bytes that the line lost (framing
    errors and overruns).
    """

    FORMAT = "<BBHHHH"

    state: RunState
    flags: StatusFlag
    position: int
    crc_errors: int
    frame_errors: int
    line_errors: int

    @classmethod
    def decode(cls, payload: bytes) -> "StatusReply":
        """Return the reply in a payload; raises ValueError if it is malformed."""
        state, flags, position, crc_errors, frame_errors, line_errors = _unpack(cls, payload)
        return cls(
            RunState(state), StatusFlag(flags), position, crc_errors, frame_errors, line_errors
        )


@dataclass(frozen=True)
class ErrorReply:
    """Payload of :attr:`Reply.ERROR`.

    ``request`` is the type byte as received, 0 where there was none. ``detail`` is the length
    received (BAD_LENGTH), the places left (PROMPT_TOO_LONG), the index of the token in the prompt
    (TOKEN_RANGE), and 0 for other codes.
    """

    FORMAT = "<BBH"

    code: ErrorCode
    request: int
    detail: int

    @classmethod
    def decode(cls, payload: bytes) -> "ErrorReply":
        """Return the reply in a payload; raises ValueError if it is malformed."""
        code, request, detail = _unpack(cls, payload)
        return cls(ErrorCode(code), request, detail)


def _unpack(cls: type, payload: bytes) -> tuple[int, ...]:
    size = struct.calcsize(cls.FORMAT)
    if len(payload) != size:
        raise ValueError(f"{cls.__name__} must have {size} bytes, not {len(payload)}")
    return struct.unpack(cls.FORMAT, payload)


class FrameDecoder:
    """Finds the frames in a stream of bytes.

    Bytes that belong to no frame are skipped. Where a frame turns out to be broken, the search goes
    on directly after its sync byte, so that a frame that follows is not lost.

    Attributes
    ----------
    skipped : int
        Bytes that belonged to no frame so far.
    """

    def __init__(self, *, max_payload: int = 0xFFFF) -> None:
        self._max_payload = max_payload
        self._data = bytearray()
        self.skipped = 0

    @property
    def wanted(self) -> int:
        """Number of bytes, at least one, that the present frame certainly still lacks."""
        size = FRAME_OVERHEAD
        if len(self._data) >= 4:
            size += struct.unpack_from("<H", self._data, 2)[0]
        return max(1, size - len(self._data))

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes and return the frames that are complete with them."""
        self._data += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    @property
    def has_begun(self) -> bool:
        """Whether there are bytes of a frame that is not complete."""
        return bool(self._data)

    def give_up(self) -> list[Frame]:
        """Take the frame that has begun as broken and return those among its bytes."""
        self._skip(min(1, len(self._data)))
        return self.feed(b"")

    def flush(self) -> None:
        """Forget a frame that has begun."""
        self.skipped += len(self._data)
        self._data.clear()

    def _skip(self, count: int) -> None:
        self.skipped += count
        del self._data[:count]

    def _next(self) -> Frame | None:
        while True:
            start = self._data.find(SYNC)
            self._skip(len(self._data) if start < 0 else start)
            if len(self._data) < FRAME_OVERHEAD:
                return None
            kind, length = struct.unpack_from("<BH", self._data, 1)
            if length > self._max_payload:
                self._skip(1)
                continue
            if len(self._data) < FRAME_OVERHEAD + length:
                return None
            body = bytes(self._data[1 : 4 + length])
            (crc,) = struct.unpack_from("<H", self._data, 4 + length)
            if crc != crc16(body):
                self._skip(1)
                continue
            del self._data[: FRAME_OVERHEAD + length]
            return Frame(kind, body[3:])
