import pytest
import torch
from torch import nn
from torch.nn import functional

from mxhw.compiler.frontend import capture, check_supported, source_line
from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode, RMSNorm

CONFIG = LlamaConfig(vocabulary_size=64, dim=32, hidden=64, layers=2, heads=2, context=16)


def refusal(module: nn.Module) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_supported(capture(module))
    return str(caught.value).splitlines()


def test_captured_llama_computes_the_same():
    model = Llama(CONFIG).eval()
    graph = capture(model)
    check_supported(graph)
    tokens = torch.arange(10).unsqueeze(0)
    assert torch.equal(graph(tokens), model(tokens))


def test_captured_decode_step_computes_the_same():
    model = Llama(CONFIG).eval()
    graph = capture(LlamaDecode(model))
    check_supported(graph)
    tokens = torch.arange(5)
    expected = model(tokens.unsqueeze(0))[0]
    for position, token in enumerate(tokens):
        found = graph(token.view(1), torch.tensor([position]))
        torch.testing.assert_close(found, expected[position], rtol=1e-5, atol=1e-5)


def test_nodes_know_their_source_line():
    graph = capture(Llama(CONFIG))
    lines = {node.name: source_line(node) for node in graph.graph.nodes if node.op != "output"}
    assert all(line.startswith("llama.py:") for n, line in lines.items() if n != "tokens"), lines


def test_a_node_without_a_source_is_named():
    graph = capture(nn.Sequential(nn.SiLU()))
    node = next(node for node in graph.graph.nodes if node.op == "placeholder")
    assert source_line(node) == f"node {node.name!r}"


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = functional.gelu(self.first(x))
        return self.drop(self.norm(x)).transpose(0, 1)


def test_all_unsupported_operations_are_reported_together():
    first, *rest = refusal(Unsupported())
    assert first == "4 unsupported operations in the model:"
    code = Unsupported.forward.__code__.co_firstlineno
    expected = [
        (1, "Function gelu", "use SiLU (torch.nn.functional.silu)"),
        (2, "Module LayerNorm", "use RMSNorm (mxhw.models.llama.RMSNorm)"),
        (2, "Module Dropout", "remove it: it does nothing at inference"),
        (2, "Method transpose", "supported are flatten, unflatten"),
    ]
    assert rest == [
        f"  {what} at test_frontend.py:{code + line}: {advice}" for line, what, advice in expected
    ]


def test_one_unsupported_operation():
    class Tanh(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    first, second = refusal(Tanh())
    assert first == "1 unsupported operation in the model:"
    assert second.startswith("  Function tanh at test_frontend.py:")
    assert second.endswith(
        ": supported are torch.nn.functional.silu, +, silu(a) * b, indexing of a cache's result"
    )


def test_tensor_attributes_are_refused():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(32))

        def forward(self, x):
            return x + self.offset

    assert refusal(Shift())[1].startswith("  Tensor attribute offset at ")


def test_control_flow_on_values_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else x + x

    with pytest.raises(
        UserError,
        match=r"^Model cannot be traced by torch\.fx: .*; "
        r"remove branches and loops that depend on tensor values$",
    ):
        capture(Branch())


def test_supported_parts_outside_a_llama():
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = RMSNorm(32)
            self.up = nn.Linear(32, 64, bias=False)
            self.act = nn.SiLU()
            self.down = nn.Linear(64, 32, bias=False)

        def forward(self, x):
            return x + self.down(self.act(self.up(self.norm(x))))

    check_supported(capture(Mlp()))
