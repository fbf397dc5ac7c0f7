"""The comparison finds the first difference of a damaged decoder and says what stopped."""

import re

import pytest

from mxhw.compiler import compare
from mxhw.compiler.compare import Comparison, Difference, compare_engine
from tests import tiny

TOKENS = [3, 17, 60]
BEATS = tiny.CONFIG.dim // 4
# Vectors that the residual sends for a token: the embedding, and two sums for each layer.
VECTORS = 1 + 2 * tiny.CONFIG.layers


def run(**options) -> Comparison:
    return compare_engine(
        tiny.simulation(), tiny.binding().shape, tiny.lowered(), TOKENS, **options
    )


def sums() -> list:
    return [node for node in tiny.lowered().graph.nodes if node.name.startswith("add")]


def test_a_flipped_bit_names_node_block_element_and_both_values(tmp_path):
    # Second vector of the first token, block 1, beat 2, lane 3.
    waveform = tmp_path / "first.vcd"
    with tiny.fault(BEATS + 8 + 2, flip=1 << (3 * 16)):
        difference = run(waveform=waveform).difference
    node = sums()[0]
    assert (difference.node, difference.stream) == (node.name, "residual.o")
    assert (difference.token, difference.block, difference.element) == (0, 1, 11)
    assert difference.what == "element"
    assert difference.hardware ^ difference.golden == 1
    assert str(difference) == (
        f"node {node.name} ({node.meta['source']}), token 0, block 1, element 11: hardware "
        f"{difference.hardware}, golden {difference.golden} (stream residual.o, "
        f"cycle {difference.cycle})"
    )
    lines = waveform.read_text().splitlines()
    times = [int(line[1:]) for line in lines if line.startswith("#")]
    assert len(times) > 100
    assert any(line.startswith("$var") for line in lines)
    # The same decoder without the fault agrees.
    assert run().difference is None


def test_a_flipped_sign_bit():
    with tiny.fault(BEATS + 3, flip=1 << 15):
        difference = run().difference
    assert (difference.block, difference.element) == (0, 12)
    assert abs(difference.hardware - difference.golden) == 1 << 15


def test_a_wrong_scale():
    with tiny.fault(2 * BEATS, flip=1 << (4 * 16)):
        difference = run().difference
    assert (difference.node, difference.what) == (sums()[1].name, "scale")
    assert difference.hardware ^ difference.golden == 1
    assert ", block 0, scale: hardware " in str(difference)


def test_a_unit_that_stops():
    with tiny.fault(BEATS + 5, stop=True):
        result = run()
    difference = result.difference
    assert (difference.node, difference.what, difference.cycle) == (sums()[0].name, "missing", -1)
    assert str(difference).endswith("token 0, block 0: stream residual.o stopped before element 20")


def test_a_unit_that_stops_has_a_waveform(tmp_path):
    waveform = tmp_path / "stopped.vcd"
    with tiny.fault(BEATS + 5, stop=True):
        run(waveform=waveform)
    assert waveform.stat().st_size > 1000


def test_a_fault_in_a_later_token():
    # The memory reaches into the fourth vector.
    with tiny.fault(3 * BEATS + 15, flip=1):
        difference = run().difference
    assert (difference.node, difference.block, difference.element) == (sums()[2].name, 1, 28)


class Extra:
    """Adds a transfer to a stream that is complete."""

    def __init__(self, sim, name):
        self._sim, self._name, self._done = sim, name, False

    def __getattr__(self, attribute):
        return getattr(self._sim, attribute)

    def take(self, name):
        rows = self._sim.take(name)
        if name == self._name and rows and not self._done:
            self._done = True
            rows = [*rows, rows[-1]]
        return rows

    def transfer_cycles(self, name):
        cycles = self._sim.transfer_cycles(name)
        return [*cycles, cycles[-1] + 1]


def test_more_than_golden():
    sim = Extra(tiny.simulation(), "argmax.o")
    sim.take("argmax.o")
    result = compare_engine(sim, tiny.binding().shape, tiny.lowered(), TOKENS[:1])
    assert result.difference.what == "extra"
    assert "stream argmax.o went on behind it in cycle " in str(result.difference)


# The command line, with stand-ins for the model and the hardware.


class Context:
    def __init__(self, settings, folder, progress):
        import types

        if settings.model != "llama":
            from mxhw.errors import UserError

            raise UserError(f"There is no model {settings.model!r}: choose one of llama")
        self.settings = settings
        self.decode = tiny.lowered()
        self.config = tiny.CONFIG
        self.tokenizer = types.SimpleNamespace(
            encode=lambda text: [1, *(ord(letter) % 64 for letter in text)]
        )

    def component(self):
        return "hardware"


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command: exit status, output, errors, and what was compared."""
    import types

    seen = types.SimpleNamespace(result=Comparison(None, 38, 2000), arguments=None)

    def compare_decoder(decoder, lowered, tokens, **options):
        options["on_progress"]("Building")
        seen.arguments = (decoder, tokens, options["waveform"], options["engine"])
        return seen.result

    monkeypatch.setattr("mxhw.compiler.context.Context", Context)
    monkeypatch.setattr(compare, "compare_decoder", compare_decoder)

    def call(*arguments):
        status = compare.main(arguments)
        return status, *capsys.readouterr(), seen

    call.seen = seen
    return call


def test_command_line_with_agreement(cli, tmp_path):
    status, out, errors, seen = cli(
        "llama", "--tokens", "2", "--prompt", "!!", "--waveform", str(tmp_path / "a.vcd")
    )
    assert status == 0
    assert out == "All agree: 38 nodes, 2000 transfers, 2 tokens\n"
    *steps, cost = errors.splitlines()
    assert steps == ["  Lowering 2 layers of model 'llama'", "  Building"]
    assert re.fullmatch(r"  \d+\.\d s, [\d,]+ MB at most", cost)
    assert seen.arguments == ("hardware", [1, 33], tmp_path / "a.vcd", "cxxrtl")


def test_command_line_continues_a_short_prompt(cli):
    *_, seen = cli("llama", "--tokens", "5", "--prompt", "!", "--engine", "pysim")
    _, tokens, waveform, engine = seen.arguments
    assert tokens[:2] == [1, 33]
    assert len(tokens) == 5
    assert (waveform, engine) == (None, "pysim")


def test_command_line_with_a_difference(cli):
    difference = Difference("add_1", "llama.py:9", "residual.o", 0, 1, 2, 3, 4, "element", 99)
    cli.seen.result = Comparison(difference, 5, 60)
    status, out, errors, _ = cli("llama")
    assert (status, out) == (1, "")
    assert errors.splitlines()[-1] == f"mxhw: error: {difference}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lama",), "There is no model 'lama': did you mean 'llama'?"),
        (("llama", "--tokens", "0"), "Number of tokens must be 1 to 64, not 0"),
        (("llama", "--tokens", "65"), "Number of tokens must be 1 to 64, not 65"),
        ((), "Missing argument 'MODEL'. (--help lists the options)"),
        (
            ("llama", "--engine", "x"),
            "Invalid value for '--engine': 'x' is not one of 'cxxrtl', 'pysim'. "
            "(--help lists the options)",
        ),
    ],
)
def test_command_line_errors(cli, arguments, message):
    status, out, errors, _ = cli(*arguments)
    assert (status, out) == (1, "")
    assert errors.splitlines()[-1] == f"mxhw: error: {message}"
