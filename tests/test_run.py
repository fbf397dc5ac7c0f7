"""The command ``python -m mxhw.run`` with a small design in place of the model's."""

import os
import signal
import threading

import pytest

from mxhw import run
from mxhw.compiler import hosted
from mxhw.compiler.context import Context
from mxhw.models.bundled import load
from mxhw.models.tokenizer import EOS
from mxhw.sw.host.client import MxhwClient, open_serial
from mxhw.sw.host.protocol import Identity, Reply, Status, encode_frame
from mxhw.sw.host.sampling import Sampler
from mxhw.sw.host.text import Speed, TextStream
from tests.host.fake_decoder import logit_of, next_token
from tests.host.serial_design import CLOCK_HZ, MODEL_HASH, fake_hosted, serial_design

CONTEXT = 32
needs_terminals = pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")


@pytest.fixture(scope="module")
def tokenizer():
    return load("llama")[1]


@pytest.fixture(autouse=True)
def heard_interrupts():
    """A shell lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.setattr(hosted, "hosted_decoder", lambda context: fake_hosted(context=CONTEXT))
    monkeypatch.setattr(Context, "model_hash", MODEL_HASH)

    def call(*arguments):
        status = run.main(list(arguments))
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def greedy(ids, count):
    """What the small decoder continues tokens with."""
    ids = list(ids)
    start = len(ids)
    while len(ids) < start + count and ids[-1] != EOS:
        ids.append(next_token(ids[-1], len(ids) - 1, 512))
    return ids


def error_line(text):
    (line,) = [line for line in text.splitlines() if line.startswith("mxhw: error: ")]
    assert "Traceback" not in text
    return line.removeprefix("mxhw: error: ")


def test_text_of_a_simulated_design(cli, tokenizer):
    status, out, err = cli("llama", "Once upon", "--tokens", "6")
    assert status == 0
    expected = tokenizer.decode(greedy(tokenizer.encode("Once upon"), 6))
    assert out == expected + "\n"
    assert "mxhw test simulated, model 4142434445464748, 65 MHz, context 32" in err
    assert "6 tokens in" in err
    assert "tokens/s projected at 65 MHz (a line of 2,000,000 baud carries" in err


def test_quiet(cli):
    status, _, err = cli("llama", "Once", "--tokens", "2", "--quiet")
    assert (status, err) == (0, "")


def test_text_ends_with_the_context(cli):
    status, _, err = cli("llama", "Lily", "--tokens", "100")
    assert status == 0
    assert "until the context was full: " in err or "to the end of the text: " in err


def sampled(ids, count, sampler):
    ids = list(ids)
    for _ in range(count):
        logits = [logit_of(ids[-1], len(ids) - 1, index) / 4096 for index in range(512)]
        ids.append(sampler.choose(logits))
        if ids[-1] == EOS:
            break
    return ids


def test_sampling_on_the_host(cli, tokenizer):
    options = ("--temperature", "8", "--top-p", "0.9", "--seed", "5", "--quiet")
    status, out, _ = cli("llama", "Lily", "--tokens", "8", *options)
    assert status == 0
    sampler = Sampler(temperature=8, top_p=0.9, seed=5)
    assert out == tokenizer.decode(sampled(tokenizer.encode("Lily"), 8, sampler)) + "\n"


def test_temperature_zero_is_greedy(cli):
    texts = {cli("llama", "Lily", "--tokens", "4", *more)[1] for more in ((), ("--temperature=0",))}
    assert len(texts) == 1


@needs_terminals
def test_board_and_simulation_are_served_alike(cli, tokenizer):
    simulated = cli("llama", "Once upon", "--tokens", "6")[1]
    with serial_design(context=CONTEXT) as port:
        status, out, err = cli("llama", "Once upon", "--tokens", "6", "--port", port.url)
    assert (status, out) == (0, simulated)
    assert f"mxhw test at {port.url}, model" in err
    assert "tokens/s measured" in err


@needs_terminals
def test_other_bitstream(cli, monkeypatch):
    monkeypatch.setattr(Context, "model_hash", b"abcdefgh")
    with serial_design(context=CONTEXT) as port:
        status, out, err = cli("llama", "Once", "--port", port.url)
    assert (status, out) == (1, "")
    assert error_line(err) == (
        "The design holds model 4142434445464748, not 6162636465666768: build and load it again"
    )


class Line:
    """The far end of a pseudo-terminal that a test answers on."""

    def __init__(self, answer):
        import tty

        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.name = os.ttyname(self.slave)
        self.answer = answer
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        try:
            while data := os.read(self.master, 4096):
                reply = self.answer(data)
                if reply is None:
                    self.hang_up()
                    return
                os.write(self.master, reply)
        except OSError:
            pass

    def hang_up(self):
        os.close(self.slave)
        os.close(self.master)


@needs_terminals
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda data: b"", "The design did not answer IDENTIFY within 0.3 s"),
        (lambda data: data, "The design did not answer IDENTIFY within 0.3 s"),
        (lambda data: b"login: \r\n" * 9, "The design did not answer IDENTIFY within 0.3 s"),
        (
            lambda data: encode_frame(Reply.IDENTITY, b"\1"),
            "The design sent a malformed frame: Identity must have at least 18 bytes, not 1",
        ),
    ],
    ids=["silence", "echo", "text", "short identity"],
)
def test_no_design_at_the_port(cli, monkeypatch, answer, reason):
    monkeypatch.setattr(run, "_BOARD_TIMEOUT_S", 0.3)
    line = Line(answer)
    status, out, err = cli("llama", "Once", "--port", line.name)
    assert (status, out) == (2, "")
    assert error_line(err) == (
        f"No design of mxhw answers at {line.name} with 2000000 baud: {reason}; "
        f"load the bitstream first"
    )


@needs_terminals
def test_lost_line(cli):
    identity = Identity(vocabulary=512, context=32, model_hash=MODEL_HASH, clock_hz=CLOCK_HZ)
    answers = [encode_frame(Reply.IDENTITY, identity.encode())]
    line = Line(lambda data: answers.pop(0) if answers else None)
    status, _, err = cli("llama", "Once", "--port", line.name)
    assert status == 2
    assert error_line(err).startswith("The link failed: ")


def test_port_that_is_not_there(cli, tmp_path):
    status, _, err = cli("llama", "Once", "--port", str(tmp_path / "tty"))
    assert status == 1
    assert error_line(err) == (
        f"Serial port '{tmp_path}/tty' cannot be opened: No such file or directory"
    )


def interrupt(monkeypatch):
    """Press Ctrl-C at the second piece of a text."""
    show, calls = run._show, []

    def stop(text):
        show(text)
        calls.append(text)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run, "_show", stop)


@needs_terminals
def test_interrupt_leaves_the_design_idle(cli, monkeypatch):
    interrupt(monkeypatch)
    with serial_design(context=CONTEXT) as port:
        status, out, err = cli("llama", "Once", "--port", port.url, "--tokens", "20")
        assert (status, error_line(err)) == (130, "interrupted")
        assert out.endswith("\n")
        with open_serial(port.url, baud=1_000_000, timeout_s=0.05) as line:
            assert MxhwClient(line).status().state == 0


def test_conversation(cli, monkeypatch, tokenizer):
    lines = iter(["Lily", "", "word " * 100, "Tom"])

    def ask(sign=""):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    status, out, err = cli("llama", "Once", "--interactive", "--tokens", "3")
    assert status == 0
    texts = [tokenizer.decode(greedy(tokenizer.encode(text), 3)) for text in ("Once", "Lily")]
    assert out.startswith("\n".join(texts) + "\n")
    last = tokenizer.decode(greedy(tokenizer.encode("Tom"), 3))
    assert out.endswith(f"\n{last}\n")
    assert "mxhw: A prompt must have at most 32 tokens, not " in err


def test_interrupted_text_does_not_end_a_conversation(cli, monkeypatch, tokenizer):
    interrupt(monkeypatch)
    lines = iter(["Tom"])
    monkeypatch.setattr("builtins.input", lambda sign="": next(lines, None) or end())

    def end():
        raise EOFError

    status, out, err = cli("llama", "Once", "-i", "--tokens", "9")
    assert status == 0
    assert "mxhw: interrupted\n" in err
    assert out.endswith(tokenizer.decode(greedy(tokenizer.encode("Tom"), 9)) + "\n")


def test_failing_simulation(cli, monkeypatch):
    from mxhw.cosim.cxxrtl import CxxrtlEngine

    def fail(self, cycles):
        raise AssertionError("stream 'o' dropped 'valid'")

    monkeypatch.setattr(CxxrtlEngine, "run", fail)
    status, _, err = cli("llama", "Once")
    assert status == 2
    assert error_line(err) == "The simulation failed: stream 'o' dropped 'valid'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lama", "x"), "There is no model 'lama': did you mean 'llama'?"),
        (("llama", "x", "--board", "ulx3s"), None),
        (
            ("llama", "x", "--seed", "1"),
            "Greedy text needs no --seed: add --temperature or --top-p",
        ),
        (("llama", "x", "--top-p", "0"), "Top-p must be above 0 and at most 1, not 0"),
        (
            ("llama", "x", "--temperature=-1"),
            "Temperature must be a number from 0 up, not -1",
        ),
        (("llama", "x", "--clock", "1"), None),
        (
            ("llama", "x", "--tokens", "0"),
            "Invalid value for '--tokens': 0 is not in the range 1<=x<=65535. "
            "(--help lists the options)",
        ),
    ],
)
def test_requests_that_cannot_be_served(capsys, arguments, message):
    assert run.main(list(arguments)) == 1
    found = error_line(capsys.readouterr().err)
    assert message is None or found == message


def test_speed():
    speed = Speed(tokens=10, seconds=2.0, cycles=1000, line_bytes=200, status=Status.COMPLETE)
    assert run.describe_speed(speed, 50_000_000, 1_000_000, simulated=False) == (
        "10 tokens in 2.0 s: 5.0 tokens/s measured; 100 cycles a token, 500,000 tokens/s at 50 MHz "
        "(a line of 1,000,000 baud carries 5,000)"
    )
    none = Speed(tokens=0, seconds=0.0, cycles=0, line_bytes=0, status=Status.STOPPED)
    assert "0 tokens in 0.0 s" in run.describe_speed(none, 1, 1, simulated=True)


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def test_characters_of_several_tokens():
    stream = TextStream(Bytes())
    pieces = [stream.push([byte]) for byte in "aé€".encode()]
    assert pieces == ["a", "", "é", "", "", "€"]
    assert stream.push(b"\xe2") == ""
    assert stream.push([], last=True) == "\ufffd"
