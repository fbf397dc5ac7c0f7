"""The bundled model's design, simulated as ``mxhw.run`` does, under corrupted frames."""

import itertools
import random
import struct
import time
from pathlib import Path

import pytest
import torch

from mxhw.compiler.context import Context, Settings
from mxhw.compiler.progress import SilentProgress
from mxhw.compiler.simulate import write_script
from mxhw.run import open_simulation
from mxhw.sw.host.client import MxhwClient, open_serial
from mxhw.sw.host.protocol import (
    SYNC,
    ErrorCode,
    ErrorReply,
    FrameDecoder,
    Reply,
    Request,
    TokenReply,
    encode_frame,
    pack_generate,
    pack_tokens,
)
from mxhw.sw.host.text import TextGenerator

FRAMES = 10_000
PATIENCE_S = 1800
TOKENS = 24
VOCABULARY, CONTEXT = 512, 256
PROMPT = "Once upon a time"


def request(rng):
    """A good request of any kind."""
    kind = rng.choice(list(Request))
    payload = b""
    if kind == Request.PROMPT:
        payload = pack_tokens(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12)))
    elif kind == Request.GENERATE:
        payload = pack_generate(rng.randrange(1 << 16), logits=rng.random() < 0.5)
    elif kind == Request.STEP:
        payload = pack_tokens([rng.randrange(VOCABULARY)])
    return encode_frame(kind, payload)


def flip(rng):
    data = bytearray(request(rng))
    # One to three wrong bits are always found by the CRC.
    for place in rng.sample(range(8, 8 * len(data)), rng.randint(1, 3)):
        data[place // 8] ^= 1 << place % 8
    return bytes(data)


def damage(rng):
    data = bytearray(request(rng))
    start = rng.randrange(1, len(data))
    end = min(len(data), start + rng.randint(1, 4))
    for place in range(start, end):
        data[place] ^= rng.randrange(1, 256)
    return bytes(data)


def unknown(rng):
    kind = rng.choice([k for k in range(256) if k not in list(Request)])
    return encode_frame(kind, rng.randbytes(rng.randrange(9)))


def wrong_length(rng):
    kind, right = rng.choice([(Request.STEP, 2), (Request.GENERATE, 6), (Request.STATUS, 0)])
    length = rng.choice([n for n in range(12) if n != right])
    return encode_frame(kind, bytes(length))


def too_long(rng):
    return encode_frame(Request.PROMPT, bytes(2 * CONTEXT + 2 * rng.randint(1, 8)))


def token_range(rng):
    ids = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 9))]
    ids[rng.randrange(len(ids))] = rng.randrange(VOCABULARY, 1 << 16)
    return encode_frame(Request.PROMPT, pack_tokens(ids))


def bad_flags(rng):
    return encode_frame(
        Request.GENERATE, struct.pack("<HHH", rng.randrange(99), rng.randrange(4, 1 << 16), 0)
    )


def no_token(rng):
    return encode_frame(Request.GENERATE, pack_generate(rng.randrange(1, 1 << 16)))


def truncated(rng):
    data = request(rng)
    return data[: rng.randrange(1, len(data))]


def noise(rng):
    return bytes(rng.choice([b for b in range(256) if b != SYNC]) for _ in range(9))


#: Each kind and how often it comes; the last two are answered only after a silence.
KINDS = {
    flip: 40,
    damage: 30,
    unknown: 6,
    wrong_length: 6,
    too_long: 2,
    token_range: 6,
    bad_flags: 4,
    no_token: 2,
    truncated: 2,
    noise: 2,
}


class Line:
    """A serial line to the design: frames out, replies in, in order."""

    def __init__(self, serial):
        self.serial = serial
        self.decoder = FrameDecoder(max_payload=4 * VOCABULARY)
        self.frames = []

    def send(self, data):
        self.serial.write(data)

    def reply(self):
        # A busy machine can let the simulation wait for minutes.
        end = time.monotonic() + PATIENCE_S
        while not self.frames:
            if time.monotonic() > end:
                raise TimeoutError("The design did not answer")
            self.frames += self.decoder.feed(self.serial.read(self.decoder.wanted))
        return self.frames.pop(0)


@pytest.fixture(scope="module")
def context():
    context = Context(Settings("llama", "ulx3s-85f"), Path(), SilentProgress())
    torch.set_num_threads(1)
    return context


@pytest.fixture(scope="module")
def golden(context):
    """The tokens that the golden model chooses."""
    prompt = context.tokenizer.encode(PROMPT)
    return write_script(context.decode, prompt, TOKENS, CONTEXT).chosen


def text_of(client, tokenizer):
    pieces = []
    TextGenerator(client, tokenizer).generate(PROMPT, TOKENS, pieces.append)
    return "".join(pieces)


@pytest.mark.slow
def test_ten_thousand_corrupted_frames(context, golden):
    rng = random.Random(1)
    tokenizer = context.tokenizer
    prompt = tokenizer.encode(PROMPT)
    expected = tokenizer.decode([*prompt, *golden])
    found = dict.fromkeys(ErrorCode, 0)
    with (
        open_simulation(context, SilentProgress()) as port,
        open_serial(port.url, baud=1_000_000) as serial,
    ):
        client = MxhwClient(serial, timeout_s=PATIENCE_S, model_hash=context.model_hash)
        assert text_of(client, tokenizer) == expected
        client.reset()
        line = Line(serial)
        kinds = rng.choices(list(KINDS), KINDS.values(), k=FRAMES)
        for kind in kinds:
            data = kind(rng)
            if kind is noise:
                # Bytes after a broken frame count as its own until a good one or a silence.
                client.status()
            line.send(data)
            frame = line.reply()
            assert frame.kind == Reply.ERROR, (kind.__name__, data.hex(), frame)
            found[ErrorReply.decode(frame.payload).code] += 1
            if SYNC in data[1:]:
                # A sync byte inside may have begun another frame: get in step again.
                client.status()
        status = client.status()
        assert (status.state, status.position) == (0, 0)
        assert sum(found.values()) == FRAMES
        # Nothing was running, and a frame longer than any good prompt is a wrong length.
        rare = {ErrorCode.BUSY, ErrorCode.PROMPT_TOO_LONG}
        assert {code for code, count in found.items() if count} == set(ErrorCode) - rare
        assert text_of(client, tokenizer) == expected

        # And while a text is generated: none of its tokens is lost or wrong.
        client.reset()
        client.prompt(prompt)
        line.send(encode_frame(Request.GENERATE, pack_generate(TOKENS)))
        harmless = itertools.cycle([unknown, wrong_length, token_range])
        tokens, errors = [], 0
        line.send(next(harmless)(rng))
        while (frame := line.reply()).kind != Reply.DONE:
            if frame.kind == Reply.TOKEN:
                tokens.append(TokenReply.decode(frame.payload).token)
            else:
                assert frame.kind == Reply.ERROR
                errors += 1
                line.send(next(harmless)(rng))
        assert tokens == golden
        assert errors >= TOKENS
        client.status()
        assert text_of(client, tokenizer) == expected
