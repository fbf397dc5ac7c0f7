"""Client for a design behind a byte link: a serial port, or a simulation of the design.

A transport is any object with the two methods of a :class:`serial.Serial` that are used here:
``write(data)`` and ``read(size)``, which returns at most ``size`` bytes and, when nothing comes
for its own short timeout, fewer or none.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import serial

from mxhw.errors import MxhwError, UserError
from mxhw.sw.host.protocol import (
    PROTOCOL_VERSION,
    DoneReply,
    ErrorCode,
    ErrorReply,
    Frame,
    FrameDecoder,
    Identity,
    Reply,
    Request,
    Status,
    StatusReply,
    TokenReply,
    encode_frame,
    pack_generate,
    pack_tokens,
    unpack_logits,
)

__all__ = [
    "EngineTransport",
    "GeneratedToken",
    "Generation",
    "LinkError",
    "MxhwClient",
    "Transport",
    "open_serial",
]

_RETRIES = 2
_READ_BYTES = 4096
_SHORT_PAYLOAD = 256
_LOGIT_BYTES = 4
# A whole context of tokens with their logits, which an earlier client left, takes less.
_DRAIN_SECONDS = 20.0
# A frame that stops for so long has lost bytes: an interrupted read drops what it had.
_GAP_SECONDS = 1.0
_NOISE_BYTES = 1 << 16
_NOISE = f"What answers is not a design of mxhw: {_NOISE_BYTES} bytes came, but no frame"
_LINK_ERRORS = (
    ErrorCode.BAD_CRC,
    ErrorCode.BAD_LENGTH,
    ErrorCode.UNKNOWN_TYPE,
    ErrorCode.TRUNCATED,
    ErrorCode.NOISE,
)


class LinkError(MxhwError):
    """The link to the design is broken, or the design does not answer as it should."""

    exit_status = 2


class Transport(Protocol):
    """The two methods of a serial port that the client uses."""

    def write(self, data: bytes, /) -> Any:
        """Send bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; fewer or none if they do not come in time."""
        ...


@dataclass(frozen=True)
class GeneratedToken:
    """A token that the design produced, its position, and its logits where they were asked for."""

    token: int
    position: int
    logits: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Generation:
    """What a generation gave: its tokens, why it ended, and its clock cycles."""

    tokens: tuple[GeneratedToken, ...]
    status: Status
    cycles: int
    wait_cycles: int


class EngineTransport:
    """Transport over a simulation of a design with streams ``i_byte`` and ``o_byte``.

    Parameters
    ----------
    engine : :class:`mxhw.cosim.engine.Engine`
        The running simulation.
    read_cycles : int
        Clock cycles that a read waits for its bytes.
    i_byte, o_byte : str
        Names of the two streams.
    """

    _SLICE = 64

    def __init__(
        self,
        engine: Any,
        *,
        read_cycles: int = 100_000,
        i_byte: str = "i_byte",
        o_byte: str = "o_byte",
    ) -> None:
        self._engine = engine
        self._read_cycles = read_cycles
        self._i_byte = i_byte
        self._o_byte = o_byte
        self._taken = 0
        engine.collect(o_byte, 1 << 30)

    def write(self, data: bytes, /) -> int:
        """Queue bytes for the design."""
        self._engine.put(self._i_byte, list(data))
        return len(data)

    def read(self, size: int, /) -> bytes:
        """Run the clock until ``size`` bytes are there or ``read_cycles`` are over."""
        left = self._read_cycles
        while (ready := self._ready()) < size and left > 0:
            self._engine.run(min(left, self._SLICE))
            left -= self._SLICE
        data = bytes(self._engine.take(self._o_byte, min(size, ready)))
        self._taken += len(data)
        return data

    def _ready(self) -> int:
        return self._engine.transfers(self._o_byte) - self._taken


def open_serial(port: str, *, baud: int, timeout_s: float = 0.2) -> serial.SerialBase:
    """Open a serial port as a transport.

    Parameters
    ----------
    port : str
        Device, or an URL that pyserial knows: ``socket://HOST:PORT`` for example.
    baud : int
        Baud rate.
    timeout_s : float
        Seconds that a read waits for its bytes.

    Raises
    ------
    UserError
        If the port cannot be opened.
    """
    try:
        return serial.serial_for_url(port, baudrate=baud, timeout=timeout_s, write_timeout=5.0)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else error
        raise UserError(f"Serial port '{port}' cannot be opened: {reason}") from error


class MxhwClient:
    """Talks to a design.

    Parameters
    ----------
    transport : :class:`Transport`
        An open serial port, or what behaves like one.
    timeout_s : float
        Seconds without a byte after which an answer is given up.
    model_hash : bytes, optional
        The model that must be in the design; checked before the first other request.

    Attributes
    ----------
    cycles : int
        Clock cycles of the design for the latest request that it has counted (PROMPT, GENERATE or
        STEP).
    line_bytes : int
        Bytes sent and received so far.

    Raises
    ------
    LinkError
        By every method: if the design does not answer, answers something that is no answer, or
        reports that the request arrived broken. A request that arrived broken was not acted upon;
        IDENTIFY, STATUS, RESET and STOP are then sent again.
    UserError
        By every method: if the design refuses the request, or holds another model.
    """

    def __init__(
        self, transport: Transport, *, timeout_s: float = 5.0, model_hash: bytes | None = None
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._model_hash = model_hash
        self._decoder = FrameDecoder(max_payload=_SHORT_PAYLOAD)
        self._frames: list[Frame] = []
        self._identity: Identity | None = None
        self.cycles = 0
        self.line_bytes = 0

    @property
    def identity(self) -> Identity:
        """The design, asked once."""
        return self._identity or self.identify()

    def identify(self) -> Identity:
        """Ask the design what it is, and check that this client can talk to it."""
        self._drain()
        frame = self._ask(Request.IDENTIFY, Reply.IDENTITY)
        identity = _decode(Identity, frame)
        if identity.protocol_version != PROTOCOL_VERSION:
            raise UserError(
                f"The design speaks protocol version {identity.protocol_version}, this program "
                f"version {PROTOCOL_VERSION}"
            )
        if self._model_hash is not None and identity.model_hash != self._model_hash:
            raise UserError(
                f"The design holds model {identity.model_hash.hex()}, not "
                f"{self._model_hash.hex()}: build and load it again"
            )
        self._identity = identity
        # No frame of this design is longer than its logits.
        longest = max(_SHORT_PAYLOAD, _LOGIT_BYTES * identity.vocabulary)
        self._decoder = FrameDecoder(max_payload=longest)
        return identity

    def reset(self) -> None:
        """Forget the context; a request that is being served ends first."""
        self._check_identity()
        self._ask(Request.RESET, Reply.DONE)

    def stop(self) -> None:
        """End the request that is being served, after its present token; keep the context."""
        self._check_identity()
        self._ask(Request.STOP, Reply.DONE)

    def status(self) -> StatusReply:
        """Ask for state, position and error counters."""
        self._check_identity()
        return _decode(StatusReply, self._ask(Request.STATUS, Reply.STATUS))

    def prompt(self, tokens: Iterable[int]) -> DoneReply:
        """Append tokens to the context.

        The last one is run only when the next request tells what follows it.
        """
        tokens = self._check_tokens(tokens)
        if not tokens:
            raise UserError("A prompt must have at least one token")
        self._send(Request.PROMPT, pack_tokens(tokens))
        *_, frame = self._replies(Request.PROMPT)
        return _decode(DoneReply, frame)

    def generate(
        self,
        count: int,
        *,
        logits: bool = False,
        stop_token: int | None = None,
        on_token: Callable[[GeneratedToken], None] | None = None,
    ) -> Generation:
        """Let the design produce up to ``count`` tokens, each the likeliest one.

        Parameters
        ----------
        count : int
            Number of tokens, at most 65535.
        logits : bool
            Also return the logits that each token was chosen by.
        stop_token : int, optional
            End after this token.
        on_token : callable, optional
            Called with each token as it arrives.
        """
        self._check_identity()
        if not 0 <= count <= 0xFFFF:
            raise UserError(f"Number of tokens must be from 0 to 65535, not {count}")
        if stop_token is not None:
            self._check_tokens([stop_token])
        self._send(Request.GENERATE, pack_generate(count, logits=logits, stop_token=stop_token))
        tokens: list[GeneratedToken] = []
        values: tuple[float, ...] | None = None
        for frame in self._replies(Request.GENERATE):
            if frame.kind == Reply.LOGITS:
                values = self._unpack_logits(frame)
            elif frame.kind == Reply.TOKEN:
                reply = _decode(TokenReply, frame)
                if reply.token >= self.identity.vocabulary:
                    raise LinkError(
                        f"The design sent token {reply.token}, which is not in its vocabulary"
                    )
                if logits and values is None:
                    raise LinkError("The logits of a token did not arrive")
                tokens.append(GeneratedToken(reply.token, reply.position, values))
                values = None
                if on_token is not None:
                    self._call(on_token, tokens[-1])
            else:
                done = _decode(DoneReply, frame)
                if done.count != len(tokens):
                    raise LinkError(
                        f"The design sent {done.count} tokens, of which {len(tokens)} arrived"
                    )
                return Generation(tuple(tokens), done.status, done.cycles, done.wait_cycles)
        raise LinkError("The design ended a generation without saying so")

    def step(self, token: int) -> tuple[float, ...]:
        """Append one token to the context and return the logits of the one after it.

        The choice is the caller's: the next token is the next call's.
        """
        (token,) = self._check_tokens([token])
        self._send(Request.STEP, pack_tokens([token]))
        values: tuple[float, ...] | None = None
        for frame in self._replies(Request.STEP):
            if frame.kind == Reply.LOGITS:
                values = self._unpack_logits(frame)
        if values is None:
            raise LinkError("The logits of a step did not arrive")
        return values

    # Parts.

    def _check_identity(self) -> None:
        if self._identity is None:
            self.identify()

    def _check_tokens(self, tokens: Iterable[int]) -> Sequence[int]:
        vocabulary = self.identity.vocabulary
        tokens = [int(token) for token in tokens]
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise UserError(f"Token must be from 0 to {vocabulary - 1}, not {token}")
        if len(tokens) > self.identity.context:
            raise UserError(
                f"A prompt must have at most {self.identity.context} tokens, not {len(tokens)}"
            )
        return tokens

    def _call(self, on_token: Callable[[GeneratedToken], None], token: GeneratedToken) -> None:
        try:
            on_token(token)
        except BaseException:
            # The caller wants no more: leave the design idle, not in the middle of a generation.
            self.stop()
            raise

    def _unpack_logits(self, frame: Frame) -> tuple[float, ...]:
        size = _LOGIT_BYTES * self.identity.vocabulary
        if len(frame.payload) != size:
            raise LinkError(f"Logits must have {size} bytes, not {len(frame.payload)}")
        return unpack_logits(frame.payload)

    def _send(self, request: Request, payload: bytes = b"") -> None:
        data = encode_frame(request, payload)
        try:
            self._transport.write(data)
        except OSError as error:
            raise LinkError(f"The link failed: {error}") from error
        self.line_bytes += len(data)

    def _drain(self) -> None:
        # What was sent before this client came belongs to nobody.
        self._frames.clear()
        self._decoder.flush()
        since = time.monotonic()
        while self._read(_READ_BYTES):
            if time.monotonic() - since > _DRAIN_SECONDS:
                raise LinkError(
                    f"What answers is not a design of mxhw: it sends without an end, for "
                    f"{_DRAIN_SECONDS:g} s so far"
                )

    def _read(self, size: int) -> bytes:
        try:
            data = self._transport.read(size)
        except OSError as error:
            raise LinkError(f"The link failed: {error}") from error
        self.line_bytes += len(data)
        return data

    def _next_frame(self, request: Request, gap_s: float = math.inf) -> Frame:
        quiet_since = time.monotonic()
        skipped = self._decoder.skipped
        while not self._frames:
            # No more than the frame lacks, so that no read waits for bytes that are not to come.
            data = self._read(self._decoder.wanted)
            if data:
                quiet_since = time.monotonic()
                self._frames += self._decoder.feed(data)
                if self._decoder.skipped - skipped > _NOISE_BYTES:
                    self._decoder.flush()
                    raise LinkError(_NOISE)
                continue
            quiet_s = time.monotonic() - quiet_since
            if quiet_s >= gap_s and self._decoder.has_begun:
                self._frames += self._decoder.give_up()
                if not self._frames and not self._decoder.has_begun:
                    raise LinkError(f"The answer to {request.name} arrived broken")
            elif quiet_s >= self._timeout_s:
                self._decoder.flush()
                raise LinkError(
                    f"The design did not answer {request.name} within {self._timeout_s:g} s"
                )
        return self._frames.pop(0)

    def _replies(self, request: Request) -> Iterator[Frame]:
        """Yield the replies to a request, up to its DONE."""
        while True:
            frame = self._next_frame(request)
            if frame.kind == Reply.ERROR:
                self._raise(request, _decode(ErrorReply, frame))
            if frame.kind == Reply.DONE:
                done = _decode(DoneReply, frame)
                if done.request == request:
                    self.cycles = done.cycles
                    yield frame
                    return
            elif frame.kind in (Reply.TOKEN, Reply.LOGITS):
                yield frame

    def _ask(self, request: Request, kind: Reply) -> Frame:
        """Send a request that is answered by one frame; again if it arrived broken."""
        for attempt in range(_RETRIES + 1):
            last = attempt == _RETRIES
            self._send(request)
            try:
                # A simulation can be slow in the middle of a frame: then only the last waits.
                return self._wait(request, kind, math.inf if last else _GAP_SECONDS)
            except LinkError:
                if last:
                    raise
                self._drain()
        raise LinkError(f"The design did not answer {request.name}")

    def _wait(self, request: Request, kind: Reply, gap_s: float) -> Frame:
        while True:
            frame = self._next_frame(request, gap_s)
            if frame.kind == Reply.ERROR:
                self._raise(request, _decode(ErrorReply, frame))
            if frame.kind == kind and (
                kind != Reply.DONE or _decode(DoneReply, frame).request == request
            ):
                return frame

    def _raise(self, request: Request, error: ErrorReply) -> None:
        code = error.code
        if code == ErrorCode.PROMPT_TOO_LONG:
            raise UserError(
                f"The context has room for {error.detail} more tokens: shorten the prompt or reset"
            )
        if code == ErrorCode.TOKEN_RANGE:
            raise UserError(f"Token {error.detail} of the prompt is not in the vocabulary")
        if code == ErrorCode.BUSY:
            raise UserError(f"The design is busy and refused {request.name}")
        if code == ErrorCode.NO_TOKEN:
            raise UserError("There is no token to go on from: give a prompt first")
        if code in _LINK_ERRORS:
            raise LinkError(f"{request.name} arrived broken ({code.name}) and was not acted upon")
        raise LinkError(f"The design refused {request.name} ({code.name})")


def _decode(kind: Any, frame: Frame) -> Any:
    try:
        return kind.decode(frame.payload)
    except ValueError as error:
        raise LinkError(f"The design sent a malformed frame: {error}") from error
