import re
import struct
import sys

import pytest

from mxhw.cosim.engine import make_engine
from mxhw.errors import UserError
from mxhw.sw.host import client as client_module
from mxhw.sw.host.client import EngineTransport, LinkError, MxhwClient, open_serial
from mxhw.sw.host.protocol import (
    ErrorCode,
    FrameDecoder,
    Identity,
    Reply,
    Request,
    Status,
    encode_frame,
)
from tests.host.fake_decoder import FakeDesign, logit_of, next_token

IDENTITY = Identity(vocabulary=64, context=16, model_hash=b"ABCDEFGH", clock_hz=65_000_000)
IDENTIFIED = encode_frame(Reply.IDENTITY, IDENTITY.encode())


def done(request, status=Status.COMPLETE, count=0):
    return encode_frame(Reply.DONE, struct.pack("<BBHII", request, status, count, 100, 10))


def error(code, request=0, detail=0):
    return encode_frame(Reply.ERROR, struct.pack("<BBH", code, request, detail))


def token(number, position):
    return encode_frame(Reply.TOKEN, struct.pack("<HH", number, position))


class Script:
    """A transport that answers each request with the next of the given bytes."""

    def __init__(self, *answers, first=IDENTIFIED):
        self.answers = [first, *answers]
        self.decoder = FrameDecoder()
        self.requests = []
        self.data = b""

    def write(self, data):
        for frame in self.decoder.feed(data):
            self.requests.append(frame)
            self.data += self.answers.pop(0) if self.answers else b""

    def read(self, size):
        data, self.data = self.data[:size], self.data[size:]
        return data


def client_of(*answers, **options):
    script = Script(*answers, **options)
    return MxhwClient(script, timeout_s=0), script


@pytest.fixture
def client(engine):
    with make_engine(FakeDesign(), engine) as sim:
        yield MxhwClient(EngineTransport(sim, read_cycles=600), timeout_s=0, model_hash=b"ABCDEFGH")


def test_conversation_with_a_design(client):
    assert client.identity.name == "mxhw test"
    assert client.prompt([1, 2, 3]).count == 3
    seen = []
    generation = client.generate(3, on_token=seen.append)
    assert generation.tokens == tuple(seen)
    assert generation.status == Status.COMPLETE
    expected = 3
    for position, item in enumerate(generation.tokens):
        expected = next_token(expected, position + 2, 64)
        assert (item.token, item.position, item.logits) == (expected, position + 3, None)
    (item,) = client.generate(1, logits=True).tokens
    assert item.logits == tuple(logit_of(expected, 5, index) / 4096 for index in range(64))
    assert client.status().position == 7
    client.reset()
    assert client.status().position == 0
    # Sampling by the host.
    for position, number in enumerate([9, 8]):
        logits = client.step(number)
        assert logits == tuple(logit_of(number, position, index) / 4096 for index in range(64))


def test_refusals_of_a_design(client):
    client.prompt(range(10))
    with pytest.raises(
        UserError,
        match=r"^The context has room for 6 more tokens: shorten the prompt or reset$",
    ):
        client.prompt(range(10))
    with pytest.raises(UserError, match=r"^Token must be from 0 to 63, not 64$"):
        client.prompt([64])
    with pytest.raises(UserError, match=r"^A prompt must have at most 16 tokens, not 17$"):
        client.prompt([0] * 17)
    with pytest.raises(UserError, match=r"^A prompt must have at least one token$"):
        client.prompt([])
    with pytest.raises(UserError, match=r"^Number of tokens must be from 0 to 65535, not -1$"):
        client.generate(-1)
    client.reset()
    with pytest.raises(UserError, match=r"^There is no token to go on from: give a prompt first$"):
        client.generate(1)


def test_caller_that_stops(client):
    """An exception in the callback leaves the design idle and the link in step."""
    client.prompt([1])

    def interrupt(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.generate(14, on_token=interrupt)
    assert client.status().state == 0
    client.reset()
    client.prompt([5])
    assert [item.token for item in client.generate(1).tokens] == [next_token(5, 0, 64)]


class InterruptedScript(Script):
    """Ctrl-C in the middle of a read: what it had read is lost."""

    lost = 0

    def write(self, data):
        for frame in self.decoder.feed(data):
            self.requests.append(frame)
            logits = encode_frame(Reply.LOGITS, bytes(range(256)))
            before = {Request.IDENTIFY: IDENTIFIED, Request.STEP: logits}.get(frame.kind, b"")
            self.data += before if before == IDENTIFIED else before + done(frame.kind)

    def read(self, size):
        if self.lost and len(self.data) > self.lost:
            self.data = self.data[self.lost :]
            self.lost = 0
            raise KeyboardInterrupt
        return super().read(size)


@pytest.mark.parametrize("lost", [1, 100, 250])
def test_interrupted_read(monkeypatch, lost):
    """The design is asked again at once, however long an answer may take."""
    monkeypatch.setattr(client_module, "_GAP_SECONDS", 0.0)
    script = InterruptedScript()
    client = MxhwClient(script, timeout_s=600)
    client.identify()
    script.lost = lost
    with pytest.raises(KeyboardInterrupt):
        client.step(1)
    client.stop()
    client.reset()
    assert Request.STOP in [frame.kind for frame in script.requests]


def test_other_model():
    client = MxhwClient(Script(), timeout_s=0, model_hash=b"abcdefgh")
    with pytest.raises(
        UserError,
        match=r"^The design holds model 4142434445464748, not 6162636465666768: "
        r"build and load it again$",
    ):
        client.status()


def test_other_version():
    old = Identity(vocabulary=64, context=16, model_hash=bytes(8), clock_hz=1, protocol_version=9)
    client, _ = client_of(first=encode_frame(Reply.IDENTITY, old.encode()))
    with pytest.raises(
        UserError, match=r"^The design speaks protocol version 9, this program version 1$"
    ):
        client.identify()


def test_silence():
    client, script = client_of(first=b"")
    with pytest.raises(LinkError, match=r"^The design did not answer IDENTIFY within 0 s$"):
        client.identify()
    assert len(script.requests) == 3


def test_broken_requests_are_sent_again_where_that_is_safe():
    status = encode_frame(Reply.STATUS, struct.pack("<BBHHHH", 0, 0, 5, 0, 0, 0))
    client, script = client_of(error(ErrorCode.BAD_CRC, Request.STATUS), b"\xa5rubbish", status)
    assert client.status().position == 5
    assert [frame.kind for frame in script.requests[1:]] == [Request.STATUS] * 3


def test_broken_prompt_is_not_sent_again():
    client, script = client_of(error(ErrorCode.BAD_CRC, Request.PROMPT))
    with pytest.raises(
        LinkError, match=r"^PROMPT arrived broken \(BAD_CRC\) and was not acted upon$"
    ):
        client.prompt([1])
    assert [frame.kind for frame in script.requests] == [Request.IDENTIFY, Request.PROMPT]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (encode_frame(Reply.LOGITS, bytes(8)), "Logits must have 256 bytes, not 8"),
        (token(1, 1), "The logits of a token did not arrive"),
        (
            encode_frame(Reply.DONE, b"1"),
            "The design sent a malformed frame: DoneReply must have 12 bytes, not 1",
        ),
        (
            error(ErrorCode.BAD_FLAGS, Request.GENERATE),
            "The design refused GENERATE (BAD_FLAGS)",
        ),
        (b"", "The design did not answer GENERATE within 0 s"),
    ],
    ids=["short logits", "no logits", "short frame", "refusal", "silence"],
)
def test_broken_answers(answer, message):
    client, _ = client_of(answer)
    with pytest.raises(LinkError, match=f"^{re.escape(message)}$"):
        client.generate(2, logits=True)


def test_lost_token():
    client, _ = client_of(token(1, 1) + done(Request.GENERATE, count=2))
    with pytest.raises(LinkError, match=r"^The design sent 2 tokens, of which 1 arrived$"):
        client.generate(2)


def test_busy():
    client, _ = client_of(error(ErrorCode.BUSY, Request.PROMPT))
    with pytest.raises(UserError, match=r"^The design is busy and refused PROMPT$"):
        client.prompt([1])


def test_step_without_logits():
    client, _ = client_of(done(Request.STEP, count=1))
    with pytest.raises(LinkError, match=r"^The logits of a step did not arrive$"):
        client.step(1)


def test_bytes_from_before_are_dropped():
    script = Script()
    script.data = token(1, 1) + b"\xa5\x01"
    assert MxhwClient(script, timeout_s=0).identify() == IDENTITY


def test_failing_transport():
    class Unplugged:
        def write(self, data):
            raise OSError("device disconnected")

        def read(self, size):
            return b""

    with pytest.raises(LinkError, match=r"^The link failed: device disconnected$"):
        MxhwClient(Unplugged(), timeout_s=0).identify()


@pytest.mark.skipif(sys.platform == "win32", reason="names of ports differ")
def test_serial_port_that_is_not_there(tmp_path):
    port = str(tmp_path / "tty")
    with pytest.raises(UserError, match=rf"^Serial port '{re.escape(port)}' cannot be opened: "):
        open_serial(port, baud=1_000_000)
