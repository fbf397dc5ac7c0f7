import dataclasses
import math

import numpy as np
import pytest
import torch

from mxhw.models.config import LlamaConfig
from mxhw.models.evaluate import bits_per_byte, perplexity, score
from mxhw.models.greedy import generate, generate_cached
from mxhw.models.llama import (
    OPERATORS,
    CausalAttention,
    KeyValueCache,
    Llama,
    LlamaDecode,
    LlamaTracer,
    RMSNorm,
    Rope,
)

SHAPES = [
    LlamaConfig(vocabulary_size=40, layers=2, context=24),
    LlamaConfig(
        vocabulary_size=40, dim=48, hidden=56, layers=2, heads=6, kv_heads=3, head_size=8,
        context=24, rope_theta=500.0, tied=False,
    ),
    LlamaConfig(
        vocabulary_size=40, dim=16, hidden=8, layers=1, heads=4, kv_heads=4, head_size=4,
        context=24,
    ),
]  # fmt: skip


def make(config):
    torch.manual_seed(1)
    model = Llama(config)
    for value in model.parameters():
        if value.ndim == 1:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def test_default_shape():
    model = Llama(LlamaConfig())
    assert sum(value.numel() for value in model.parameters()) == 248_512
    weights = model.weights()
    assert "head.weight" not in weights
    assert weights["blocks.4.feed_forward.down.weight"].shape == (64, 160)
    assert weights["blocks.0.attention.wk.weight"].shape == (32, 64)
    assert model.head.weight is model.embedding.weight


def test_config_round_trip():
    config = LlamaConfig(dim=96, tied=False, rope_theta=1e5)
    assert LlamaConfig.from_dict(config.to_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 3


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"heads": 3, "kv_heads": 2},
            ValueError,
            r"Number of heads must be a multiple of the number of key/value heads \(2\), not 3",
        ),
        ({"head_size": 7}, ValueError, "Head size must be even, not 7"),
        ({"layers": 0}, ValueError, "Layers must be positive, not 0"),
        ({"dim": 64.0}, TypeError, "Dim must be an integer, not 64.0"),
        ({"context": True}, TypeError, "Context must be an integer, not True"),
        ({"tied": 1}, TypeError, "Tied must be a boolean, not 1"),
        ({"rope_theta": math.inf}, ValueError, "Rope theta must be positive and finite, not inf"),
        ({"norm_epsilon": "x"}, TypeError, "Norm epsilon must be a number, not 'x'"),
    ],
)
def test_config_errors(fields, error, message):
    with pytest.raises(error, match=message):
        LlamaConfig(**fields)


def test_config_unknown_field():
    with pytest.raises(ValueError, match="Field 'width' is not one of a Llama configuration"):
        LlamaConfig.from_dict({"width": 3})


def test_rms_norm_formula():
    norm = RMSNorm(8, 0.5)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    norm.weight.data.copy_(torch.arange(8.0))
    want = x.numpy() / np.sqrt((x.numpy() ** 2).mean(-1, keepdims=True) + 0.5) * np.arange(8)
    np.testing.assert_allclose(norm(x).detach().numpy(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "theta"), [(32, 1e4), (8, 500.0), (2, 1e4)])
def test_rope_is_complex_rotation(size, theta):
    rope = Rope(size, 300, theta)
    random = np.random.default_rng(0)
    x = random.standard_normal((5, 3, size)).astype(np.float32)
    position = np.array([0, 1, 7, 255, 299])
    turned = rope(torch.from_numpy(x), torch.from_numpy(position)).numpy()
    number = x[..., 0::2] + 1j * x[..., 1::2]
    angle = position[:, None] * theta ** (-np.arange(0, size, 2) / size)
    number = number * np.exp(1j * angle)[:, None, :]
    np.testing.assert_allclose(turned[..., 0::2], number.real, atol=2e-6)
    np.testing.assert_allclose(turned[..., 1::2], number.imag, atol=2e-6)


def test_rope_score_depends_on_distance_only():
    rope = Rope(16, 64, 1e4)
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def dot(a, b):
        return (rope(q, torch.tensor([a])) * rope(k, torch.tensor([b]))).sum().item()

    assert dot(9, 4) == pytest.approx(dot(50, 45), abs=1e-5)


def test_attention_against_loops():
    heads, kv_heads, size, rows = 4, 2, 6, 7
    random = np.random.default_rng(0)
    q = random.standard_normal((3, heads, size))
    k, v = random.standard_normal((2, rows, kv_heads, size))
    position = [0, 4, 6]
    want = np.zeros_like(q)
    for t, last in enumerate(position):
        for head in range(heads):
            kv = head // 2
            scores = np.array([q[t, head] @ k[s, kv] for s in range(last + 1)]) / math.sqrt(size)
            weight = np.exp(scores - scores.max())
            weight /= weight.sum()
            want[t, head] = sum(weight[s] * v[s, kv] for s in range(last + 1))
    got = CausalAttention(heads, kv_heads, size)(
        *(torch.from_numpy(x) for x in (q, k, v)), torch.tensor(position)
    )
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", SHAPES)
def test_forward_is_causal(config):
    model = make(config)
    tokens = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 40
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 24, 40)
    torch.testing.assert_close(before[:, :15], after[:, :15], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 15:], after[:, 15:], atol=1e-3)


@pytest.mark.parametrize("config", SHAPES)
def test_decode_equals_forward(config):
    model = make(config)
    tokens = torch.randint(40, (24,), generator=torch.Generator().manual_seed(0))
    want = model(tokens[None])[0]
    decode = LlamaDecode(model).eval()
    for _ in range(2):  # a second text, after a reset
        for position, token in enumerate(tokens):
            logits = decode(token[None], torch.tensor([position]))
            torch.testing.assert_close(logits, want[position], rtol=1e-4, atol=1e-5)
        decode.reset()
    assert generate_cached(decode, [3, 5, 8], 20) == generate(model, [3, 5, 8], 20)


def test_decode_shares_weights_and_owns_caches():
    model = make(SHAPES[0])
    first, second = LlamaDecode(model), LlamaDecode(model)
    assert {id(p) for p in first.parameters()} == {id(p) for p in model.parameters()}
    first(torch.tensor([1]), torch.tensor([0]))
    caches = [m for m in second.modules() if isinstance(m, KeyValueCache)]
    assert len(caches) == 2
    assert not any(cache.keys.any() or cache.values.any() for cache in caches)


def test_cache_writes_one_row():
    cache = KeyValueCache(5, 2, 3)
    keys, values = cache(torch.ones(1, 2, 3), torch.full((1, 2, 3), 2.0), torch.tensor([3]))
    assert keys[3].eq(1).all()
    assert values[3].eq(2).all()
    assert keys.sum() == 6
    assert values.sum() == 12


@pytest.mark.parametrize("config", SHAPES)
def test_both_forwards_trace(config):
    model = make(config)
    decode = LlamaDecode(model)
    tokens = torch.tensor([[1, 2, 3]])
    for module, arguments in (
        (model, (tokens,)),
        (decode, (torch.tensor([7]), torch.tensor([0]))),
    ):
        graph = torch.fx.GraphModule(module, LlamaTracer().trace(module))
        torch.testing.assert_close(graph(*arguments), module(*arguments), rtol=0, atol=0)
        leaves = {
            type(graph.get_submodule(node.target))
            for node in graph.graph.nodes
            if node.op == "call_module"
        }
        assert leaves <= {*OPERATORS, torch.nn.Linear, torch.nn.Embedding}


def test_prefill_trace_serves_other_lengths():
    model = make(SHAPES[0])
    graph = torch.fx.GraphModule(model, LlamaTracer().trace(model))
    for length in (1, 24):
        tokens = torch.zeros(2, length, dtype=torch.long)
        torch.testing.assert_close(graph(tokens), model(tokens), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ids", "n", "message"),
    [
        ([], 1, "Prompt must have at least one token, not 0"),
        ([1], -1, "Number of new tokens must not be negative, not -1"),
        ([1], 24, r"must fit in the context \(24 tokens\), not take 25"),
    ],
)
def test_generate_errors(ids, n, message):
    model = make(SHAPES[0])
    with pytest.raises(ValueError, match=message):
        generate(model, ids, n)
    with pytest.raises(ValueError, match=message):
        generate_cached(LlamaDecode(model), ids, n)


class Letters:
    """Stands for a tokenizer: one token a byte, behind token 1."""

    def encode(self, text):
        return [1, *text.encode()]

    def normalize(self, text):
        return text


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 40])
def test_score_counts_every_byte_once(length):
    seen = []

    def uniform(tokens):
        assert tokens.shape[1] <= 8
        seen.append(tokens.shape[1])
        return torch.zeros(1, tokens.shape[1], 256)

    stories = ["a" * length, "", "xy"]
    assert bits_per_byte(uniform, Letters(), stories, 8) == pytest.approx(8)
    assert perplexity(uniform, Letters(), stories, 8) == pytest.approx(256)
    result = score(uniform, Letters(), stories, 8)
    assert (result.tokens, result.bytes) == (length + 2, length + 2)


def test_score_aligns_targets():
    # The function's logit names the token that it has just seen plus one, and the text counts.
    def successor(tokens):
        return torch.nn.functional.one_hot(tokens + 1, 256).double() * 50

    text = "".join(map(chr, range(2, 100)))
    assert bits_per_byte(successor, Letters(), [text], 8) < 1e-6


def test_score_matches_one_pass_within_context():
    model = make(dataclasses.replace(SHAPES[0], vocabulary_size=128))
    ids = torch.tensor(Letters().encode("hello there"))
    nats = torch.nn.functional.cross_entropy(
        model(ids[None, :-1])[0].double(), ids[1:], reduction="sum"
    )
    result = score(model, Letters(), ["hello there"], 24)
    assert result.nats == pytest.approx(nats.item(), rel=1e-9)


def test_score_errors():
    with pytest.raises(ValueError, match="Context must be at least 2 tokens, not 1"):
        score(lambda tokens: tokens, Letters(), ["a"], 1)
    with pytest.raises(ValueError, match="At least one story must not be empty"):
        score(lambda tokens: tokens, Letters(), [""], 8)


def test_first_layers_share_the_weights():
    model = make(SHAPES[0])
    short = model.first_layers(1)
    assert (short.config.layers, len(short.blocks)) == (1, 1)
    assert (model.config.layers, len(model.blocks)) == (2, 2)
    assert short.blocks[0] is model.blocks[0]
    assert short.head.weight is model.embedding.weight
    tokens = torch.tensor([[3, 1, 4]])
    x = model.blocks[0](model.embedding(tokens), model.positions(tokens))
    assert torch.equal(short(tokens), model.head(model.norm(x)))
    for layers in (0, 3):
        with pytest.raises(ValueError, match=rf"^Number of layers must be 1 to 2, not {layers}$"):
            model.first_layers(layers)
