"""Frames of the host link in hardware: receiver with store and check, and transmitter.

The frames are those of :mod:`mxhw.sw.host.protocol`.
"""

from amaranth.hdl import Cat, Const, Module, Signal, signed, unsigned
from amaranth.lib import crc, data, enum, memory, stream, wiring
from amaranth.lib.crc.catalog import CRC16_IBM_SDLC
from amaranth.lib.wiring import In, Out

from mxhw.sw.host.protocol import SYNC, ErrorCode

__all__ = [
    "LOGIT_BITS",
    "LOGITS_PER_BEAT",
    "FrameReceiver",
    "FrameTransmitter",
    "Message",
    "MessageSource",
    "ReceivedError",
    "ReceivedFrame",
]

LOGIT_BITS = 24
"""Width of a signed logit as the decoder gives it."""

LOGITS_PER_BEAT = 4
"""Logits in a beat."""

BODY_BYTES = 12
"""Most bytes of a payload that a message carries itself."""


class ReceivedFrame(data.StructLayout):
    """A frame that passed all checks; ``stored`` tells whether its payload is in the buffer."""

    def __init__(self):
        super().__init__({"kind": unsigned(8), "length": unsigned(16), "stored": unsigned(1)})


class ReceivedError(data.StructLayout):
    """A frame that is broken: error code, type byte (0 if unknown) and length received."""

    def __init__(self):
        super().__init__({"code": unsigned(8), "kind": unsigned(8), "length": unsigned(16)})


class FrameReceiver(wiring.Component):
    """Finds frames in a stream of bytes, stores their payload and checks them.

    A byte is accepted within two cycles, whatever the rest of the design does. A frame is delivered
    only when all of it has arrived and its CRC is right. What is broken is reported on ``o_error``,
    once each: a wrong CRC, a payload longer than the buffer, silence within a frame (TRUNCATED), a
    frame that arrives while another still waits at ``o_frame`` (BUSY), and bytes outside frames
    (NOISE, once they end in silence or in a frame; bytes after a broken frame are not reported
    again). Afterwards the receiver looks for the next sync byte. An error found while another waits
    is counted, but not reported.

    Parameters
    ----------
    max_payload : int
        Bytes of the payload buffer; even.
    timeout_cycles : int
        Clock cycles of silence that end a frame or a run of noise.

    Members
    -------
    i : In(stream.Signature(unsigned(8)))
        Bytes received.
    lock : In(1)
        The payload buffer is in use: frames that arrive are checked but not stored. The receiver
        does the same by itself while a frame waits at ``o_frame``.
    o_frame : Out(stream.Signature(ReceivedFrame()))
        Good frames.
    o_error : Out(stream.Signature(ReceivedError()))
        Broken frames.
    address : In(range(max_payload // 2))
        Address of a 16-bit word of the payload buffer.
    word : Out(16)
        The word, two cycles later.
    crc_errors, frame_errors : Out(16)
        Number of frames with a wrong CRC, and of all other errors, modulo 65536.

    Raises
    ------
    ValueError
        If the buffer has no even positive size below 65536, or the time is not positive.

    Timing: a frame is delivered two cycles after its last byte.

    Cost: about 250 LUT4 and 180 flip-flops, and ``8 * max_payload`` bits of memory.
    """

    def __init__(self, *, max_payload: int, timeout_cycles: int):
        if not isinstance(max_payload, int) or not 0 < max_payload < 65536 or max_payload % 2:
            raise ValueError(
                f"Payload buffer must be an even positive number of bytes below 65536, "
                f"not {max_payload!r}"
            )
        if not isinstance(timeout_cycles, int) or timeout_cycles < 1:
            raise ValueError(f"Timeout must be a positive number of cycles, not {timeout_cycles!r}")
        self._max_payload = max_payload
        self._timeout_cycles = timeout_cycles
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(8))),
                "lock": In(1),
                "o_frame": Out(stream.Signature(ReceivedFrame())),
                "o_error": Out(stream.Signature(ReceivedError())),
                "address": In(range(max(2, max_payload // 2))),
                "word": Out(16),
                "crc_errors": Out(16),
                "frame_errors": Out(16),
            }
        )

    def elaborate(self, platform):
        """Build the receiver."""
        m = Module()
        depth = self._max_payload // 2
        m.submodules.payload = payload = memory.Memory(shape=unsigned(16), depth=depth, init=[])
        write = payload.write_port(granularity=8)
        read = payload.read_port()
        m.submodules.crc = check = crc.Processor(CRC16_IBM_SDLC(data_width=8))

        byte = self.i.payload
        kind = Signal(8)
        length = Signal(16)
        index = Signal(16)
        stored = Signal()
        noisy = Signal()
        silence = Signal(range(self._timeout_cycles + 1))
        late = Signal()
        fail = Signal()
        error = Signal(ReceivedError())
        locked = Signal()

        m.d.comb += [
            self.i.ready.eq(1),
            locked.eq(self.lock | self.o_frame.valid),
            read.addr.eq(self.address),
            write.addr.eq(index[1:]),
            write.data.eq(byte.replicate(2)),
            check.data.eq(byte),
            late.eq(~self.i.valid & (silence == self._timeout_cycles - 1)),
            error.kind.eq(kind),
            error.length.eq(length),
        ]
        m.d.sync += self.word.eq(read.data)
        with m.If(self.i.valid | late):
            m.d.sync += silence.eq(0)
        with m.Else():
            m.d.sync += silence.eq(silence + 1)

        with m.If(self.o_frame.ready):
            m.d.sync += self.o_frame.valid.eq(0)
        with m.If(self.o_error.ready):
            m.d.sync += self.o_error.valid.eq(0)
        with m.If(fail):
            with m.If(~self.o_error.valid | self.o_error.ready):
                m.d.sync += [self.o_error.payload.eq(error), self.o_error.valid.eq(1)]
            with m.If(error.code == ErrorCode.BAD_CRC):
                m.d.sync += self.crc_errors.eq(self.crc_errors + 1)
            with m.Else():
                m.d.sync += self.frame_errors.eq(self.frame_errors + 1)

        def give_up(code: ErrorCode, *, follow: str = "SKIP") -> None:
            m.d.comb += [fail.eq(1), error.code.eq(code)]
            m.next = follow

        with m.FSM(init="HUNT"):
            # SKIP is HUNT after a broken frame: what follows is part of it, not noise of its own.
            for state in ("HUNT", "SKIP"):
                with m.State(state):
                    m.d.comb += [error.kind.eq(0), error.length.eq(0)]
                    m.d.comb += check.start.eq(1)
                    m.d.sync += [noisy.eq(0), stored.eq(1), kind.eq(0), length.eq(0), index.eq(0)]
                    noise = noisy & (late | (self.i.valid & (byte == SYNC)))
                    with m.If(self.i.valid & (byte == SYNC)):
                        m.next = "KIND"
                    with m.Elif(late):
                        m.next = "HUNT"
                    if state == "HUNT":
                        with m.Elif(self.i.valid | noisy):
                            m.d.sync += noisy.eq(1)
                        with m.If(noise):
                            m.d.comb += [fail.eq(1), error.code.eq(ErrorCode.NOISE)]
            for state, target, follow in (
                ("KIND", kind, "LENGTH_LOW"),
                ("LENGTH_LOW", length[:8], "LENGTH_HIGH"),
                ("LENGTH_HIGH", length[8:], "PAYLOAD"),
                ("CRC_HIGH", None, "CHECK"),
            ):
                with m.State(state):
                    with m.If(self.i.valid):
                        m.d.comb += check.valid.eq(1)
                        if target is not None:
                            m.d.sync += target.eq(byte)
                        m.next = follow
                    with m.Elif(late):
                        give_up(ErrorCode.TRUNCATED, follow="HUNT")
            with m.State("PAYLOAD"):
                with m.If(length > self._max_payload):
                    m.d.comb += self.i.ready.eq(0)
                    give_up(ErrorCode.BAD_LENGTH)
                with m.Elif(self.i.valid):
                    m.d.comb += check.valid.eq(1)
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == length):
                        m.next = "CRC_HIGH"
                    with m.Elif(locked):
                        m.d.sync += stored.eq(0)
                    with m.Else():
                        m.d.comb += write.en.eq(Cat(~index[0], index[0]))
                with m.Elif(late):
                    give_up(ErrorCode.TRUNCATED, follow="HUNT")
            with m.State("CHECK"):
                m.d.comb += self.i.ready.eq(0)
                m.next = "HUNT"
                with m.If(~check.match_detected):
                    give_up(ErrorCode.BAD_CRC)
                with m.Elif(self.o_frame.valid & ~self.o_frame.ready):
                    m.d.comb += [fail.eq(1), error.code.eq(ErrorCode.BUSY)]
                with m.Else():
                    m.d.sync += [
                        self.o_frame.payload.kind.eq(kind),
                        self.o_frame.payload.length.eq(length),
                        self.o_frame.payload.stored.eq(stored),
                        self.o_frame.valid.eq(1),
                    ]
        return m


class MessageSource(enum.Enum, shape=2):
    """Where the payload of a message comes from."""

    BODY = 0
    IDENTITY = 1
    LOGITS = 2


class Message(data.StructLayout):
    """A frame to send: its type, the length and source of its payload, and a short payload."""

    def __init__(self):
        super().__init__(
            {
                "kind": unsigned(8),
                "length": unsigned(16),
                "source": MessageSource,
                "body": unsigned(8 * BODY_BYTES),
            }
        )


class FrameTransmitter(wiring.Component):
    """Sends frames: sync byte, header, payload, and the CRC computed on the way.

    A frame of logits takes as many beats of them as its length says; each is widened to 32 bits.

    Parameters
    ----------
    identity : bytes
        Payload of messages with source IDENTITY.
    whole_beats : bool
        Whether every frame of logits has whole beats of 16 bytes. Otherwise what is left of the
        last beat of a frame is dropped.

    Members
    -------
    i_message : In(stream.Signature(Message()))
        Frames to send.
    i_logits : In(stream.Signature(ArrayLayout(signed(24), 4)))
        Logits for messages with source LOGITS.
    o : Out(stream.Signature(unsigned(8)))
        Bytes to send.

    Timing: one byte a cycle, of a payload one in two cycles, while ``o`` is ready; two cycles
    between frames.

    Cost: about 250 LUT4 and 180 flip-flops.
    """

    def __init__(self, *, identity: bytes, whole_beats: bool = True):
        if not isinstance(identity, bytes) or not 1 <= len(identity) <= 64:
            raise ValueError(f"Identity must be 1 to 64 bytes, not {identity!r}")
        self._identity = identity
        self._whole_beats = whole_beats
        logits = data.ArrayLayout(signed(LOGIT_BITS), LOGITS_PER_BEAT)
        super().__init__(
            {
                "i_message": In(stream.Signature(Message())),
                "i_logits": In(stream.Signature(logits)),
                "o": Out(stream.Signature(unsigned(8))),
            }
        )

    def elaborate(self, platform):
        """Build the transmitter."""
        m = Module()
        m.submodules.crc = check = crc.Processor(CRC16_IBM_SDLC(data_width=8))

        message = Signal(Message())
        index = Signal(16)
        byte = Signal(8)
        offer = Signal()
        push = Signal()
        payload = Signal(8)
        available = Signal()
        # A byte waits here: the choice among all sources would stand before the whole CRC.
        fetched = Signal(8)
        held = Signal()

        identity = Const(int.from_bytes(self._identity, "little"), 8 * len(self._identity))
        # Unsigned, because CXXRTL 0.64 miscompiles a part select of a signed value.
        logit = Signal(32)
        m.d.comb += logit.eq(self.i_logits.payload[index[2:4]])
        with m.Switch(message.source):
            with m.Case(MessageSource.LOGITS):
                m.d.comb += payload.eq(logit.word_select(index[:2], 8))
                m.d.comb += available.eq(self.i_logits.valid)
            with m.Case(MessageSource.IDENTITY):
                m.d.comb += payload.eq(identity.word_select(index[:6], 8))
                m.d.comb += available.eq(1)
            with m.Default():
                m.d.comb += payload.eq(message.body)
                m.d.comb += available.eq(1)

        m.d.comb += [
            push.eq(offer & (~self.o.valid | self.o.ready)),
            check.data.eq(byte),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(push):
            m.d.sync += [self.o.payload.eq(byte), self.o.valid.eq(1)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.i_message.ready.eq(1), check.start.eq(1)]
                m.d.sync += [message.eq(self.i_message.payload), index.eq(0)]
                with m.If(self.i_message.valid):
                    m.next = "SYNC"
            with m.State("SYNC"):
                m.d.comb += [byte.eq(SYNC), offer.eq(1)]
                with m.If(push):
                    m.next = "KIND"
            for state, value, follow in (
                ("KIND", message.kind, "LENGTH_LOW"),
                ("LENGTH_LOW", message.length[:8], "LENGTH_HIGH"),
                ("LENGTH_HIGH", message.length[8:], "PAYLOAD"),
            ):
                with m.State(state):
                    m.d.comb += [byte.eq(value), offer.eq(1), check.valid.eq(push)]
                    with m.If(push):
                        m.next = follow
            with m.State("PAYLOAD"):
                with m.If(index == message.length):
                    m.d.comb += [byte.eq(check.crc[:8]), offer.eq(1)]
                    with m.If(push):
                        m.next = "CRC_HIGH"
                        if not self._whole_beats:
                            is_logits = message.source == MessageSource.LOGITS
                            m.d.comb += self.i_logits.ready.eq(is_logits & message.length[:4].any())
                with m.Elif(held):
                    m.d.comb += [byte.eq(fetched), offer.eq(1), check.valid.eq(push)]
                    with m.If(push):
                        m.d.sync += [index.eq(index + 1), held.eq(0)]
                with m.Elif(available):
                    m.d.sync += [
                        fetched.eq(payload),
                        held.eq(1),
                        message.body.eq(message.body >> 8),
                    ]
                    with m.If(message.source == MessageSource.LOGITS):
                        m.d.comb += self.i_logits.ready.eq(index[:4] == 0xF)
            with m.State("CRC_HIGH"):
                m.d.comb += [byte.eq(check.crc[8:]), offer.eq(1)]
                with m.If(push):
                    m.next = "IDLE"
        return m
