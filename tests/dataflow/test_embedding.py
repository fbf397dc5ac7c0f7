# amaranth: UnusedElaboratable=no
"""The embedding unit against golden."""

import pytest
import torch

from mxhw.dataflow.embedding import Embedding
from mxhw.formats import BlockFormat
from mxhw.sw.golden import quantize
from mxhw.sw.golden.linear import embedding
from mxhw.sw.packing import pack_matrix
from tests.support import check_stream, measure_latency_and_interval, pack_lanes

NARROW, WIDE = BlockFormat.mxint(8), BlockFormat.mxint(16)


def table(rows: int, blocks: int):
    torch.manual_seed(rows)
    values = torch.randn(rows, 32 * blocks, dtype=torch.float64)
    values *= 2.0 ** torch.randint(-20, 20, (rows, 1))
    values[0] = 0
    values[1, 0] = -(2.0**9)
    return quantize(values, NARROW)


def beats(tensor, lanes: int) -> list[int]:
    bits = tensor.format.element.bits
    rows = tensor.elements.reshape(-1, 32).tolist()
    return [
        pack_lanes(row[first : first + lanes], bits) | scale << lanes * bits
        for row, scale in zip(rows, tensor.scales.flatten().tolist(), strict=True)
        for first in range(0, 32, lanes)
    ]


def streams(tokens: list[int], *, rows: int, lanes: int, blocks: int):
    weight = table(16, blocks)
    words = pack_matrix(weight, rows)
    taken = [
        word
        for token in tokens
        for word in words[token // rows * blocks : (token // rows + 1) * blocks]
    ]
    inputs = {"i": taken, "i_command": [{"row": token % rows} for token in tokens]}
    return inputs, beats(embedding(weight, torch.tensor(tokens), WIDE), lanes)


@pytest.mark.parametrize(("rows", "lanes", "blocks"), [(4, 4, 2), (2, 2, 1), (8, 4, 3)])
def test_rows_of_a_table(rows, lanes, blocks):
    inputs, expected = streams([5, 0, 15, 1, 5, 6], rows=rows, lanes=lanes, blocks=blocks)
    unit = Embedding(format=NARROW, wide_format=WIDE, rows=rows, lanes=lanes, blocks=blocks)
    check_stream(unit, inputs, {"o": expected}, stalls=((1.0, 1.0), (0.4, 0.5)))


def test_timing():
    inputs, expected = streams([5], rows=4, lanes=4, blocks=1)
    unit = Embedding(format=NARROW, wide_format=WIDE, rows=4, lanes=4, blocks=1)
    stated = unit.latency
    timing = measure_latency_and_interval(unit, inputs, "o", len(expected))
    assert timing.latency == stated
