import os
import re
import sys
import time

import pytest

from mxhw.cosim.engine import make_engine
from mxhw.cosim.serial import SimulatedSerialPort
from mxhw.sw.host.client import LinkError, MxhwClient, open_serial
from mxhw.sw.host.protocol import ErrorCode, ErrorReply, FrameDecoder, Reply, encode_frame
from tests.host.fake_decoder import next_token
from tests.host.serial_design import MODEL_HASH, fake_hosted, serial_design

needs_terminals = pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")


@pytest.mark.parametrize(
    "pseudo_terminal", [pytest.param(True, marks=needs_terminals), False], ids=["pty", "socket"]
)
def test_conversation(pseudo_terminal):
    with (
        serial_design(pseudo_terminal=pseudo_terminal) as port,
        open_serial(port.url, baud=1_000_000, timeout_s=0.05) as line,
    ):
        client = MxhwClient(line, model_hash=MODEL_HASH)
        assert client.identity.name == "mxhw test"
        client.prompt([7, 8, 9])
        expected = [next_token(9, 2, 512)]
        for position in range(3, 7):
            expected.append(next_token(expected[-1], position, 512))
        assert [item.token for item in client.generate(5).tokens] == expected
        assert len(client.step(5)) == 512
    assert port.failure is None


def test_pysim_serves_too():
    with (
        serial_design(engine="pysim", vocabulary=64, context=16) as port,
        open_serial(port.url, baud=1_000_000, timeout_s=0.05) as line,
    ):
        assert MxhwClient(line).identify().vocabulary == 64


@needs_terminals
def test_one_program_after_another():
    with serial_design() as port:
        for _ in range(2):
            with open_serial(port.url, baud=1_000_000, timeout_s=0.05) as line:
                MxhwClient(line).identify()


def test_silence_is_simulated():
    """A frame that breaks off is answered although nothing more arrives."""
    with (
        serial_design() as port,
        open_serial(port.url, baud=1_000_000, timeout_s=0.05) as line,
    ):
        line.write(encode_frame(3, b"\1\0")[:-3])
        decoder, frames = FrameDecoder(), []
        deadline = time.monotonic() + 60
        while not frames and time.monotonic() < deadline:
            frames += decoder.feed(line.read(16))
    (frame,) = frames
    assert frame.kind == Reply.ERROR
    assert ErrorReply.decode(frame.payload).code == ErrorCode.TRUNCATED


@pytest.mark.parametrize(
    "pseudo_terminal", [pytest.param(True, marks=needs_terminals), False], ids=["pty", "socket"]
)
def test_failing_simulation_closes_the_line(pseudo_terminal, monkeypatch):
    with make_engine(fake_hosted()) as sim:
        with (
            SimulatedSerialPort(sim, quiet_cycles=10, pseudo_terminal=pseudo_terminal) as port,
            open_serial(port.url, baud=1_000_000, timeout_s=0.05) as line,
        ):

            def fail(cycles):
                raise AssertionError("the design is broken")

            monkeypatch.setattr(sim, "run", fail)
            with pytest.raises(LinkError, match=r"^The link failed: "):
                MxhwClient(line, timeout_s=60).identify()
        assert str(port.failure) == "the design is broken"


def test_quiet_time_must_be_positive():
    with make_engine(fake_hosted()) as sim:
        message = "Quiet time must be a positive number of cycles, not 0"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            SimulatedSerialPort(sim, quiet_cycles=0)


@pytest.mark.skipif(sys.platform == "win32", reason="names of ports differ")
def test_port_that_is_gone():
    with serial_design() as port:
        pass
    with pytest.raises(Exception, match=r"^Serial port '.*' cannot be opened: "):
        open_serial(port.url, baud=1_000_000)
