"""All passes one after the other."""

import itertools

from mxhw.compiler.netlist import improve
from tests.compiler.netlist.gates import carry_outputs, ccu2c, lut4, lut_output, module
from tests.compiler.netlist.test_multipliers import factor, netlist


def adder():
    """Minus a number whose inverter is a table: the first operand is a constant zero."""
    return {
        "table": lut4(0x5555, [0, "1", "1", "1"]),
        "adder": ccu2c([0x96AA, 0x96AA], ["0", 50, "0", "1", 2, 1, "0", "1"]),
    }


def test_every_pass_runs():
    engine = netlist(
        factor(8, signed=True, first=200),
        factor(8, signed=True, first=300),
        signed=True,
        product_bits=16,
    )
    after = module({**adder(), **engine["cells"]})
    after["netnames"] = {"engine.tree_0.product_0_full": {"bits": [1000]}}
    after["cells"]["multiplier"]["attributes"] = {}
    improve(after, "85k")
    cells = after["cells"]
    assert "table" not in cells
    assert "0" not in [bits[0] for bits in list(cells["adder"]["connections"].values())[:8]]
    assert cells["multiplier"]["connections"]["A10"] == [200]
    assert cells["multiplier"]["attributes"]["BEL"].startswith("X")


def test_an_adder_of_zero_takes_a_table_in():
    """Tables go before zeros: without its first operand the half would look like another."""
    before, after = adder(), adder()
    module_after = {**module(after), "netnames": {}}
    improve(module_after, "")
    assert set(after) == {"adder"}
    for levels in itertools.product((0, 1), repeat=3):
        values = dict(enumerate(levels))
        inverted = lut_output(before["table"], values)
        for carry in (0, 1):
            expected = carry_outputs(before["adder"], {**values, 50: inverted}, carry)
            assert carry_outputs(after["adder"], values, carry) == expected
