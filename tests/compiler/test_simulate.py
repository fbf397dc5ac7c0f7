import json
import types
from dataclasses import asdict

import numpy as np
import pytest
import torch
from amaranth.lib import data

from mxhw.compiler import steps
from mxhw.compiler.context import Context, Settings
from mxhw.compiler.float_reading import measure_node_errors
from mxhw.compiler.lower import lower
from mxhw.compiler.progress import SilentProgress
from mxhw.compiler.simulate import Script, ScriptStep, SimulationResult, replay, write_script
from mxhw.errors import BuildError, UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode
from mxhw.models.tokenizer import BOS, EOS

CONFIG = LlamaConfig(
    vocabulary_size=64, dim=32, hidden=32, layers=1, heads=1, kv_heads=1, context=12
)
STEP = data.StructLayout({"token": 6, "position": 4, "sample": 1, "logits": 1})


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(5)
    return Llama(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def decode(model):
    return lower(LlamaDecode(model))


def positions(script: Script) -> list[int]:
    return [step.position for step in script.steps]


def test_a_script_is_the_greedy_continuation(model, decode):
    prefill = lower(model)
    prompt = [BOS, 7, 9]
    script = write_script(decode, prompt, 6, CONFIG.context)
    sequence = list(prompt)
    for _ in range(6):
        chosen, _ = prefill(torch.tensor(sequence))
        sequence.append(int(chosen[-1]))
    assert script.sequences() == [sequence]
    assert script.chosen == sequence[3:]
    assert [step.chosen is None for step in script.steps] == [True, True] + [False] * 6
    assert list(script.logits) == [2]
    assert np.array_equal(script.logits[2], prefill(torch.tensor(prompt))[1][-1].numpy())


def test_a_full_context_is_followed_by_a_new_text(decode):
    script = write_script(decode, [BOS, 7, 9], 25, CONFIG.context)
    assert len(script.chosen) == 25
    assert positions(script) == [*range(12), *range(12), *range(3)]
    first, second, third = script.sequences()
    assert first[:3] == [BOS, 7, 9]
    assert (second[0], third[0]) == (BOS, BOS)
    # From <bos> alone the greedy text is always the same.
    assert third == second[:4]
    assert len(script.logits) == 2


class Endless:
    """A decode step that chooses given tokens."""

    def __init__(self, choices):
        self.choices = iter(choices)
        self.graph = types.SimpleNamespace(nodes=[])

    def __call__(self, token, position):
        return torch.tensor([next(self.choices)]), torch.zeros(1, 64, dtype=torch.int64)


def test_a_text_that_ends_is_followed_by_a_new_one():
    script = write_script(Endless([5, EOS, 6, 7, EOS, 8]), [BOS], 6, 12)
    assert script.sequences() == [[BOS, 5, EOS], [BOS, 6, 7, EOS], [BOS, 8]]
    assert positions(script) == [0, 1, 0, 1, 2, 0]


def test_a_prompt_as_long_as_the_context_gets_one_token():
    script = write_script(Endless([5] * 12), [BOS] * 12, 1, 12)
    assert positions(script) == list(range(12))
    assert script.chosen == [5]


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 1, r"^Prompt must have at least one token, not 0$"),
        (
            [BOS] * 13,
            1,
            r"^Prompt of 13 tokens is longer than the model's context \(12 tokens\)$",
        ),
        ([BOS], 0, r"^Number of tokens must be at least 1, not 0$"),
    ],
)
def test_impossible_scripts(decode, prompt, tokens, message):
    with pytest.raises(UserError, match=message):
        write_script(decode, prompt, tokens, 12)


def test_scripts_survive_being_written():
    script = Script([ScriptStep(1, 0, None), ScriptStep(4, 1, 7)], {1: np.arange(3)})
    assert Script.from_dict(script.to_dict(), script.logits) == script


def test_errors_of_the_nodes_over_the_script(decode, tmp_path):
    script = write_script(decode, [1, 5], 6, 12)
    (tmp_path / "script.json").write_text(json.dumps(script.to_dict()))
    np.savez(
        tmp_path / "logits.npz", steps=[*script.logits], logits=np.stack([*script.logits.values()])
    )
    context = Context(Settings("llama", "ulx3s-85f"), tmp_path, SilentProgress())
    vars(context)["decode"] = decode
    facts = steps.errors(context, tmp_path)
    measured = measure_node_errors(decode, script.sequences()[0])
    assert facts["tokens"] == len(script.sequences()[0])
    assert facts["nodes"] == {name: asdict(error) for name, error in measured.items()}
    assert json.loads(json.dumps(facts)) == facts


class Hardware:
    """Stands for an engine: answers a script, wrongly where told, in 100 cycles a token."""

    def __init__(self, script: Script, token=None, logit=None):
        self.cycles = 0
        self.seen = []
        self._wrong_token, self._wrong_logit = token, logit
        self._steps = iter(enumerate(script.steps))
        self._script = script
        width = types.SimpleNamespace(width=2 * 24)
        self.design = types.SimpleNamespace(streams={"o_logits": width})

    def put(self, name, payloads):
        (payload,) = payloads
        fields = STEP.from_bits(payload)
        self.number, self._step = next(self._steps)
        self.seen.append((fields.token, fields.position, fields.sample, fields.logits))

    def run_until(self, names, timeout_cycles):
        self.cycles += 10

    def get(self, name, count, timeout_cycles):
        self.cycles += 100
        if name == "o_token":
            return [self._step.chosen + (self.number == self._wrong_token)]
        values = self._script.logits[self.number].copy()
        if self.number == self._wrong_logit:
            values[3] += 1
        codes = [int(value) & 0xFFFFFF for value in values]
        assert count == len(codes) // 2
        return [low | high << 24 for low, high in zip(codes[::2], codes[1::2], strict=True)]


@pytest.fixture
def script():
    steps = [ScriptStep(1, 0, None)] + [ScriptStep(p, p, p + 1) for p in range(1, 10)]
    return Script(steps, {1: np.array([-(1 << 23), -1, 0, (1 << 23) - 1]), 8: np.arange(4)})


def test_hardware_that_agrees(script):
    seen = []
    hardware = Hardware(script)
    result = replay(hardware, STEP, script, lambda done, total: seen.append(done))
    assert (result.tokens, result.logits) == (9, 2)
    assert seen == list(range(1, 11))
    assert hardware.seen[:3] == [(1, 0, 0, 0), (1, 1, 1, 1), (2, 2, 1, 0)]
    # Steps with logits are left out of the figures of speed.
    assert result.cycles_by_position == dict.fromkeys((2, 3, 4, 5, 6, 7, 9), 100)
    assert result.cycles == hardware.cycles


def test_the_first_wrong_token_is_named(script):
    with pytest.raises(
        BuildError,
        match=r"^Hardware differs from golden at token 4 \(position 5\): it chose 7, not 6$",
    ):
        replay(Hardware(script, token=5), STEP, script)


def test_the_first_wrong_logit_is_named(script):
    with pytest.raises(
        BuildError,
        match=r"^Hardware differs from golden at step 8 \(position 8\): logit 3 is 4, not 3 "
        r"\(1 of 4 differ\)$",
    ):
        replay(Hardware(script, logit=8), STEP, script)


def test_cycles_at_a_context():
    result = SimulationResult(3, 1, 999, {10: 200, 62: 260, 64: 280})
    assert result.cycles_per_token(11) == (200, 11)
    assert result.cycles_per_token(64) == (260, 63)
    assert result.cycles_per_token(1000) == (280, 65)


def test_a_single_token_has_cycles_too():
    script = Script([ScriptStep(1, 0, 3)], {0: np.arange(4)})
    assert replay(Hardware(script), STEP, script).cycles_per_token(64) == (200, 1)
