"""The folded binding: what the program and the memory hold, and what is refused."""

import pytest
import torch

from mxhw import ops
from mxhw.compiler.binder import bind
from mxhw.compiler.binding import engine_format
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.dataflow.program import Destination, Operand, Position, Weights
from mxhw.errors import UserError
from mxhw.formats import parse_format
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode
from mxhw.sw.packing import pack_matrix

OPTIONS = LoweringOptions()
CONFIG = LlamaConfig(
    vocabulary_size=64, dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_size=32, context=40
)


def model(**changes) -> Llama:
    torch.manual_seed(2)
    return Llama(LlamaConfig(**{**CONFIG.to_dict(), **changes})).eval().requires_grad_(False)


def lowered(llama: Llama, options: LoweringOptions = OPTIONS):
    return lower(LlamaDecode(llama), options)


@pytest.fixture(scope="module")
def binding():
    return bind(lowered(model()), OPTIONS)


def nodes(graph, target):
    return [node for node in graph.graph.nodes if node.target is target]


def test_program_of_a_layer(binding):
    layer = [step for step in binding.program if step.layer == 0][1:]
    query, *rest = layer
    assert (query.destination, query.operand, query.start_layer) == (
        Destination.ROPE,
        Operand.NORM,
        True,
    )
    caches = [(step.destination, step.head, step.operand) for step in rest[:4]]
    assert caches == [
        (Destination.ROPE, 0, Operand.KEEP),
        (Destination.ROPE, 1, Operand.KEEP),
        (Destination.VALUES, 0, Operand.KEEP),
        (Destination.VALUES, 1, Operand.KEEP),
    ]
    assert all(step.store for step in rest[:4])
    # The scores of the next head are asked for before the values of this one.
    attention = [(step.weights, step.head) for step in rest[4:12]]
    keys, values = Weights.KEYS, Weights.VALUES
    assert attention == [
        (keys, 0),
        (keys, 0),
        (values, 0),
        (keys, 1),
        (values, 0),
        (keys, 1),
        (values, 1),
        (values, 1),
    ]
    assert {step.groups for step in rest[4:12] if step.weights is keys} == {Position.GROUPS}
    assert {step.blocks for step in rest[4:12] if step.weights is values} == {Position.BLOCKS}
    assert [step.destination for step in rest[12:15]] == [
        Destination.RESIDUAL,
        Destination.GATED,
        Destination.RESIDUAL,
    ]
    # Gate and factor are one matrix.
    assert (rest[13].blocks, rest[13].groups) == (2, 2 * 96 // 4)


def test_program_begins_with_the_embedding_and_ends_with_the_head(binding):
    first, last = binding.program[0], binding.program[-1]
    assert (first.destination, first.operand, first.base) == (
        Destination.EMBEDDING,
        Operand.KEEP,
        0,
    )
    assert (last.destination, last.sampled_only) == (Destination.LOGITS, True)
    assert len(binding.program) == 2 + 2 * (5 + 8 + 3)


def test_layers_differ_only_in_what_they_read(binding):
    def shape(step):
        return (step.operand, step.weights, step.blocks, step.groups, step.destination, step.head)

    steps = binding.program[1:-1]
    half = len(steps) // 2
    assert [shape(step) for step in steps[:half]] == [shape(step) for step in steps[half:]]
    assert {step.layer for step in steps[half:]} == {1}


def test_regions_fill_the_memory_without_overlap(binding):
    regions = sorted(binding.regions, key=lambda region: region.base)
    ends = [region.base + region.words for region in regions]
    assert [region.base for region in regions] == [0, *ends[:-1]]
    assert ends[-1] == len(binding.words) == binding.shape.words
    assert all(region.words * 4 == region.rows * region.blocks for region in regions)
    for step in binding.program:
        if step.weights is Weights.MEMORY and step.destination is not Destination.EMBEDDING:
            assert any(
                (step.base, step.blocks * step.groups) == (region.base, region.words)
                for region in regions
            )


def test_a_tied_head_reads_the_table(binding):
    assert binding.program[-1].base == binding.program[0].base == 0
    untied = bind(lowered(model(tied=False)), OPTIONS)
    assert untied.program[-1].base != 0
    assert len(untied.words) == len(binding.words) + 64 * 64 // 32 // 4


def test_figures(binding):
    layer = 64 * (128 + 64 + 64) + 128 * 64 + 3 * 64 * 96
    assert binding.macs == 2 * layer + 64 * 64
    assert binding.useful_macs(10) == binding.macs + 2 * 2 * 4 * 32 * 10
    assert binding.multipliers == 128
    assert binding.describe() == (
        f"folded: 1 layer built and used 2 times, 4 rows x 32 lanes, 34 steps, "
        f"{len(binding.words)} weight words"
    )
    assert (binding.shape.max_blocks, binding.shape.max_groups) == (4, 48)


def test_words_are_those_of_the_constants(binding):
    graph = lowered(model())
    add = nodes(graph, ops.add)[0]
    output = next(arg for arg in add.args if arg.target is ops.linear)
    region = next(region for region in binding.regions if region.name == output.name)
    words = pack_matrix(getattr(graph, output.args[1].target), 4)
    assert binding.words[region.base : region.base + region.words] == words


@pytest.mark.parametrize(
    ("weights", "activations", "engine"),
    [
        ("mxint8", "mxint8", "mxint8"),
        ("mxint4", "mxint8", "mxint8"),
        ("mxint4", "mxint4", "mxint4"),
        ("mxfp4", "mxint8", "mxint8"),
        ("mxfp6_e3m2", "mxint8", "mxint8"),
    ],
)
def test_engine_format_holds_every_operand(weights, activations, engine):
    weights, activations = parse_format(weights), parse_format(activations)
    result = engine_format(weights, activations)
    for format in (weights, activations):
        assert result.element.bits >= format.element.significand_bits
        assert result.element.fraction_bits >= format.element.fraction_bits
    assert result.element.is_integer
    assert result.element.bits >= parse_format(engine).element.bits


def test_a_format_with_too_wide_significands():
    with pytest.raises(UserError, match=r"^Format mxfp8_e5m2 needs \d+-bit multipliers; hardware"):
        engine_format(parse_format("mxfp8_e5m2"), parse_format("mxint8"))


def test_a_linear_with_two_readers():
    graph = lowered(model())
    add = nodes(graph, ops.add)[0]
    output = next(arg for arg in add.args if arg.target is ops.linear)
    other = nodes(graph, ops.add)[1]
    other.args = (other.args[0], output)
    with pytest.raises(
        UserError,
        match=rf"^Operator {output.name} \(llama.py:\d+\) cannot be bound: its result must have "
        r"one reader, not 2$",
    ):
        bind(graph, OPTIONS)


def test_gate_and_factor_of_different_inputs():
    graph = lowered(model())
    gate, up = nodes(graph, ops.swiglu)[0].args
    up.args = (nodes(graph, ops.rms_norm)[0], up.args[1])
    with pytest.raises(
        UserError, match=rf"^Operator {gate.name} .*gate and factor must be Linears of the same"
    ):
        bind(graph, OPTIONS)


def test_a_linear_that_reads_something_else():
    graph = lowered(model())
    query = nodes(graph, ops.rope)[0].args[0]
    query.args = (nodes(graph, ops.embedding)[0], query.args[1])
    with pytest.raises(
        UserError,
        match=rf"^Operator {query.name} .*its input must be a norm, an attention or a gated SiLU$",
    ):
        bind(graph, OPTIONS)


@pytest.mark.parametrize(
    ("module", "field", "value", "what"),
    [("Rope", "theta", 500.0, "rotary embedding"), ("RMSNorm", "eps", 1e-3, "norm epsilon")],
)
def test_layers_that_differ_in_what_they_share(module, field, value, what):
    llama = model()
    changed = [m for m in llama.modules() if type(m).__name__ == module]
    setattr(changed[-1], field, value)
    with pytest.raises(UserError, match=rf"^Layers must share one {what} to fold, not have 2$"):
        bind(lowered(llama), OPTIONS)


def test_context_is_whole_groups():
    llama = model(context=42)
    with pytest.raises(UserError, match=r"^Context must be a multiple .* rows \(4\), not 42$"):
        bind(lowered(llama), OPTIONS)


def test_heads_of_several_blocks_and_biases():
    graph = lowered(model(head_size=64, qkv_bias=True))
    binding = bind(graph, OPTIONS, rows=4)
    shape = binding.shape
    assert (shape.key_blocks, shape.value_parts, shape.value_groups) == (2, 2, 8)
    # Queries, keys and values of both layers.
    assert [vector.blocks for vector in binding.biases] == [8, 4, 4] * 2
    sums = [step for step in binding.program if step.weights is Weights.VALUES and step.layer == 0]
    assert [(step.head, step.part) for step in sums] == [
        (head, part) for head in (0, 0, 1, 1) for part in (0, 1)
    ]
    scores = [step for step in binding.program if step.weights is Weights.KEYS]
    assert {step.blocks for step in scores} == {2}


def test_heads_that_share_a_block():
    binding = bind(lowered(model(heads=8, kv_heads=4, head_size=8)), OPTIONS, rows=4)
    shape = binding.shape
    assert (binding.slots, binding.heads, shape.kv_heads) == (4, 8, 1)
    assert (shape.value_parts, shape.value_groups) == (4, 2)
    # No zeros are stored: queries and outputs are two blocks, keys and values one.
    widths = [region.rows for region in binding.regions[1:5]]
    assert widths == [64, 32, 32, 64]
    assert binding.useful_macs(65) - binding.useful_macs(64) == 2 * 2 * 8 * 8


def test_a_bias_that_only_some_layers_have():
    llama = model(qkv_bias=True)
    llama.blocks[1].attention.wq.bias = None
    with pytest.raises(UserError, match=r"^Layers must share one use of biases to fold, not have"):
        bind(lowered(llama), OPTIONS)
