from mxhw.compiler.lower import lower
from mxhw.compiler.memory import describe_memory, memory_needed
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import BlockFormat
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import LlamaDecode
from mxhw.sw.golden.cache import KeyStore, ValueStore
from mxhw.sw.golden.tensor import MXTensor
from tests.compiler.test_pad import SHAPES, make

SMOLLM2 = LlamaConfig(
    vocabulary_size=49152,
    dim=576,
    hidden=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_size=64,
    context=1024,
)


def test_bits_are_those_of_the_lowered_graph():
    options = LoweringOptions(BlockFormat.mxint(6), BlockFormat.mxint(8))
    for sizes in SHAPES.values():
        model = make(**sizes)
        graph = lower(LlamaDecode(model), options)
        weights = caches = 0
        targets = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
        for value in (getattr(graph, str(target)) for target in targets):
            if isinstance(value, MXTensor):
                weights += value.scales.numel() * value.format.block_bits
            elif isinstance(value, (KeyStore, ValueStore)):
                caches += value._scales.numel() * options.activation_format.block_bits
        found = memory_needed(
            model.config, options.weight_format, options.activation_format, options.wide_format
        )
        assert (found.weight_bits, found.cache_bits) == (weights, caches), sizes


def test_statement_about_a_model_for_external_memory():
    int8, wide = BlockFormat.mxint(8), BlockFormat.mxint(16)
    memory = memory_needed(SMOLLM2, int8, int8, wide)
    assert describe_memory(memory, SMOLLM2, "ulx3s-85f", 208 * 18 * 1024) == (
        "Memory: 138.75 MB of weights and 12.17 MB of keys and values for 1024 positions: 315 "
        "times the block RAM of ulx3s-85f (0.48 MB). External memory would hold it on ecpix5 (512 "
        "MiB of DDR3), arty (256 MiB of DDR3L); designs use on-chip memory only, and every token "
        "would read all 139 MB of weights."
    )


def test_statement_about_a_model_that_fits():
    config = LlamaConfig()
    int4, wide = BlockFormat.mxint(4), BlockFormat.mxint(16)
    memory = memory_needed(config, int4, int4, wide)
    assert describe_memory(memory, config, "ulx3s-85f", 208 * 18 * 1024) == (
        f"Memory: {memory.weight_bits / 8e6:.2f} MB of weights and 0.04 MB of keys and values for "
        f"256 positions; the block RAM of ulx3s-85f has 0.48 MB."
    )
