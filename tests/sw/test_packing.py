import pytest
import torch

from mxhw.arith.shapes import BlockWord
from mxhw.errors import UserError
from mxhw.formats import parse_format
from mxhw.sw.golden import quantize
from mxhw.sw.packing import interleave_blocks, pack_matrix, pack_words, unpack_words
from tests.support import unpack


@pytest.mark.parametrize("name", ["mxint8", "mxfp4", "mxint5", "mxint8_b16"])
def test_words_hold_rows_and_blocks(name):
    torch.manual_seed(1)
    format = parse_format(name)
    weight = quantize(torch.randn(8, 96), format)
    words = pack_matrix(weight, 4)
    assert len(words) == 2 * weight.blocks
    layout = BlockWord(format=format, rows=4)
    size = format.block_size
    for group in range(2):
        for block in range(weight.blocks):
            value = unpack(layout, words[group * weight.blocks + block])
            for row in range(4):
                line = 4 * group + row
                expected = weight.elements[line, block * size : (block + 1) * size].tolist()
                assert value[row]["elements"] == expected
                assert value[row]["scale"] == int(weight.scales[line, block])


def test_files_round_trip():
    words = [0, 5, (1 << 264) - 1]
    assert unpack_words(pack_words(words, 264), 264) == words


def test_incomplete_groups_are_refused():
    weight = quantize(torch.randn(6, 32), parse_format("mxint8"))
    message = r"^Rows of a matrix must be a multiple of the engine's rows \(4\), not 6$"
    with pytest.raises(UserError, match=message):
        pack_matrix(weight, 4)


def test_interleaving_takes_turns_of_blocks():
    format = parse_format("mxint8")
    first = quantize(torch.full((64, 32), 1.0), format)
    second = quantize(torch.full((64, 32), -1.0), format)
    merged = interleave_blocks(first, second).dequantize()[:, 0]
    signs = [1.0] * 32 + [-1.0] * 32
    assert merged.tolist() == signs * 2
