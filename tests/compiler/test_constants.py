import copy
import itertools
import random

import pytest

from mxhw.compiler._constants import absorb_zeros


def table(contents, a, b, c, d):
    return contents >> (a | b << 1 | c << 2 | d << 3) & 1


def lut4(contents, inputs):
    connections = {name: [bit] for name, bit in zip("ABCD", inputs, strict=True)}
    parameters = {"INIT": f"{contents:016b}"}
    return {"type": "LUT4", "parameters": parameters, "connections": {**connections, "Z": [50]}}


def ccu2c(contents, inputs):
    parameters = {f"INIT{half}": f"{value:016b}" for half, value in enumerate(contents)}
    names = [f"{name}{half}" for half in range(2) for name in "ABCD"]
    connections = {name: [bit] for name, bit in zip(names, inputs, strict=True)}
    return {"type": "CCU2C", "parameters": parameters, "connections": connections}


def levels(cell, names, values):
    """Levels at inputs of a cell; an open input and a constant one read as one."""
    bits = [cell["connections"][name][0] for name in names]
    return [values[bit] if isinstance(bit, int) else int(bit) for bit in bits]


def lut_output(cell, values):
    return table(int(cell["parameters"]["INIT"], 2), *levels(cell, "ABCD", values))


def carry_outputs(cell, values, carry):
    """Sums and carry of a CCU2C, as Lattice's model makes them."""
    outputs = []
    for half in "01":
        contents = int(cell["parameters"][f"INIT{half}"], 2)
        a, b, c, d = levels(cell, [f"{name}{half}" for name in "ABCD"], values)
        propagate = table(contents, a, b, c, d)
        generate = table(contents & 0xF, a, b, 0, 0)
        outputs.append(propagate ^ carry)
        carry = carry if propagate else generate
    return [*outputs, carry]


@pytest.mark.parametrize("zeros", range(16))
def test_table_keeps_its_function(zeros):
    chance = random.Random(zeros)
    inputs = ["0" if zeros >> index & 1 else index for index in range(4)]
    for _ in range(10):
        before = lut4(chance.getrandbits(16), inputs)
        after = copy.deepcopy(before)
        assert absorb_zeros({"cells": {"cell": after}}) == zeros.bit_count()
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
        assert absorb_zeros({"cells": {"cell": after}}) == inputs.count("0")
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
    assert absorb_zeros({"cells": cells}) == 0
    assert cells == before
