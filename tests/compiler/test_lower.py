import pytest
import torch
from torch import nn
from torch.nn import functional

from mxhw import ops
from mxhw.compiler.lower import lower, reset_caches
from mxhw.compiler.passes import LoweringOptions
from mxhw.errors import UserError
from mxhw.formats import BlockFormat, parse_format
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode
from mxhw.sw.golden.linear import FIXED_FRACTION_BITS
from mxhw.sw.golden.tensor import quantize

CONFIG = LlamaConfig(vocabulary_size=64, dim=64, hidden=96, layers=2, heads=2, context=64)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Llama(CONFIG).eval().requires_grad_(False)


def counts(graph):
    names = [ops.info(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return {info.name: names.count(info) for info in names if info is not None}


def test_decode_step_holds_the_operators_of_the_design(model):
    assert counts(lower(LlamaDecode(model))) == {
        "embedding": 1,
        "rms_norm": 5,
        "linear": 14,
        "rope": 4,
        "key_cache": 2,
        "value_cache": 2,
        "scores": 2,
        "softmax": 2,
        "attention_values": 2,
        "add": 4,
        "swiglu": 2,
        "logits": 1,
        "argmax": 1,
    }


def test_tied_weights_are_one_constant(model):
    graph = lower(model)
    nodes = {node.target: node for node in graph.graph.nodes if node.op == "call_function"}
    assert nodes[ops.embedding].args[0].target == nodes[ops.logits].args[1].target


def test_every_operator_keeps_its_source_line(model):
    for node in lower(LlamaDecode(model)).graph.nodes:
        if node.op == "call_function" and node.target is not ops.argmax:
            assert node.meta["source"].startswith("llama.py:"), node


@pytest.mark.parametrize(
    "formats", ["mxint8", "mxfp4/mxint8", "mxint6/mxint8", "mxfp6_e3m2/mxint6"]
)
def test_decode_steps_are_equal_to_the_prefill_bit_for_bit(model, formats):
    weights, *activations = [parse_format(name) for name in formats.split("/")]
    options = LoweringOptions(weights, activations[0] if activations else weights)
    prefill, decode = lower(model, options), lower(LlamaDecode(model), options)
    tokens = torch.randint(64, (40,), generator=torch.Generator().manual_seed(1))
    chosen, logits = prefill(tokens)
    for turn in range(2):
        reset_caches(decode)
        for position in range(40 if turn == 0 else 3):
            token, row = decode(tokens[position : position + 1], torch.tensor([position]))
            assert torch.equal(row[0], logits[position]), position
            assert int(token) == int(chosen[position])


def test_golden_logits_are_near_the_float_models(model):
    tokens = torch.randint(64, (1, 48), generator=torch.Generator().manual_seed(2))
    exact = model(tokens)[0]
    fixed = lower(model)(tokens[0])[1] / (1 << FIXED_FRACTION_BITS)
    error = (fixed - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03


def test_queries_carry_the_attention_scale(model):
    graph = lower(model)
    node = next(n for n in graph.graph.nodes if n.target is ops.linear)
    scaled = model.blocks[0].attention.wq.weight.double() * (1.4426950408889634 / 32**0.5)
    expected = quantize(scaled, BlockFormat.mxint(8))
    found = getattr(graph, node.args[1].target)
    assert torch.equal(found.elements, expected.elements)


def test_gated_silu_alone():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(32, 64, bias=False)
            self.up = nn.Linear(32, 64, bias=False)

        def forward(self, x):
            return self.up(x) * functional.silu(self.gate(x))

    torch.manual_seed(3)
    module = Gated()
    graph = lower(module)
    assert counts(graph) == {"linear": 2, "swiglu": 1}
    x = torch.randn(4, 32)
    found = graph(quantize(x, BlockFormat.mxint(8))).dequantize()
    torch.testing.assert_close(found, module(x).detach(), rtol=0.05, atol=0.01)


def test_a_product_without_silu_is_refused():
    class Product(nn.Module):
        def forward(self, x):
            return x * x

    with pytest.raises(
        UserError,
        match=r"^1 unsupported operation in the model:\n"
        r"  Product at test_lower\.py:\d+: supported is silu\(a\) \* b$",
    ):
        lower(Product())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.Linear(40, 32, bias=False)),
            r"^Input width of the Linear at .* must be a multiple of the block size .*, not 40$",
        ),
        (
            nn.Sequential(nn.Linear(32, 20, bias=False)),
            r"^Output width of the Linear at .* must be a multiple of the block size .*, not 20$",
        ),
    ],
)
def test_widths_are_whole_blocks(module, message):
    with pytest.raises(UserError, match=message):
        lower(module)


def test_an_edge_that_is_read_wide_and_as_an_operand_is_requantised_once():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.Linear(32, 32, bias=False)
            self.left = nn.Linear(32, 32, bias=False)
            self.right = nn.Linear(32, 32, bias=False)

        def forward(self, x):
            y = self.enter(x)
            return y + self.left(y) + self.right(y)

    torch.manual_seed(4)
    module = Residual()
    graph = lower(module)
    assert counts(graph) == {"linear": 3, "requantize": 1, "add": 2}
    x = torch.randn(4, 32)
    found = graph(quantize(x, BlockFormat.mxint(8))).dequantize()
    torch.testing.assert_close(found, module(x).detach(), rtol=0.05, atol=0.05)
