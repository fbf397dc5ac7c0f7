# amaranth: UnusedElaboratable=no
import random

import pytest
import torch
from unit_cost import cell_counts

from mxhw.arith.shapes import BlockWord
from mxhw.dataflow.key_cache import block_rams
from mxhw.dataflow.weight_memory import WeightMemory, WordDecoder, memory_parts
from mxhw.formats import BlockFormat, parse_format
from mxhw.sw.golden import quantize
from mxhw.sw.packing import pack_matrix
from tests.support import check_stream, unpack

MXINT8 = BlockFormat.mxint(8)


@pytest.mark.parametrize("block_words", [None, 8, 12])
def test_sends_runs_of_words(engine, block_words):
    random.seed(5)
    words = [random.getrandbits(2 * MXINT8.block_bits) for _ in range(13)]
    runs = [(0, 4), (3, 1), (5, 0), (5, 8), (12, 1)]
    expected = [word for base, count in runs for word in words[base : base + count]]
    check_stream(
        WeightMemory(format=MXINT8, rows=2, words=words, block_words=block_words),
        {"i_command": [{"base": base, "count": count} for base, count in runs]},
        {"o": expected},
        engine=engine,
    )


def test_contents_are_checked():
    with pytest.raises(ValueError, match=r"^Weight memory must hold at least one word, not 0$"):
        WeightMemory(format=MXINT8, rows=1, words=[])
    with pytest.raises(ValueError, match=r"^Word 1 of a weight memory must fit 264 bits$"):
        WeightMemory(format=MXINT8, rows=1, words=[0, 1 << 264])
    message = r"^Words of a weight memory in block RAM must be 1 to 2, not 3$"
    with pytest.raises(ValueError, match=message):
        WeightMemory(format=MXINT8, rows=1, words=[0, 1], block_words=3)


def test_words_in_lookup_tables_take_no_block_ram():
    words = [0] * 20
    unit = WeightMemory(format=MXINT8, rows=1, words=words, block_words=16)
    assert unit.cost()["memory_bits"] == 16 * 264


def test_words_behind_the_block_rams_are_synthesised(tmp_path):
    rng = random.Random(3)
    words = [rng.getrandbits(MXINT8.block_bits) for _ in range(24)]
    unit = WeightMemory(format=MXINT8, rows=1, words=words, block_words=16)
    cells = cell_counts(unit, tmp_path)
    parts = memory_parts(MXINT8, 1)
    assert cells["DP16KD"] == sum(block_rams(sum(w for _, w in part), 16) for part in parts)
    # A table of four inputs would hold sixteen words of a bit: eight need half of one at most.
    assert MXINT8.block_bits < cells["LUT4"] < 4 * MXINT8.block_bits


@pytest.mark.parametrize("name", ["mxint8", "mxint4", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2"])
def test_decoded_words_have_the_same_values(name):
    torch.manual_seed(7)
    given = parse_format(name)
    made = BlockFormat.mxint(max(8, given.element.significand_bits))
    weight = quantize(torch.randn(4, 64), given)
    words = pack_matrix(weight, 2)
    layout = BlockWord(format=made, rows=2)
    shift = made.element.fraction_bits - given.element.fraction_bits
    significands = weight.significands()
    expected = []
    for group in range(2):
        for block in range(2):
            word = []
            for row in (2 * group, 2 * group + 1):
                scale = int(weight.scales[row, block]) + shift
                word.append({"elements": significands[row, block].tolist(), "scale": scale})
            expected.append(word)
    check_stream(
        WordDecoder(from_format=given, to_format=made, rows=2), {"i": words}, {"o": expected}
    )
    assert unpack(layout, 0)[0]["scale"] == 0


def test_decoder_refuses_a_narrow_target():
    message = r"^Format to decode to must be an integer format that holds mxfp6_e3m2, not mxint8$"
    with pytest.raises(ValueError, match=message):
        WordDecoder(from_format=parse_format("mxfp6_e3m2"), to_format=MXINT8, rows=1)
