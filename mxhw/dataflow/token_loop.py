"""Loop of text generation: feeds tokens to a decoder and hands its tokens back."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.dataflow.frames import LOGIT_BITS, LOGITS_PER_BEAT, Message, MessageSource
from mxhw.dataflow.program import TokenStep
from mxhw.sw.host.protocol import ErrorCode, GenerateFlag, Reply, Request, RunState, Status

__all__ = [
    "TokenLoop",
    "check_sizes",
    "logits_shape",
    "set_message",
    "token_shape",
]


_LARGEST_VOCABULARY = 16383
"""A frame has at most 65,535 bytes, and a logit four."""


def token_shape(vocabulary: int):
    """Shape of a token id."""
    return unsigned(bits_for(vocabulary - 1))


def logits_shape():
    """Shape of a beat of logits: 4 signed 24-bit numbers with 12 fraction bits."""
    return data.ArrayLayout(signed(LOGIT_BITS), LOGITS_PER_BEAT)


def check_sizes(vocabulary: int, context: int) -> None:
    """Raise ValueError unless the link can carry tokens, positions and logits of these sizes."""
    if not isinstance(vocabulary, int) or not 0 < vocabulary <= _LARGEST_VOCABULARY:
        raise ValueError(
            f"Vocabulary must be an integer from 1 to {_LARGEST_VOCABULARY}, not {vocabulary!r}"
        )
    if not isinstance(context, int) or not 8 <= context <= 32767:
        raise ValueError(f"Context must be an integer from 8 to 32767, not {context!r}")


def set_message(
    signal: Message, kind: Reply, *fields: Value, source=MessageSource.BODY, length=None
) -> list:
    """Return the assignments that make ``signal`` a message with these fields of whole bytes."""
    body = Cat(*fields)
    return [
        signal.kind.eq(kind),
        signal.length.eq(len(body) // 8 if length is None else length),
        signal.source.eq(source),
        signal.body.eq(body),
    ]


def _resize(value, width: int) -> Signal:
    # Zero-extends an unsigned value.
    return Cat(value, Const(0, width - len(value)))  # pyright: ignore[reportReturnType]


class TokenLoop(wiring.Component):
    """Feeds a decoder: prompts, generation, and single steps.

    The last token given or produced waits until what comes next is known: only then is it run, with
    ``sample`` if a token is wanted, without if it is followed by more of the prompt.

    Parameters
    ----------
    vocabulary, context : int
        Number of token ids and of positions.

    Members
    -------
    start : In(1)
        Begin a request; only while ``busy`` is low, and ``kind`` and ``words`` must have had their
        values for a cycle before.
    kind : In(8)
        The request: PROMPT, GENERATE or STEP.
    words : In(16)
        Number of 16-bit words of its payload.
    stop : In(1)
        End the request after the present token; must stay high until ``busy`` is low.
    forget : In(1)
        Begin a new context; only while ``busy`` is low.
    busy : Out(1)
        A request is being served.
    state : Out(8)
        The :class:`~mxhw.sw.host.protocol.RunState`.
    used : Out(range(context + 1))
        Positions in use.
    waiting : Out(1)
        A token waits to be run.
    address, word
        Payload buffer of the :class:`~mxhw.dataflow.frames.FrameReceiver`.
    o_message : Out(stream.Signature(Message()))
        Replies.
    o_step : Out(stream.Signature(TokenStep(...)))
        Steps of the decoder.
    i_token : In(stream.Signature(token_shape(vocabulary)))
        Tokens that the decoder produced.
    """

    def __init__(self, *, vocabulary: int, context: int):
        check_sizes(vocabulary, context)
        self._vocabulary = vocabulary
        self._context = context
        step = TokenStep(vocabulary=vocabulary, context=context)
        super().__init__(
            {
                "start": In(1),
                "kind": In(8),
                "words": In(16),
                "stop": In(1),
                "forget": In(1),
                "busy": Out(1),
                "state": Out(8),
                "used": Out(range(context + 1)),
                "waiting": Out(1),
                "address": Out(range(context)),
                "word": In(16),
                "o_message": Out(stream.Signature(Message())),
                "o_step": Out(stream.Signature(step)),
                "i_token": In(stream.Signature(token_shape(vocabulary))),
            }
        )

    def elaborate(self, platform):
        """Build the loop."""
        m = Module()
        context = self._context

        token = Signal(token_shape(self._vocabulary))
        words = Signal(range(context + 1))
        index = Signal(range(context + 1))
        kind = Signal(8)
        count = Signal(16)
        remaining = Signal(16)
        flags = Signal(16)
        with_logits = Signal()
        with_stop = Signal()
        stop_token = Signal(16)
        status = Signal(8)
        code = Signal(8)
        detail = Signal(16)
        cycles = Signal(32)
        wait_cycles = Signal(32)
        counted = Signal()

        message = self.o_message.payload
        is_step = kind == Request.STEP
        full = self.used == context
        free = Signal(range(context + 1))
        too_long = Signal()

        m.d.comb += [
            self.address.eq(index),
            self.o_step.payload.token.eq(token),
            self.o_step.payload.position.eq(self.used - 1),
            counted.eq(self.o_step.valid | self.i_token.ready),
        ]
        # Registered, as the comparison is wide; the number changes only while the loop is busy.
        m.d.sync += [free.eq(context - self.used), too_long.eq(self.words > context - self.used)]
        with m.If(self.busy):
            m.d.sync += cycles.eq(cycles + 1)
            with m.If(counted):
                m.d.sync += wait_cycles.eq(wait_cycles + 1)
        with m.Switch(Mux(self.busy, kind, 0)):
            for request, state in (
                (Request.PROMPT, RunState.PROMPT),
                (Request.GENERATE, RunState.GENERATE),
                (Request.STEP, RunState.STEP),
            ):
                with m.Case(request):
                    m.d.comb += self.state.eq(state)

        def finish(reason: Status) -> None:
            m.d.sync += status.eq(reason)
            m.next = "DONE"

        def refuse(why: ErrorCode, value=0) -> None:
            m.d.sync += [code.eq(why), detail.eq(value)]
            m.next = "REFUSE"

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.sync += [
                    kind.eq(self.kind),
                    words.eq(self.words),
                    index.eq(0),
                    count.eq(0),
                    cycles.eq(0),
                    wait_cycles.eq(0),
                ]
                with m.If(self.forget):
                    m.d.sync += [self.used.eq(0), self.waiting.eq(0)]
                with m.If(self.start):
                    m.next = "CHECK"
                    with m.If(self.kind == Request.GENERATE):
                        m.next = "OPTIONS"
                    with m.Elif(too_long):
                        refuse(ErrorCode.PROMPT_TOO_LONG, free)  # pyright: ignore[reportArgumentType]

            # PROMPT and STEP: all tokens are checked before the first is fed. A word of the buffer
            # is there two cycles after its address.
            with m.State("CHECK"):
                m.next = "CHECK_READ"
                with m.If(index == words):
                    m.d.sync += index.eq(0)
                    m.next = "FEED"
            with m.State("CHECK_READ"):
                m.next = "CHECK_WORD"
            with m.State("CHECK_WORD"):
                m.d.sync += index.eq(index + 1)
                m.next = "CHECK"
                with m.If(self.word >= self._vocabulary):
                    refuse(ErrorCode.TOKEN_RANGE, index)  # pyright: ignore[reportArgumentType]
            with m.State("FEED"):
                m.next = "FEED_READ"
                with m.If(index == words):
                    m.d.sync += [remaining.eq(1), with_logits.eq(1), with_stop.eq(0)]
                    with m.If(is_step):
                        m.d.sync += count.eq(0)
                        m.next = "SAMPLE"
                    with m.Else():
                        finish(Status.COMPLETE)
                with m.Elif(self.stop):
                    finish(Status.STOPPED)
                with m.Elif(self.waiting):
                    m.next = "RUN"
            with m.State("FEED_READ"):
                m.next = "TAKE"
            with m.State("RUN"):
                m.d.comb += self.o_step.valid.eq(1)
                with m.If(self.o_step.ready):
                    m.d.sync += self.waiting.eq(0)
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += [
                    token.eq(self.word),
                    self.waiting.eq(1),
                    self.used.eq(self.used + 1),
                    index.eq(index + 1),
                    count.eq(count + 1),
                ]
                m.next = "FEED"

            # GENERATE: its three words.
            with m.State("OPTIONS"):
                m.d.sync += index.eq(index + 1)
                with m.Switch(index):
                    with m.Case(2):
                        m.d.sync += remaining.eq(self.word)
                    with m.Case(3):
                        m.d.sync += flags.eq(self.word)
                    with m.Case(4):
                        m.d.sync += stop_token.eq(self.word)
                        m.next = "FLAGS"
            with m.State("FLAGS"):
                m.d.sync += [
                    with_logits.eq((flags & GenerateFlag.LOGITS).any()),
                    with_stop.eq((flags & GenerateFlag.STOP_TOKEN).any()),
                ]
                m.next = "NEXT"
                with m.If(flags[2:].any()):
                    refuse(ErrorCode.BAD_FLAGS)
                with m.Elif(~self.waiting & ~full):
                    refuse(ErrorCode.NO_TOKEN)

            # GENERATE and STEP: the waiting token is run, and the one that it gives waits.
            with m.State("NEXT"):
                m.next = "SAMPLE"
                with m.If(remaining == 0):
                    finish(Status.COMPLETE)
                with m.Elif(self.stop):
                    finish(Status.STOPPED)
                with m.Elif(~self.waiting):
                    finish(Status.CONTEXT_FULL)
            with m.State("SAMPLE"):
                m.d.comb += [
                    self.o_step.valid.eq(1),
                    self.o_step.payload.sample.eq(1),
                    self.o_step.payload.logits.eq(with_logits),
                ]
                with m.If(self.o_step.ready):
                    m.d.sync += self.waiting.eq(0)
                    m.next = "TOKEN"
                    with m.If(with_logits):
                        m.next = "LOGITS"
            with m.State("LOGITS"):
                m.d.comb += self.o_message.valid.eq(1)
                m.d.comb += set_message(
                    message,
                    Reply.LOGITS,
                    source=MessageSource.LOGITS,
                    length=4 * self._vocabulary,
                )
                with m.If(self.o_message.ready):
                    m.next = "TOKEN"
            with m.State("TOKEN"):
                m.d.comb += self.i_token.ready.eq(1)
                m.d.sync += token.eq(self.i_token.payload)
                with m.If(self.i_token.valid):
                    m.d.sync += [remaining.eq(remaining - 1), count.eq(count + 1)]
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.o_message.valid.eq(1)
                m.d.comb += set_message(
                    message, Reply.TOKEN, _resize(token, 16), _resize(self.used, 16)
                )
                with m.If(self.o_message.ready):
                    m.next = "NEXT"
                    with m.If(~full & ~is_step):
                        m.d.sync += [self.waiting.eq(1), self.used.eq(self.used + 1)]
                    with m.If(with_stop & (token == stop_token)):
                        finish(Status.STOP_TOKEN)

            with m.State("DONE"):
                m.d.comb += self.o_message.valid.eq(1)
                m.d.comb += set_message(
                    message, Reply.DONE, kind, status, count, cycles, wait_cycles
                )
                with m.If(self.o_message.ready):
                    m.next = "IDLE"
            with m.State("REFUSE"):
                m.d.comb += self.o_message.valid.eq(1)
                m.d.comb += set_message(message, Reply.ERROR, code, kind, detail)
                with m.If(self.o_message.ready):
                    m.next = "IDLE"
        return m
