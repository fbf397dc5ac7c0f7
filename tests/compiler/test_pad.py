"""Models whose widths are no whole blocks, and heads of every size."""

import random

import pytest
import torch

from mxhw import ops
from mxhw.compiler.binder import bind
from mxhw.compiler.compare import compare_decoder
from mxhw.compiler.elaborate import elaborate
from mxhw.compiler.ideal import IdealModel
from mxhw.compiler.lower import lower, reset_caches
from mxhw.compiler.passes import LoweringOptions
from mxhw.compiler.passes.pad import HeadLayout
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode
from mxhw.sw.golden.linear import FIXED_FRACTION_BITS
from tests.tiny import quick_build

OPTIONS = LoweringOptions()


def make(*, seed=1, **sizes):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    base = {
        "vocabulary_size": 64,
        "dim": 64,
        "hidden": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "context": 64,
    }
    model = Llama(LlamaConfig(**{**base, **sizes})).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.normal_()
        elif "norm" in name:
            value.uniform_(0.5, 1.5)
    return model


SHAPES = {
    "heads of 8": {"heads": 8, "kv_heads": 4, "head_size": 8},
    "heads of 8, full attention": {"heads": 8, "kv_heads": 8, "head_size": 8},
    "heads of 8, one key": {"heads": 4, "kv_heads": 1, "head_size": 8},
    "heads of 16": {"heads": 6, "kv_heads": 3, "head_size": 16},
    "heads of 12": {"heads": 4, "kv_heads": 2, "head_size": 12},
    "heads of 24": {"heads": 2, "kv_heads": 2, "head_size": 24},
    "heads of 48": {"heads": 2, "kv_heads": 1, "head_size": 48},
    "heads of 64": {"heads": 4, "kv_heads": 2, "head_size": 64},
    "heads of 128": {"heads": 2, "kv_heads": 1, "head_size": 128},
    "odd widths": {"dim": 40, "hidden": 172, "heads": 5, "kv_heads": 5, "head_size": 8},
    "biases": {"qkv_bias": True, "head_size": 32},
    "biases, heads of 8": {"qkv_bias": True, "heads": 8, "kv_heads": 4, "head_size": 8},
    "own head": {"tied": False, "vocabulary_size": 67},
    "large theta": {"rope_theta": 1e6, "head_size": 8},
}


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_golden_is_near_the_float_model(sizes):
    model = make(**sizes)
    tokens = torch.randint(64, (1, 40), generator=torch.Generator().manual_seed(2))
    exact = model(tokens)[0]
    chosen, fixed = lower(model, OPTIONS)(tokens[0])
    found = fixed / (1 << FIXED_FRACTION_BITS)
    assert found.shape == exact.shape
    ideal = IdealModel(model, OPTIONS)(tokens)[0]
    power = exact.square().mean()
    error = ((found - exact).square().mean() / power).sqrt()
    floor = ((ideal - exact).square().mean() / power).sqrt()
    assert error < 0.03
    # Heads that share a block share its scale, which costs a little.
    assert error < 1.6 * floor
    assert (chosen == exact.argmax(-1)).double().mean() > 0.85


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_decode_steps_are_equal_to_the_prefill(sizes):
    model = make(**sizes)
    prefill, decode = lower(model, OPTIONS), lower(LlamaDecode(model), OPTIONS)
    tokens = torch.randint(64, (36,), generator=torch.Generator().manual_seed(1))
    _, logits = prefill(tokens)
    reset_caches(decode)
    for position in range(36):
        _, row = decode(tokens[position : position + 1], torch.tensor([position]))
        assert torch.equal(row[0], logits[position]), position


def test_padding_of_widths_is_exact():
    """A model with zeros written out lowers to the same numbers."""
    small = make(hidden=40, head_size=32)
    large = make(hidden=64, head_size=32)
    state = small.state_dict()
    for name, value in large.state_dict().items():
        source = state[name]
        value.zero_()
        value[tuple(slice(size) for size in source.shape)] = source
    tokens = torch.arange(30)
    for left, right in zip(lower(small)(tokens), lower(large)(tokens), strict=True):
        assert torch.equal(left, right)


def test_heads_that_share_a_block():
    layout = HeadLayout.of(heads=4, kv_heads=2, head_size=8, block_size=32)
    assert (layout.heads, layout.kv_heads, layout.head_size, layout.rotary) == (4, 1, 32, 8)
    assert layout.slots == 2
    assert layout.keys.index == (*range(0, 8), *range(16, 24))
    # Query heads 0 and 1 read the first key head, 2 and 3 the second: each is in its slot.
    assert layout.queries.index == (
        *range(0, 8),
        *range(32, 40),
        *range(16, 24),
        *range(48, 56),
    )
    assert layout.queries.width == 64


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "expected"),
    [
        (8, 8, 8, (2, 32)),
        (6, 3, 16, (3, 32)),
        (6, 3, 8, (3, 32)),
        (12, 6, 8, (3, 32)),
        (4, 4, 12, (2, 32)),
        (8, 8, 4, (2, 32)),
        (5, 5, 8, (5, 32)),
        (2, 2, 24, (2, 32)),
        (2, 2, 48, (2, 64)),
        (2, 2, 64, (2, 64)),
    ],
)
def test_groups_of_heads(heads, kv_heads, head_size, expected):
    layout = HeadLayout.of(heads, kv_heads, head_size, 32)
    assert (layout.kv_heads, layout.head_size) == expected
    assert len(set(layout.queries.index)) == heads * head_size
    assert len(set(layout.keys.index)) == kv_heads * head_size


def test_biases_are_nodes_of_their_own():
    graph = lower(make(qkv_bias=True, head_size=32))
    biases = [node for node in graph.graph.nodes if node.target is ops.bias]
    assert len(biases) == 6
    assert {node.args[0].kwargs["format"] for node in biases} == {"mxint16"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_hardware_is_equal_bit_for_bit(name):
    sizes = {**SHAPES[name], "layers": 1}
    if name == "own head":
        sizes["vocabulary_size"] = 68
    lowered = lower(LlamaDecode(make(**sizes)), OPTIONS)
    decoder = elaborate(bind(lowered, OPTIONS, rows=4))
    rng = random.Random(3)
    with quick_build():
        result = compare_decoder(
            decoder, lowered, [rng.randrange(64) for _ in range(35)], stalls=(0.5, 0.5), seed=4
        )
    assert result.difference is None, str(result.difference)
    # Everything that a stream carries.
    assert result.nodes == 17 + 4 + 3 * sizes.get("qkv_bias", False)


def test_zeros_that_fill_blocks_are_stored_once():
    lowered = lower(LlamaDecode(make(hidden=44)), OPTIONS)
    whole = bind(lowered, OPTIONS, rows=4)
    shared = bind(lowered, OPTIONS, rows=4, share_zeros=True)
    # Five groups of two blocks, twice a layer; the same ten words for all.
    assert len(whole.words) - len(shared.words) == 2 * 2 * 10 - 10
    assert len(shared.program) - len(whole.program) == 2 * 3
    assert shared.macs == whole.macs
    zeros = next(region for region in shared.regions if region.name == "zeros")
    assert shared.words[zeros.base : zeros.base + zeros.words] == [0] * 10
    steps = [step for step in shared.program if step.base == zeros.base]
    assert [(step.groups, step.blocks) for step in steps] == [(5, 2)] * 4


@pytest.mark.slow
def test_hardware_with_shared_zeros_is_equal_bit_for_bit():
    lowered = lower(LlamaDecode(make(hidden=44)), OPTIONS)
    decoder = elaborate(bind(lowered, OPTIONS, rows=4, share_zeros=True))
    rng = random.Random(3)
    with quick_build():
        result = compare_decoder(
            decoder, lowered, [rng.randrange(64) for _ in range(35)], stalls=(0.5, 0.5), seed=4
        )
    assert result.difference is None, str(result.difference)
