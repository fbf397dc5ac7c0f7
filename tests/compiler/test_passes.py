import copy

import pytest
import torch
from torch import fx, nn

from mxhw import ops
from mxhw.compiler.frontend import capture
from mxhw.compiler.passes import (
    LOWERING,
    LoweringOptions,
    VerificationError,
    verify,
    verify_lowered,
)
from mxhw.compiler.passes.simplify import FoldAttentionScale, FuseGatedSilu, RemoveReshapes
from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import CausalAttention, Llama, LlamaDecode

CONFIG = LlamaConfig(vocabulary_size=64, dim=64, hidden=64, layers=2, heads=2, context=16)
OPTIONS = LoweringOptions()


@pytest.fixture
def graph():
    return capture(LlamaDecode(Llama(CONFIG).eval()))


def text(module: fx.GraphModule) -> str:
    return str(module.graph)


def test_passes_are_named_and_described():
    names = [step.name for step in LOWERING]
    assert names == [
        "remove-reshapes",
        "fuse-gated-silu",
        "fold-attention-scale",
        "pad-to-blocks",
        "assign-formats",
        "lower-operators",
        "choose-tables",
        "append-argmax",
    ]
    assert all(step.summary for step in LOWERING)


def test_graph_is_well_formed_after_each_pass(graph):
    for step in LOWERING:
        step.run(graph, OPTIONS)
        verify(graph, step.name)
    verify_lowered(graph)


@pytest.mark.parametrize("step", LOWERING[:4], ids=lambda step: step.name)
def test_simplifying_passes_are_idempotent(graph, step):
    for earlier in LOWERING[: LOWERING.index(step)]:
        earlier.run(graph, OPTIONS)
    step.run(graph, OPTIONS)
    once = text(graph)
    step.run(graph, OPTIONS)
    assert text(graph) == once


def test_reshapes_are_gone(graph):
    RemoveReshapes().run(graph, OPTIONS)
    assert not [n for n in graph.graph.nodes if n.op == "call_method"]


def test_silu_and_its_product_are_one_node(graph):
    FuseGatedSilu().run(graph, OPTIONS)
    names = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("swiglu" in name for name in names) == CONFIG.layers
    assert not any("silu" in name and "swiglu" not in name for name in names)
    assert not any(name.startswith("mul") for name in names)


def test_only_query_projections_are_scaled(graph):
    RemoveReshapes().run(graph, OPTIONS)
    FoldAttentionScale().run(graph, OPTIONS)
    scaled = [str(n.target) for n in graph.graph.nodes if "weight_scale" in n.meta]
    assert scaled == ["blocks.0.attention.wq", "blocks.1.attention.wq"]


def test_queries_need_a_projection_of_their_own():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(32, 32, bias=False)
            self.attend = CausalAttention(1, 1, 32)

        def forward(self, x, position):
            q = self.project(x)
            return q + self.attend(q, x, x, position)

    graph = capture(Shared())
    with pytest.raises(
        UserError,
        match=r"^Queries of the attention at test_passes\.py:\d+ must come from a Linear of their "
        r"own, with at most a Rope between$",
    ):
        FoldAttentionScale().run(graph, OPTIONS)


def test_narrow_formats_are_where_only_matrices_read(graph):
    for step in LOWERING:
        step.run(graph, OPTIONS)
    wide, narrow = OPTIONS.wide_format.name, OPTIONS.activation_format.name
    formats = {
        node.target: node.kwargs["format"]
        for node in graph.graph.nodes
        if node.op == "call_function" and "format" in node.kwargs and node.target is not ops.linear
    }
    assert formats == {
        ops.embedding: wide,
        ops.rms_norm: narrow,
        ops.rope: narrow,
        ops.softmax: narrow,
        ops.attention_values: narrow,
        ops.swiglu: narrow,
        ops.add: wide,
    }


def test_a_dead_node_is_reported(graph):
    first = next(iter(graph.graph.nodes))
    with graph.graph.inserting_after(first):
        graph.graph.call_function(torch.neg, (first,))
    with pytest.raises(
        VerificationError, match=r"^Node 'neg' has no reader after pass 'some-pass'$"
    ):
        verify(graph, "some-pass")


def test_a_malformed_graph_is_reported(graph):
    nodes = list(graph.graph.nodes)
    nodes[-2].append(nodes[3])
    with pytest.raises(VerificationError, match=r"^Graph is malformed after pass 'some-pass': "):
        verify(graph, "some-pass")


def test_what_is_not_an_operator_is_reported(graph):
    with pytest.raises(
        VerificationError, match=r"^Node 'embedding' is still a call_module, not an operator$"
    ):
        verify_lowered(graph)


def lowered(graph: fx.GraphModule) -> fx.GraphModule:
    for step in LOWERING:
        step.run(graph, OPTIONS)
    return graph


def test_foreign_functions_are_reported(graph):
    module = lowered(graph)
    node = next(n for n in module.graph.nodes if n.target is ops.swiglu)
    node.target = torch.mul
    with pytest.raises(
        VerificationError, match=rf"^Node '{node.name}' does not call an operator of mxhw\.ops$"
    ):
        verify_lowered(module)


def test_wide_matrix_operands_are_reported(graph):
    module = lowered(graph)
    node = next(n for n in module.graph.nodes if n.target is ops.rms_norm)
    node.kwargs = {**node.kwargs, "format": "mxint16"}
    with pytest.raises(
        VerificationError,
        match=rf"^Operand '{node.name}' of '.*' is mxint16, too wide for a matrix engine$",
    ):
        verify_lowered(module)


def test_lowering_leaves_the_model_alone():
    model = Llama(CONFIG).eval()
    before = copy.deepcopy(model.state_dict())
    lowered(capture(LlamaDecode(model)))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class SharedProjection(nn.Module):
    """One projection as query and key."""

    def __init__(self, query_and_key_in_one_reader):
        super().__init__()
        self.project = nn.Linear(64, 64, bias=False)
        self.values = nn.Linear(64, 64, bias=False)
        self.attend = CausalAttention(2, 2, 32)
        self.in_one = query_and_key_in_one_reader

    def forward(self, x, position):
        q = self.project(x).unflatten(-1, (2, 32))
        v = q if self.in_one else self.values(x).unflatten(-1, (2, 32))
        return self.attend(q, q, v, position).flatten(-2)


@pytest.mark.parametrize("in_one", [True, False])
def test_a_projection_that_is_query_and_key_is_refused(in_one):
    graph = capture(SharedProjection(in_one))
    RemoveReshapes().run(graph, OPTIONS)
    with pytest.raises(UserError, match=r"^Queries of the attention at .* Linear of their own"):
        FoldAttentionScale().run(graph, OPTIONS)
