"""The spatial binding: an MLP with a unit for each node, against golden."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.compiler.spatial import bind_spatial
from mxhw.dataflow.linear import Linear
from mxhw.dataflow.swiglu import Silu
from mxhw.errors import UserError
from mxhw.models.llama import RMSNorm
from mxhw.sw.golden import quantize
from tests.support import check_stream, pack_lanes
from tests.tiny import one_build_at_a_time, quick_build

OPTIONS = LoweringOptions()
ROWS = 4


def mlp() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(64, 32, bias=False), nn.SiLU(), nn.Linear(32, 64, bias=False)
    ).requires_grad_(False)


def beats(tensor) -> list[int]:
    bits, size = tensor.format.element.bits, tensor.format.block_size
    rows = tensor.elements.reshape(-1, size).tolist()
    return [
        pack_lanes(row[first : first + ROWS], bits) | scale << ROWS * bits
        for row, scale in zip(rows, tensor.scales.flatten().tolist(), strict=True)
        for first in range(0, size, ROWS)
    ]


def test_mlp_equals_golden_under_stalls():
    graph = lower(mlp(), OPTIONS)
    design = bind_spatial(graph, OPTIONS, rows=ROWS)
    assert [type(unit) for _, unit in design.units] == [Linear, Silu, Linear]
    vectors = 3 * torch.randn(3, 64)
    vectors[1] *= 2.0**-7
    inputs = quantize(vectors.double(), OPTIONS.activation_format)
    golden = graph(inputs)
    assert golden.format == OPTIONS.wide_format
    assert len(set(golden.elements.flatten().tolist())) > 50
    with one_build_at_a_time(), quick_build():
        check_stream(design, {"i": beats(inputs)}, {"o": beats(golden)}, engine="cxxrtl")


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32, bias=False)
        self.second = nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.first(x) + self.second(x)


class Gated(Branch):
    def forward(self, x):
        return functional.silu(self.first(x)) * self.second(x)


@pytest.mark.parametrize("module", [Branch, Gated])
def test_branches_are_refused(module):
    with pytest.raises(
        UserError,
        match=r"^Operator \w+ \(test_spatial.py:\d+\) is not part of a chain; the spatial binding "
        r"takes one input, one output and no branches$",
    ):
        bind_spatial(lower(module(), OPTIONS), OPTIONS)


def test_operators_without_a_spatial_unit():
    graph = lower(nn.Sequential(RMSNorm(32, 1e-5), nn.Linear(32, 32, bias=False)), OPTIONS)
    with pytest.raises(
        UserError, match=r"^Operator \w+ .* has no spatial unit; supported are Linear and SiLU$"
    ):
        bind_spatial(graph, OPTIONS)


@pytest.mark.parametrize(("inputs", "outputs", "which"), [(33, 32, "Input"), (32, 40, "Output")])
def test_widths_are_whole_blocks(inputs, outputs, which):
    width = inputs if which == "Input" else outputs
    with pytest.raises(
        UserError,
        match=rf"^{which} width of the Linear at .* must be a multiple of the block size \(32\), "
        rf"not {width}$",
    ):
        lower(nn.Sequential(nn.Linear(inputs, outputs, bias=False)), OPTIONS)


def test_a_graph_without_operators():
    with pytest.raises(UserError, match=r"^Graph has no operator to bind$"):
        bind_spatial(lower(nn.Sequential(), OPTIONS), OPTIONS)
