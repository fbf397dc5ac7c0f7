"""A small design behind a simulated serial port: a controller and a decoder without a model."""

import contextlib

from mxhw.boards.wrapper import TIMEOUT_BITS, HostedDecoder
from mxhw.cosim.engine import make_engine
from mxhw.cosim.serial import SimulatedSerialPort
from tests.host.fake_decoder import FakeDecoder

MODEL_HASH = b"ABCDEFGH"
CLOCK_HZ = 65_000_000


def fake_hosted(*, vocabulary=512, context=32, delay=5):
    return HostedDecoder(
        decoder=FakeDecoder(vocabulary=vocabulary, context=context, delay=delay),
        vocabulary=vocabulary,
        context=context,
        model_hash=MODEL_HASH,
        clock_hz=CLOCK_HZ,
        baud=CLOCK_HZ * 2,
        name="mxhw test",
    )


@contextlib.contextmanager
def serial_design(*, engine="cxxrtl", pseudo_terminal=None, **sizes):
    with (
        make_engine(fake_hosted(**sizes), engine) as sim,
        SimulatedSerialPort(
            sim, quiet_cycles=TIMEOUT_BITS, pseudo_terminal=pseudo_terminal
        ) as port,
    ):
        yield port
