import math

import pytest
import torch
from torch import nn

from mxhw.compiler.ideal import IdealModel, round_to_format
from mxhw.compiler.passes import LoweringOptions
from mxhw.errors import UserError
from mxhw.formats import BlockFormat
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama

CONFIG = LlamaConfig(vocabulary_size=64, dim=64, hidden=96, layers=2, heads=2, context=64)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Llama(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(64, (1, 40), generator=torch.Generator().manual_seed(1))


def options(weights: int, activations: int) -> LoweringOptions:
    return LoweringOptions(BlockFormat.mxint(weights), BlockFormat.mxint(activations))


def by_hand(model: Llama, tokens: torch.Tensor, weight_bits: int, bits: int) -> torch.Tensor:
    """The contract, written out."""

    def w(linear, scale=1.0):
        return round_to_format(linear.weight.double() * scale, BlockFormat.mxint(weight_bits))

    def a(x):
        return round_to_format(x, BlockFormat.mxint(bits))

    length = tokens.shape[-1]
    position = torch.arange(length)
    x = w(model.embedding)[tokens[0]]
    scale = math.log2(math.e) / math.sqrt(CONFIG.head_size)
    for block in model.blocks:
        attention, h = block.attention, a(block.attention_norm(x))
        q = (h @ w(attention.wq, scale).T).view(length, CONFIG.heads, CONFIG.head_size)
        k = (h @ w(attention.wk).T).view(length, CONFIG.kv_heads, CONFIG.head_size)
        v = a((h @ w(attention.wv).T).view(length, CONFIG.kv_heads, CONFIG.head_size))
        q, k = a(attention.rope(q, position)), a(attention.rope(k, position))
        heads = []
        for head in range(CONFIG.heads):
            shared = head * CONFIG.kv_heads // CONFIG.heads
            score = q[:, head] @ k[:, shared].T
            score = score.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            power = torch.exp2(score - score.amax(-1, keepdim=True))
            heads.append(a(power / power.sum(-1, keepdim=True)) @ v[:, shared])
        x = x + a(torch.cat(heads, -1)) @ w(attention.wo).T
        forward = block.feed_forward
        h = a(block.feed_forward_norm(x))
        gated = nn.functional.silu(h @ w(forward.gate).T) * (h @ w(forward.up).T)
        x = x + a(gated) @ w(forward.down).T
    return (a(model.norm(x)) @ w(model.head).T).unsqueeze(0)


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (6, 6)])
def test_operands_are_rounded_as_the_contract_says(model, tokens, weights, activations):
    found = IdealModel(model, options(weights, activations))(tokens)
    expected = by_hand(model, tokens, weights, activations)
    # Sums in another order may move an element across a rounding boundary.
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 2e-3


def test_wide_formats_leave_the_model_as_it_is(model, tokens):
    found = IdealModel(model, options(24, 24))(tokens)
    torch.testing.assert_close(found, model(tokens), rtol=1e-4, atol=1e-5)


def test_narrower_formats_differ_more(model, tokens):
    exact = model(tokens)
    errors = [
        float((IdealModel(model, options(bits, bits))(tokens) - exact).square().mean())
        for bits in (10, 8, 6, 4)
    ]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 100


def test_it_is_causal(model, tokens):
    ideal = IdealModel(model)
    changed = tokens.clone()
    changed[0, 20:] = 1
    assert torch.equal(ideal(tokens)[0, :20], ideal(changed)[0, :20])


def test_groups_of_query_heads_share_keys(tokens):
    torch.manual_seed(2)
    config = LlamaConfig(
        vocabulary_size=64, dim=64, hidden=64, layers=1, heads=4, kv_heads=2, context=64
    )
    model = Llama(config).eval().requires_grad_(False)
    found = IdealModel(model, options(24, 24))(tokens)
    torch.testing.assert_close(found, model(tokens), rtol=1e-4, atol=1e-5)


def test_rounding_keeps_the_shape():
    x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(3))
    rounded = round_to_format(x, BlockFormat.mxint(8))
    assert rounded.shape == x.shape
    assert rounded.dtype == torch.float32
    assert (rounded - x).abs().max() < 2**-6 * x.abs().max()


def test_unsupported_models_are_refused():
    with pytest.raises(UserError, match="^1 unsupported operation in the model:\n"):
        IdealModel(nn.Sequential(nn.GELU()))
