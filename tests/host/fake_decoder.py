"""A decoder without a model: its token and logits are functions of its last step."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.dataflow.host import HostController
from mxhw.dataflow.link import link
from mxhw.dataflow.program import TokenStep
from mxhw.dataflow.token_loop import logits_shape, token_shape


def next_token(token, position, vocabulary):
    return (3 * token + 7 * position + 11) % vocabulary


def logit_of(token, position, index):
    """Raw logit: its low bits identify it, its sign alternates."""
    raw = (index << 8) + token + position
    return raw if index % 2 else -raw


class FakeDecoder(wiring.Component):
    """Waits ``delay`` cycles; ``vocabulary`` must be a power of two."""

    def __init__(self, *, vocabulary, context, delay=5):
        self._vocabulary = vocabulary
        self._delay = delay
        step = TokenStep(vocabulary=vocabulary, context=context)
        super().__init__(
            {
                "i_step": In(stream.Signature(step)),
                "o_token": Out(stream.Signature(token_shape(vocabulary))),
                "o_logits": Out(stream.Signature(logits_shape())),
            }
        )

    def elaborate(self, platform):
        m = Module()
        step = Signal(self.i_step.payload.shape())
        wait = Signal(range(self._delay + 1))
        beat = Signal(range(self._vocabulary // 4))
        m.d.comb += self.o_token.payload.eq(3 * step.token + 7 * step.position + 11)
        for lane in range(4):
            index = Cat(Const(lane, 2), beat)
            raw = (index << 8) + step.token + step.position
            m.d.comb += self.o_logits.payload[lane].eq(raw if lane % 2 else -raw)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i_step.ready.eq(1)
                m.d.sync += [step.eq(self.i_step.payload), wait.eq(0), beat.eq(0)]
                with m.If(self.i_step.valid):
                    m.next = "WORK"
            with m.State("WORK"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == self._delay):
                    m.next = "IDLE"
                    with m.If(step.logits):
                        m.next = "LOGITS"
                    with m.Elif(step.sample):
                        m.next = "TOKEN"
            with m.State("LOGITS"):
                m.d.comb += self.o_logits.valid.eq(1)
                with m.If(self.o_logits.ready):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(beat == self._vocabulary // 4 - 1):
                        m.next = "TOKEN"
            with m.State("TOKEN"):
                m.d.comb += self.o_token.valid.eq(1)
                with m.If(self.o_token.ready):
                    m.next = "IDLE"
        return m


class FakeDesign(wiring.Component):
    """A host controller and a fake decoder."""

    def __init__(self, *, vocabulary=64, context=16, delay=5, timeout_cycles=200):
        self.host = HostController(
            vocabulary=vocabulary,
            context=context,
            model_hash=b"ABCDEFGH",
            clock_hz=65_000_000,
            timeout_cycles=timeout_cycles,
            name="mxhw test",
        )
        self.decoder = FakeDecoder(vocabulary=vocabulary, context=context, delay=delay)
        signature = self.host.signature
        super().__init__(
            {name: signature.members[name] for name in ("i_byte", "o_byte", "line_error")}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.host = host = self.host
        m.submodules.decoder = decoder = self.decoder
        link(m, wiring.flipped(self.i_byte), host.i_byte)
        link(m, host.o_byte, wiring.flipped(self.o_byte))
        link(m, host.o_step, decoder.i_step)
        link(m, decoder.o_token, host.i_token)
        link(m, decoder.o_logits, host.i_logits)
        m.d.comb += host.line_error.eq(self.line_error)
        return m
