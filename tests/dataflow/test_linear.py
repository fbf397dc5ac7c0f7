# amaranth: UnusedElaboratable=no
"""A matrix operator with an engine of its own, against golden."""

import pytest
import torch

from mxhw.dataflow.linear import Linear
from mxhw.formats import parse_format
from mxhw.sw.golden import quantize
from mxhw.sw.golden.linear import linear
from tests.support import check_stream, measure_latency_and_interval, pack_lanes
from tests.tiny import one_build_at_a_time, quick_build

NARROW, WIDE = parse_format("mxint8"), parse_format("mxint16")


def beats(tensor, lanes: int) -> list[int]:
    bits = tensor.format.element.bits
    rows = tensor.elements.reshape(-1, 32).tolist()
    return [
        pack_lanes(row[first : first + lanes], bits) | scale << lanes * bits
        for row, scale in zip(rows, tensor.scales.flatten().tolist(), strict=True)
        for first in range(0, 32, lanes)
    ]


def unit_of(weight, format=WIDE):
    return Linear(weight=weight, x_format=NARROW, format=format, engine_format=NARROW, rows=2)


@pytest.mark.parametrize("format", ["mxint4", "mxfp4"])
def test_vectors_against_golden(format):
    torch.manual_seed(8)
    weight = quantize(torch.randn(32, 64, dtype=torch.float64), parse_format(format))
    vectors = quantize(torch.randn(4, 64, dtype=torch.float64), NARROW)
    expected = beats(linear(vectors, weight, WIDE), 2)
    with one_build_at_a_time(), quick_build():
        check_stream(unit_of(weight), {"i": beats(vectors, 2)}, {"o": expected}, engine="cxxrtl")
        timing = measure_latency_and_interval(
            unit_of(weight), {"i": beats(vectors, 2)}, "o", len(expected), groups=4, engine="cxxrtl"
        )
    stated = unit_of(weight).interval
    assert stated == 2 * 16 + 2 * 16
    assert stated <= timing.interval <= stated + 12


def test_rows_are_whole_blocks():
    weight = quantize(torch.randn(16, 32, dtype=torch.float64), NARROW)
    with pytest.raises(ValueError, match=r"^Rows of a weight must be whole blocks of 32, not 16$"):
        unit_of(weight)
