# amaranth: UnusedElaboratable=no
import json

import pytest
from amaranth.sim import Simulator

from mxhw.boards.catalog import BOARDS
from mxhw.boards.platforms import create_platform
from mxhw.boards.wrapper import BoardTop, HostedDecoder
from mxhw.cosim.engine import make_engine
from mxhw.dataflow.uart import UartReceiver, UartTransmitter
from mxhw.errors import UserError
from mxhw.sw.host.client import EngineTransport, MxhwClient
from tests.host.fake_decoder import FakeDecoder


def board_top(name, **options):
    options = {"clock_hz": 65_000_000} | options
    return BoardTop(
        decoder=FakeDecoder(vocabulary=64, context=16),
        vocabulary=64,
        context=16,
        model_hash=bytes(8),
        board=BOARDS[name],
        **options,
    )


TRELLIS = ["ulx3s-85f", "ulx3s-12f", "ecpix5-85f", "versa-ecp5", "colorlight-5a-75b", "icepi-zero"]


@pytest.mark.parametrize("name", TRELLIS)
def test_plan_of_a_board(name):
    top = board_top(name)
    assert top.clock_hz == 65_000_000
    plan = create_platform(BOARDS[name]).build(top, do_build=False, emit_src=False)
    assert "cell \\EHXPLLL \\pll" in plan.files["top.il"]
    assert "cell \\SGSR \\global_reset" in plan.files["top.il"]
    constraints = plan.files["top.lpf"]
    assert 'FREQUENCY NET "pll.clk_pll" 65000000.0 HZ;' in constraints
    assert "uart_0__rx__io" in constraints
    assert "uart_0__tx__io" in constraints
    commands = json.loads(plan.files["build_top.json"])["commands"]
    assert len(commands) == 3


def test_refusals():
    with pytest.raises(
        UserError, match=r"^Board 'orangecrab-85f' has no serial port to talk to the host$"
    ):
        board_top("orangecrab-85f")
    with pytest.raises(
        UserError,
        match=r"^Board 'ulx3s-85f': No PLL setting makes 600000000 Hz from 25000000 Hz$",
    ):
        board_top("ulx3s-85f", clock_hz=600_000_000)
    with pytest.raises(UserError, match=r"^Board 'ulx3s-85f': Baud rate must be at most a quarter"):
        board_top("ulx3s-85f", baud=20_000_000)


def hosted(**options):
    return HostedDecoder(
        decoder=FakeDecoder(vocabulary=64, context=16),
        vocabulary=64,
        context=16,
        model_hash=b"ABCDEFGH",
        clock_hz=4_000_000,
        baud=1_000_000,
        **options,
    )


def test_hosted_decoder_serves_a_client():
    with make_engine(hosted(), "pysim") as sim:
        client = MxhwClient(EngineTransport(sim, read_cycles=400), timeout_s=0)
        client.prompt([1, 2])
        assert [item.position for item in client.generate(2).tokens] == [2, 3]


def test_serial_line_end_to_end():
    """IDENTIFY over the two serial units, as BoardTop connects them."""
    from amaranth.hdl import Elaboratable, Module

    from mxhw.dataflow.link import link
    from mxhw.sw.host.protocol import FrameDecoder, Reply, Request, encode_frame

    rates = {"clock_hz": 4_000_000, "baud": 1_000_000}

    class Line(Elaboratable):
        def __init__(self):
            self.send = UartTransmitter(**rates)
            self.receive = UartReceiver(**rates)

        def elaborate(self, platform):
            m = Module()
            m.submodules.send = self.send
            m.submodules.receive = self.receive
            m.submodules.rx = rx = UartReceiver(**rates)
            m.submodules.tx = tx = UartTransmitter(**rates)
            m.submodules.design = design = hosted()
            link(m, rx.o, design.i_byte)
            link(m, design.o_byte, tx.i)
            m.d.comb += [rx.rx.eq(self.send.tx), self.receive.rx.eq(tx.tx)]
            return m

    line = Line()
    received = bytearray()

    async def send(ctx):
        for byte in encode_frame(Request.IDENTIFY):
            ctx.set(line.send.i.payload, byte)
            ctx.set(line.send.i.valid, 1)
            await ctx.tick().until(line.send.i.ready)
        ctx.set(line.send.i.valid, 0)

    async def receive(ctx):
        ctx.set(line.receive.o.ready, 1)
        for _ in range(2500):
            await ctx.tick()
            if ctx.get(line.receive.o.valid):
                received.append(ctx.get(line.receive.o.payload))

    sim = Simulator(line)
    sim.add_clock(1e-6)
    sim.add_testbench(send)
    sim.add_testbench(receive)
    sim.run()
    (frame,) = FrameDecoder().feed(bytes(received))
    assert frame.kind == Reply.IDENTITY
