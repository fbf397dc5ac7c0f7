# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.cosim.engine import make_engine
from mxhw.dataflow.frames import FrameReceiver, FrameTransmitter
from mxhw.dataflow.host import HostController
from mxhw.sw.host.protocol import (
    SYNC,
    DoneReply,
    ErrorCode,
    ErrorReply,
    FrameDecoder,
    Identity,
    Reply,
    Request,
    RunState,
    Status,
    StatusFlag,
    StatusReply,
    TokenReply,
    encode_frame,
    pack_generate,
    pack_tokens,
    unpack_logits,
)
from tests.host.fake_decoder import FakeDesign, logit_of, next_token
from tests.support import check_stream

VOCABULARY = 64
CONTEXT = 16
TIMEOUT = 200


class Link:
    """A running design, byte by byte."""

    def __init__(self, sim):
        self.sim = sim
        self.decoder = FrameDecoder()
        sim.collect("o_byte", 1 << 30)

    def send(self, data):
        self.sim.put("i_byte", list(data))

    def frames(self, cycles=2000):
        self.sim.run(cycles)
        frames = self.decoder.feed(bytes(self.sim.take("o_byte")))
        assert self.decoder.skipped == 0
        return frames

    def ask(self, request, payload=b"", cycles=2000):
        self.send(encode_frame(request, payload))
        return self.frames(cycles)

    def error(self, data, cycles=2000):
        """Send bytes that are answered by one error."""
        self.send(data)
        (frame,) = self.frames(cycles)
        assert frame.kind == Reply.ERROR
        return ErrorReply.decode(frame.payload)

    def status(self):
        (frame,) = self.ask(Request.STATUS, cycles=100)
        assert frame.kind == Reply.STATUS
        return StatusReply.decode(frame.payload)

    def prompt(self, tokens):
        (frame,) = self.ask(Request.PROMPT, pack_tokens(tokens))
        return DoneReply.decode(frame.payload)

    def generate(self, count, **options):
        """Tokens, and the DONE."""
        *tokens, done = self.ask(Request.GENERATE, pack_generate(count, **options))
        assert {frame.kind for frame in tokens} <= {Reply.TOKEN}
        return [TokenReply.decode(frame.payload) for frame in tokens], DoneReply.decode(
            done.payload
        )


@pytest.fixture
def link(engine):
    design = FakeDesign(vocabulary=VOCABULARY, context=CONTEXT, timeout_cycles=TIMEOUT)
    with make_engine(design, engine) as sim:
        yield Link(sim)


@pytest.fixture
def slow_link(engine):
    """A decoder that takes 300 cycles a token."""
    design = FakeDesign(vocabulary=VOCABULARY, context=CONTEXT, timeout_cycles=TIMEOUT, delay=300)
    with make_engine(design, engine) as sim:
        yield Link(sim)


def continue_from(token, position, count):
    """Tokens and positions that follow ``token`` at ``position``."""
    replies = []
    for place in range(position, position + count):
        token = next_token(token, place, VOCABULARY)
        replies.append(TokenReply(token, place + 1))
    return replies


def test_identify(link):
    (frame,) = link.ask(Request.IDENTIFY, cycles=100)
    assert frame.kind == Reply.IDENTITY
    assert Identity.decode(frame.payload) == Identity(
        vocabulary=VOCABULARY,
        context=CONTEXT,
        model_hash=b"ABCDEFGH",
        clock_hz=65_000_000,
        name="mxhw test",
    )


def test_prompt_and_generate(link):
    done = link.prompt([1, 2, 3])
    assert (done.request, done.status, done.count) == (Request.PROMPT, Status.COMPLETE, 3)
    tokens, done = link.generate(4)
    assert tokens == continue_from(3, 2, 4)
    assert (done.request, done.status, done.count) == (Request.GENERATE, Status.COMPLETE, 4)
    assert done.wait_cycles <= done.cycles
    # The last token of the generation is run before the prompt that follows.
    assert link.prompt([7]).count == 1
    assert link.status() == StatusReply(RunState.IDLE, StatusFlag.TOKEN_WAITING, 8, 0, 0, 0)
    assert link.generate(2)[0] == continue_from(7, 7, 2)


def test_every_token_is_run_once_at_its_position(engine):
    """Steps that reach the decoder, seen at the controller's own port."""
    controller = HostController(
        vocabulary=VOCABULARY,
        context=CONTEXT,
        model_hash=bytes(8),
        clock_hz=1,
        timeout_cycles=TIMEOUT,
    )
    requests = (
        encode_frame(Request.PROMPT, pack_tokens([5, 6, 63])),
        encode_frame(Request.GENERATE, pack_generate(2)),
        encode_frame(Request.PROMPT, pack_tokens([1])),
        encode_frame(Request.STEP, pack_tokens([2])),
        encode_frame(Request.RESET),
        encode_frame(Request.STEP, pack_tokens([9])),
    )
    with make_engine(controller, engine) as sim:
        sim.collect("o_byte", 1 << 30)
        sim.collect("o_step", 1 << 30)
        sim.put("i_token", [40, 41, 42, 43])
        sim.put("i_logits", list(range(2 * VOCABULARY // 4)))
        for request in requests:
            sim.put("i_byte", list(request))
            sim.run(600)
        steps = sim.take("o_step")
    unpacked = [(step & 63, (step >> 6) & 15, (step >> 10) & 1, (step >> 11) & 1) for step in steps]
    assert unpacked == [
        (5, 0, 0, 0),
        (6, 1, 0, 0),
        (63, 2, 1, 0),
        (40, 3, 1, 0),
        (41, 4, 0, 0),
        (1, 5, 0, 0),
        (2, 6, 1, 1),
        (9, 0, 1, 1),
    ]


def test_logits_come_before_their_token(link):
    link.prompt([10, 20])
    replies = link.ask(Request.GENERATE, pack_generate(2, logits=True), cycles=4000)
    assert [frame.kind for frame in replies] == [Reply.LOGITS, Reply.TOKEN] * 2 + [Reply.DONE]
    token = 20
    for index, frame in enumerate(replies[:4:2]):
        expected = [logit_of(token, 1 + index, place) / 4096 for place in range(VOCABULARY)]
        assert list(unpack_logits(frame.payload)) == expected
        token = next_token(token, 1 + index, VOCABULARY)


def test_step_gives_logits_and_leaves_the_choice(link):
    for position, token in enumerate([4, 50, 6]):
        replies = link.ask(Request.STEP, pack_tokens([token]))
        assert [frame.kind for frame in replies] == [Reply.LOGITS, Reply.TOKEN, Reply.DONE]
        expected = [logit_of(token, position, place) / 4096 for place in range(VOCABULARY)]
        assert list(unpack_logits(replies[0].payload)) == expected
        assert link.status().position == position + 1
    # The token of a step is not kept.
    refusal = link.error(encode_frame(Request.GENERATE, pack_generate(1)))
    assert refusal == ErrorReply(ErrorCode.NO_TOKEN, Request.GENERATE, 0)


def test_generation_ends_with_the_context(link):
    link.prompt(range(CONTEXT - 2))
    tokens, done = link.generate(100)
    assert tokens == continue_from(CONTEXT - 3, CONTEXT - 3, 3)
    assert tokens[-1].position == CONTEXT
    assert (done.status, done.count) == (Status.CONTEXT_FULL, 3)
    assert link.status().position == CONTEXT
    assert link.generate(1) == ([], DoneReply(Request.GENERATE, Status.CONTEXT_FULL, 0, 7, 0))
    refusal = link.error(encode_frame(Request.PROMPT, pack_tokens([1])))
    assert refusal == ErrorReply(ErrorCode.PROMPT_TOO_LONG, Request.PROMPT, 0)
    (frame,) = link.ask(Request.RESET)
    assert DoneReply.decode(frame.payload) == DoneReply(Request.RESET, Status.COMPLETE, 0, 0, 0)
    assert link.prompt(range(CONTEXT)).count == CONTEXT
    assert link.generate(5)[1].status == Status.CONTEXT_FULL


def test_generation_ends_at_the_stop_token(link):
    link.prompt([1])
    expected = continue_from(1, 0, 6)
    stop = expected[3].token
    length = [reply.token for reply in expected].index(stop) + 1
    tokens, done = link.generate(6, stop_token=stop)
    assert tokens == expected[:length]
    assert done.status == Status.STOP_TOKEN
    assert link.generate(1)[0] == continue_from(stop, length, 1)


def test_no_tokens(link):
    link.prompt([1])
    tokens, done = link.generate(0)
    assert (tokens, done.status) == ([], Status.COMPLETE)
    assert link.status().flags == StatusFlag.TOKEN_WAITING


def test_refusals_change_nothing(link):
    link.prompt([1, 2])
    for request, payload, code, detail in (
        (Request.PROMPT, pack_tokens([0] * 15), ErrorCode.PROMPT_TOO_LONG, 14),
        (Request.PROMPT, pack_tokens([0, 63, 64]), ErrorCode.TOKEN_RANGE, 2),
        (Request.STEP, pack_tokens([0xFFFF]), ErrorCode.TOKEN_RANGE, 0),
        (Request.PROMPT, b"", ErrorCode.BAD_LENGTH, 0),
        (Request.PROMPT, b"abc", ErrorCode.BAD_LENGTH, 3),
        (Request.STEP, bytes(4), ErrorCode.BAD_LENGTH, 4),
        (Request.GENERATE, bytes(4), ErrorCode.BAD_LENGTH, 4),
        (Request.GENERATE, b"\1\0\4\0\0\0", ErrorCode.BAD_FLAGS, 0),
        (Request.STATUS, b"1", ErrorCode.BAD_LENGTH, 1),
        (0x55, b"", ErrorCode.UNKNOWN_TYPE, 0),
        (Reply.TOKEN, b"1234", ErrorCode.UNKNOWN_TYPE, 0),
    ):
        refusal = link.error(encode_frame(request, payload))
        assert refusal == ErrorReply(code, request, detail)
    assert link.status().position == 2
    assert link.generate(2)[0] == continue_from(2, 1, 2)


def test_broken_frames_are_answered(link):
    good = bytearray(encode_frame(Request.PROMPT, pack_tokens([1, 2, 3])))
    for position in range(4, len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        assert link.error(bad) == ErrorReply(ErrorCode.BAD_CRC, Request.PROMPT, 0)
    assert link.error(good[:7]) == ErrorReply(ErrorCode.TRUNCATED, Request.PROMPT, 0)
    assert link.error(b"\xa5") == ErrorReply(ErrorCode.TRUNCATED, 0, 0)
    too_long = encode_frame(Request.PROMPT, bytes(2 * CONTEXT + 2))
    expected = ErrorReply(ErrorCode.BAD_LENGTH, Request.PROMPT, 2 * CONTEXT + 2)
    assert link.error(too_long) == expected
    assert link.error(b"garbage") == ErrorReply(ErrorCode.NOISE, 0, 0)
    # Garbage directly before a good frame.
    link.send(b"\0\1\2" + encode_frame(Request.IDENTIFY))
    assert [frame.kind for frame in link.frames()] == [Reply.ERROR, Reply.IDENTITY]
    status = link.status()
    assert (status.crc_errors, status.frame_errors, status.position) == (len(good) - 4, 5, 0)


def test_line_errors_are_counted(link):
    link.sim.poke("line_error", 1)
    link.sim.run(3)
    link.sim.poke("line_error", 0)
    assert link.status().line_errors == 3


def test_requests_beside_a_generation(slow_link):
    link = slow_link
    link.prompt([1])
    link.send(encode_frame(Request.GENERATE, pack_generate(8)))
    link.sim.run(400)
    (first,) = link.decoder.feed(bytes(link.sim.take("o_byte")))
    assert first.kind == Reply.TOKEN
    assert link.status().state == RunState.GENERATE
    for request, payload in ((Request.PROMPT, bytes(2)), (Request.GENERATE, pack_generate(1))):
        link.send(encode_frame(request, payload))
        link.sim.run(60)
        (frame,) = link.decoder.feed(bytes(link.sim.take("o_byte")))
        assert ErrorReply.decode(frame.payload) == ErrorReply(ErrorCode.BUSY, request, 0)
    link.send(encode_frame(Request.STOP))
    frames = link.frames(1000)
    assert [frame.kind for frame in frames] == [Reply.TOKEN, Reply.DONE, Reply.DONE]
    done = DoneReply.decode(frames[1].payload)
    assert (done.request, done.status, done.count) == (Request.GENERATE, Status.STOPPED, 2)
    assert DoneReply.decode(frames[2].payload).request == Request.STOP
    token = continue_from(1, 0, 2)[-1]
    link.send(encode_frame(Request.GENERATE, pack_generate(1)))
    (frame, _) = link.frames(1000)
    assert TokenReply.decode(frame.payload) == continue_from(token.token, 2, 1)[0]


def test_reset_ends_a_generation(slow_link):
    link = slow_link
    link.prompt([1, 2])
    link.send(encode_frame(Request.GENERATE, pack_generate(9)))
    link.sim.run(60)
    link.send(encode_frame(Request.RESET))
    frames = link.frames(2000)
    assert [frame.kind for frame in frames] == [Reply.TOKEN, Reply.DONE, Reply.DONE]
    assert link.status() == StatusReply(RunState.IDLE, StatusFlag(0), 0, 0, 0, 0)


def test_host_that_reads_slowly(engine):
    design = FakeDesign(vocabulary=VOCABULARY, context=CONTEXT, timeout_cycles=TIMEOUT)
    with make_engine(design, engine) as sim:
        sim.collect("o_byte", 1 << 30, ready_probability=0.1, seed=3)
        decoder = FrameDecoder()
        sim.put("i_byte", list(encode_frame(Request.PROMPT, pack_tokens([3, 4]))))
        sim.run(1000)
        sim.put(
            "i_byte",
            list(encode_frame(Request.GENERATE, pack_generate(3, logits=True))),
            valid_probability=0.3,
            seed=5,
        )
        sim.run(15000)
        frames = decoder.feed(bytes(sim.take("o_byte")))
    assert decoder.skipped == 0
    kinds = [frame.kind for frame in frames]
    assert kinds == [Reply.DONE] + [Reply.LOGITS, Reply.TOKEN] * 3 + [Reply.DONE]


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_hang_the_design(link, seed):
    """Mutations of good frames and random bytes: afterwards the design still answers."""
    rng = random.Random(seed)
    good = [
        encode_frame(Request.IDENTIFY),
        encode_frame(Request.PROMPT, pack_tokens([1, 2, 3])),
        encode_frame(Request.GENERATE, pack_generate(3)),
        encode_frame(Request.STEP, pack_tokens([3])),
        encode_frame(Request.RESET),
    ]
    for _ in range(6):
        for _ in range(rng.randrange(1, 4)):
            data = bytearray(rng.choice(good))
            match rng.randrange(5):
                case 0:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1:
                    del data[rng.randrange(len(data)) :]
                case 2:
                    data.insert(rng.randrange(len(data)), SYNC)
                case 3:
                    data = rng.randbytes(rng.randrange(1, 20))
            link.send(data)
        # The answers of a generation that was started and ended, silence, and then all is well.
        link.frames(1500)
        assert link.status().state == RunState.IDLE
    assert link.ask(Request.RESET, cycles=100)[-1].kind == Reply.DONE
    link.prompt([1])
    assert link.generate(1)[0] == continue_from(1, 0, 1)


def test_receiver_keeps_the_stream_contract():
    frames = [encode_frame(kind, bytes(range(kind))) for kind in range(1, 5)]
    expected = [kind | kind << 8 | 1 << 24 for kind in range(1, 5)]
    # One at a time: a frame that arrives while another waits is refused.
    for frame, wanted in zip(frames, expected, strict=True):
        check_stream(
            FrameReceiver(max_payload=8, timeout_cycles=1000),
            inputs={"i": list(frame)},
            expected={"o_frame": [wanted], "o_error": []},
        )


def test_transmitter_keeps_the_stream_contract():
    body = int.from_bytes(b"hello world!", "little")
    messages = [
        {"kind": 0x83, "length": 12, "source": 0, "body": body},
        {"kind": 0x81, "length": 3, "source": 1, "body": 0},
        {"kind": 0x84, "length": 32, "source": 2, "body": 0},
        {"kind": 0x82, "length": 0, "source": 0, "body": 0},
    ]
    logits = [[1, -1, 1 << 22, -(1 << 23)], [5, 6, 7, -8]]
    payload = b"".join(
        value.to_bytes(4, "little", signed=True) for beat in logits for value in beat
    )
    expected = (
        encode_frame(0x83, b"hello world!")
        + encode_frame(0x81, b"abc")
        + encode_frame(0x84, payload)
        + encode_frame(0x82)
    )
    check_stream(
        FrameTransmitter(identity=b"abc"),
        inputs={"i_message": messages, "i_logits": logits},
        expected={"o": list(expected)},
    )


def test_transmitter_drops_the_rest_of_a_last_beat():
    messages = [
        {"kind": 0x84, "length": 4 * count, "source": 2, "body": 0} for count in (5, 1, 8, 7)
    ] + [{"kind": 0x83, "length": 2, "source": 0, "body": 0x0201}]
    beats = [[16 * beat + lane for lane in range(4)] for beat in range(7)]
    numbers = [
        [0, 1, 2, 3, 16],
        [32],
        [48, 49, 50, 51, 64, 65, 66, 67],
        [*range(80, 84), 96, 97, 98],
    ]
    expected = b"".join(
        encode_frame(0x84, b"".join(value.to_bytes(4, "little") for value in values))
        for values in numbers
    ) + encode_frame(0x83, b"\1\2")
    check_stream(
        FrameTransmitter(identity=b"abc", whole_beats=False),
        inputs={"i_message": messages, "i_logits": beats},
        expected={"o": list(expected)},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 16384}, r"Vocabulary must be an integer from 1 to 16383, not 16384"),
        ({"context": 7}, r"Context must be an integer from 8 to 32767, not 7"),
        ({"model_hash": b"abc"}, r"Model hash must be 8 bytes, not b'abc'"),
        ({"clock_hz": 0}, r"Clock frequency must be a positive integer, not 0"),
        ({"timeout_cycles": 0}, r"Timeout must be a positive number of cycles, not 0"),
        ({"name": ""}, r"Name must be 1 to 40 bytes long, not ''"),
    ],
)
def test_parameters(changes, message):
    parameters = {
        "vocabulary": 64,
        "context": 16,
        "model_hash": bytes(8),
        "clock_hz": 1,
        "timeout_cycles": 9,
    }
    with pytest.raises(ValueError, match=f"^{message}$"):
        HostController(**(parameters | changes))


def test_parts_check_their_parameters():
    with pytest.raises(
        ValueError,
        match=r"^Payload buffer must be an even positive number of bytes below 65536, not 3$",
    ):
        FrameReceiver(max_payload=3, timeout_cycles=1)
    with pytest.raises(ValueError, match=r"^Identity must be 1 to 64 bytes, not b''$"):
        FrameTransmitter(identity=b"")
