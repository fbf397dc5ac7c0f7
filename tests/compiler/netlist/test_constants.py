import copy
import itertools
import random

import pytest

from mxhw.compiler.netlist.constants import absorb_zeros
from tests.compiler.netlist.gates import carry_outputs, ccu2c, lut4, lut_output, module


@pytest.mark.parametrize("zeros", range(16))
def test_table_keeps_its_function(zeros):
    chance = random.Random(zeros)
    inputs = ["0" if zeros >> index & 1 else index for index in range(4)]
    for _ in range(10):
        before = lut4(chance.getrandbits(16), inputs)
        after = copy.deepcopy(before)
        assert absorb_zeros(module({"cell": after})) == zeros.bit_count()
        assert "0" not in [after["connections"][name][0] for name in "ABCD"]
        for values in itertools.product((0, 1), repeat=4):
            assert lut_output(after, values) == lut_output(before, values)


def test_carry_cell_keeps_sums_and_carry():
    chance = random.Random(7)
    for _ in range(60):
        inputs = [chance.choice(["0", "1", index, index]) for index in range(8)]
        contents = [chance.choice([0x96AA, 0x5002, 0xAAAA, chance.getrandbits(16)]) for _ in "01"]
        before = ccu2c(contents, inputs)
        after = copy.deepcopy(before)
        assert absorb_zeros(module({"cell": after})) == inputs.count("0")
        for values in itertools.product((0, 1), repeat=8):
            for carry in (0, 1):
                made = carry_outputs(after, values, carry)
                assert made == carry_outputs(before, values, carry)


def test_other_cells_are_left():
    cells = {
        "multiplier": {"type": "MULT18X18D", "parameters": {}, "connections": {"A": ["0"]}},
        "table": lut4(0x8000, [1, 2, "1", 3]),
    }
    before = copy.deepcopy(cells)
    assert absorb_zeros(module(cells)) == 0
    assert cells == before
