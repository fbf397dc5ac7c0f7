import random
import struct

import pytest
from amaranth.lib.crc.catalog import CRC16_IBM_SDLC

from mxhw.sw.host import protocol
from mxhw.sw.host.protocol import (
    Capability,
    DoneReply,
    ErrorReply,
    Frame,
    FrameDecoder,
    Identity,
    StatusReply,
    TokenReply,
    crc16,
    encode_frame,
    pack_generate,
    pack_tokens,
    unpack_logits,
)


def test_crc_is_that_of_the_hardware():
    rng = random.Random(1)
    hardware = CRC16_IBM_SDLC(data_width=8)
    assert crc16(b"123456789") == 0x906E
    for length in (0, 1, 7, 100):
        data = rng.randbytes(length)
        assert crc16(data) == hardware.compute(data)


def test_frame_layout():
    frame = encode_frame(0x03, b"\x01\x02")
    assert frame[:6] == b"\xa5\x03\x02\x00\x01\x02"
    assert frame[6:] == struct.pack("<H", crc16(frame[1:6]))
    assert Frame(0x03, b"\x01\x02").encode() == frame
    with pytest.raises(
        ValueError, match=r"^Payload of a frame must have at most 65535 bytes, not 65536$"
    ):
        encode_frame(1, bytes(65536))


def test_payloads():
    assert pack_tokens([1, 512]) == b"\x01\x00\x00\x02"
    assert pack_generate(5) == b"\x05\x00\x00\x00\x00\x00"
    assert pack_generate(5, logits=True, stop_token=258) == b"\x05\x00\x03\x00\x02\x01"
    assert unpack_logits(struct.pack("<2i", 4096, -2048)) == (1.0, -0.5)
    identity = Identity(
        vocabulary=512, context=256, model_hash=b"12345678", clock_hz=65_000_000, name="mxhw 1"
    )
    assert Identity.decode(identity.encode()) == identity
    assert identity.capabilities == Capability.LOGITS
    with pytest.raises(ValueError, match=r"^Identity must have at least 18 bytes, not 3$"):
        Identity.decode(b"abc")


@pytest.mark.parametrize(
    ("kind", "size"), [(DoneReply, 12), (TokenReply, 4), (StatusReply, 10), (ErrorReply, 4)]
)
def test_malformed_replies(kind, size):
    with pytest.raises(ValueError, match=rf"^{kind.__name__} must have {size} bytes, not 1$"):
        kind.decode(b"1")


def test_decoder_takes_frames_in_any_pieces():
    rng = random.Random(2)
    frames = [Frame(rng.randrange(256), rng.randbytes(rng.randrange(30))) for _ in range(40)]
    data = b"".join(frame.encode() for frame in frames)
    decoder = FrameDecoder()
    found = []
    while data:
        # Never more than the decoder lacks, as the client reads.
        size = rng.randrange(1, decoder.wanted + 1)
        found += decoder.feed(data[:size])
        data = data[size:]
    assert found == frames
    assert decoder.skipped == 0
    assert decoder.wanted == protocol.FRAME_OVERHEAD


def test_decoder_finds_the_frame_after_a_broken_one():
    good = encode_frame(0x82, b"\xa5\xa5good")
    bad = bytearray(encode_frame(0x84, b"bad"))
    bad[5] ^= 1
    decoder = FrameDecoder(max_payload=100)
    assert decoder.feed(b"noise" + bad + good) == [Frame(0x82, b"\xa5\xa5good")]
    assert decoder.skipped == 5 + len(bad)
    # A frame cut off, and a length that cannot be.
    assert decoder.feed(good[:6] + b"\xa5\x01\xff\xff" + good + good) != []
    decoder.flush()
    assert decoder.feed(good) == [Frame(0x82, b"\xa5\xa5good")]


def test_all_names_are_there():
    for name in protocol.__all__:
        assert hasattr(protocol, name)
