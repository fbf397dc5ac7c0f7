"""Host controller: serves the requests of a host.

The host's side is :mod:`mxhw.sw.host.client`; the frames are those of
:mod:`mxhw.sw.host.protocol`.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.dataflow.frames import (
    LOGITS_PER_BEAT,
    FrameReceiver,
    FrameTransmitter,
    Message,
    MessageSource,
)
from mxhw.dataflow.link import link
from mxhw.dataflow.program import TokenStep
from mxhw.dataflow.token_loop import (
    TokenLoop,
    check_sizes,
    logits_shape,
    set_message,
    token_shape,
)
from mxhw.sw.host.protocol import ErrorCode, Identity, Reply, Request, Status

__all__ = ["HostController"]

_SIMPLE_REQUESTS = (Request.IDENTIFY, Request.STATUS, Request.RESET, Request.STOP)


class HostController(wiring.Component):
    """Serves a host over a byte link, and feeds a decoder.

    Requests are acted upon only when they have arrived whole and with the right CRC. One request of
    PROMPT, GENERATE and STEP is served at a time; IDENTIFY, STATUS, RESET and STOP are answered
    beside it, and RESET and STOP end it after its present token. Whatever bytes arrive, and however
    they are cut, the controller answers with an error and goes on.

    Parameters
    ----------
    vocabulary, context : int
        Number of token ids, at most 16,383, and of positions.
    model_hash : bytes
        8 bytes that identify the model, for IDENTIFY.
    clock_hz : int
        Frequency of the clock domain ``sync``, for IDENTIFY.
    timeout_cycles : int
        Clock cycles of silence that end an incomplete frame; 4096 bits of the line are a good time.
    name : str
        Name and version of the design for IDENTIFY, at most 40 bytes.

    Members
    -------
    i_byte : In(stream.Signature(unsigned(8)))
        Bytes from the host; accepted within two cycles, always.
    o_byte : Out(stream.Signature(unsigned(8)))
        Bytes to the host.
    line_error : In(1)
        High for one cycle for each byte that the line lost; only counted.
    o_step : Out(stream.Signature(TokenStep(...)))
        Steps for the decoder.
    i_token : In(stream.Signature(token_shape(vocabulary)))
        One token for each step with ``sample``.
    i_logits : In(stream.Signature(logits_shape()))
        ``ceil(vocabulary / 4)`` beats for each step with ``logits``; the decoder may hold its token
        back until they are taken, but not the other way round.
    busy : Out(1)
        A request is being served.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Timing: the next step is offered 3 cycles after the token of the one before; a token then waits
    until the frame of the token before it is sent (10 bytes). A prompt takes 3 cycles a token to
    check, and 3 or 4 cycles a token to feed besides the time of the decoder.

    Cost: about 1,100 LUT4 and 750 flip-flops, and ``16 * context`` bits of memory.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        model_hash: bytes,
        clock_hz: int,
        timeout_cycles: int,
        name: str = "mxhw",
    ):
        check_sizes(vocabulary, context)
        if not isinstance(model_hash, bytes) or len(model_hash) != 8:
            raise ValueError(f"Model hash must be 8 bytes, not {model_hash!r}")
        if not isinstance(clock_hz, int) or not 0 < clock_hz < 1 << 32:
            raise ValueError(f"Clock frequency must be a positive integer, not {clock_hz!r}")
        if not isinstance(timeout_cycles, int) or timeout_cycles < 1:
            raise ValueError(f"Timeout must be a positive number of cycles, not {timeout_cycles!r}")
        if not isinstance(name, str) or not 0 < len(name.encode()) <= 40:
            raise ValueError(f"Name must be 1 to 40 bytes long, not {name!r}")
        self._vocabulary = vocabulary
        self._context = context
        self._identity = Identity(
            vocabulary=vocabulary,
            context=context,
            model_hash=model_hash,
            clock_hz=clock_hz,
            name=name,
        ).encode()
        self._timeout_cycles = timeout_cycles
        step = TokenStep(vocabulary=vocabulary, context=context)
        super().__init__(
            {
                "i_byte": In(stream.Signature(unsigned(8))),
                "o_byte": Out(stream.Signature(unsigned(8))),
                "line_error": In(1),
                "o_step": Out(stream.Signature(step)),
                "i_token": In(stream.Signature(token_shape(vocabulary))),
                "i_logits": In(stream.Signature(logits_shape())),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        """Build the controller."""
        m = Module()
        m.submodules.receiver = receiver = FrameReceiver(
            max_payload=max(8, 2 * self._context), timeout_cycles=self._timeout_cycles
        )
        m.submodules.transmitter = transmitter = FrameTransmitter(
            identity=self._identity, whole_beats=self._vocabulary % LOGITS_PER_BEAT == 0
        )
        m.submodules.loop = loop = TokenLoop(vocabulary=self._vocabulary, context=self._context)

        link(m, wiring.flipped(self.i_byte), receiver.i)
        link(m, transmitter.o, wiring.flipped(self.o_byte))
        link(m, wiring.flipped(self.i_logits), transmitter.i_logits)
        link(m, loop.o_step, wiring.flipped(self.o_step))
        link(m, wiring.flipped(self.i_token), loop.i_token)
        m.d.comb += [
            receiver.address.eq(loop.address),
            loop.word.eq(receiver.word),
            receiver.lock.eq(loop.busy),
            self.busy.eq(loop.busy),
        ]
        line_errors = Signal(16)
        with m.If(self.line_error):
            m.d.sync += line_errors.eq(line_errors + 1)

        reply = stream.Interface(stream.Signature(Message()), path=("reply",))
        self._build_dispatch(m, receiver, loop, reply, line_errors)
        self._build_arbiter(m, loop, reply, transmitter)
        return m

    def _build_arbiter(self, m, loop, reply, transmitter) -> None:
        # Replies go first; what was offered stays until it is taken. Logits are not begun before
        # the decoder has some, so that a reply never waits for the decoder.
        is_logits = loop.o_message.payload.source == MessageSource.LOGITS
        loop_valid = loop.o_message.valid & (~is_logits | self.i_logits.valid)
        held = Signal()
        holder = Signal()
        pick_loop = Signal()
        sink = transmitter.i_message
        m.d.comb += pick_loop.eq(Mux(held, holder, ~reply.valid))
        m.d.sync += [held.eq(sink.valid & ~sink.ready), holder.eq(pick_loop)]
        with m.If(pick_loop):
            m.d.comb += [
                sink.payload.eq(loop.o_message.payload),
                sink.valid.eq(loop_valid),
                loop.o_message.ready.eq(sink.ready & loop_valid),
            ]
        with m.Else():
            m.d.comb += [
                sink.payload.eq(reply.payload),
                sink.valid.eq(reply.valid),
                reply.ready.eq(sink.ready),
            ]

    def _build_dispatch(self, m, receiver, loop, reply, line_errors) -> None:
        frame = receiver.o_frame
        error = receiver.o_error
        kind = frame.payload.kind
        length = frame.payload.length

        def answer(code: ErrorCode, detail: Value | None = None) -> None:
            detail = Const(0, 16) if detail is None else detail
            m.d.comb += frame.ready.eq(1)
            m.d.sync += set_message(reply.payload, Reply.ERROR, Const(code, 8), kind, detail)
            m.next = "REPLY"

        known = Signal()
        right_length = Signal()
        needs_loop = Signal()
        m.d.comb += [loop.kind.eq(kind), loop.words.eq(length[1:])]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [known.eq(1), needs_loop.eq(0), right_length.eq(length == 0)]
                with m.Switch(kind):
                    with m.Case(Request.PROMPT):
                        m.d.sync += [needs_loop.eq(1), right_length.eq((length != 0) & ~length[0])]
                    with m.Case(Request.STEP):
                        m.d.sync += [needs_loop.eq(1), right_length.eq(length == 2)]
                    with m.Case(Request.GENERATE):
                        m.d.sync += [needs_loop.eq(1), right_length.eq(length == 6)]
                    with m.Case(*_SIMPLE_REQUESTS):
                        pass
                    with m.Default():
                        m.d.sync += known.eq(0)
                with m.If(error.valid):
                    m.d.comb += error.ready.eq(1)
                    is_length = error.payload.code == ErrorCode.BAD_LENGTH
                    m.d.sync += set_message(
                        reply.payload,
                        Reply.ERROR,
                        error.payload.code,
                        error.payload.kind,
                        Mux(is_length, error.payload.length, 0),
                    )
                    m.next = "REPLY"
                with m.Elif(frame.valid):
                    m.next = "DECODE"
            with m.State("DECODE"):
                with m.If(~known):
                    answer(ErrorCode.UNKNOWN_TYPE)
                with m.Elif(~right_length):
                    answer(ErrorCode.BAD_LENGTH, length)
                with m.Elif(needs_loop & (loop.busy | ~frame.payload.stored)):
                    answer(ErrorCode.BUSY)
                with m.Elif(needs_loop):
                    m.next = "START"
                with m.Else(), m.Switch(kind):
                    for request in _SIMPLE_REQUESTS:
                        with m.Case(request):
                            m.next = request.name
            with m.State("START"):
                m.d.comb += [frame.ready.eq(1), loop.start.eq(1)]
                m.next = "IDLE"
            # The frame itself remembers which request is being answered.
            with m.State("IDENTIFY"):
                m.d.comb += frame.ready.eq(1)
                m.d.sync += set_message(
                    reply.payload,
                    Reply.IDENTITY,
                    source=MessageSource.IDENTITY,
                    length=len(self._identity),
                )
                m.next = "REPLY"
            with m.State("STATUS"):
                m.d.comb += frame.ready.eq(1)
                m.d.sync += set_message(
                    reply.payload,
                    Reply.STATUS,
                    loop.state,
                    Cat(loop.waiting, Const(0, 7)),
                    Cat(loop.used, Const(0, 16 - len(loop.used))),
                    receiver.crc_errors,
                    receiver.frame_errors,
                    line_errors,
                )
                m.next = "REPLY"
            for request in (Request.RESET, Request.STOP):
                with m.State(request.name):
                    m.d.comb += loop.stop.eq(1)
                    with m.If(~loop.busy):
                        m.d.comb += frame.ready.eq(1)
                        if request == Request.RESET:
                            m.d.comb += loop.forget.eq(1)
                        m.d.sync += set_message(
                            reply.payload, Reply.DONE, kind, Const(Status.COMPLETE, 88)
                        )
                        m.next = "REPLY"
            with m.State("REPLY"):
                m.d.comb += reply.valid.eq(1)
                with m.If(reply.ready):
                    m.next = "IDLE"
