import copy
import itertools
import random

import pytest

from mxhw.compiler._absorb import absorb_inverters, absorb_tables
from tests.compiler.test_constants import carry_outputs, ccu2c, lut4, lut_output


def module(cells, outputs=()):
    return {"ports": {"o": {"direction": "output", "bits": list(outputs)}}, "cells": cells}


def outputs(cells, values, carry):
    """Sums and carry of the carry cell, behind the tables that are left."""
    values = dict(values)
    for cell in cells.values():
        if cell["type"] == "LUT4":
            values[cell["connections"]["Z"][0]] = lut_output(cell, values)
    return carry_outputs(cells["adder"], values, carry)


def check(cells, saved, nets):
    after = module(copy.deepcopy(cells))
    assert absorb_tables(after) == saved
    assert len(after["cells"]) == len(cells) - saved
    for levels in itertools.product((0, 1), repeat=len(nets)):
        values = dict(zip(nets, levels, strict=True))
        for carry in (0, 1):
            assert outputs(after["cells"], values, carry) == outputs(cells, values, carry)


@pytest.mark.parametrize("contents", range(16))
@pytest.mark.parametrize("third", ["0", "1"])
@pytest.mark.parametrize("place", ["A", "B"])
def test_tables_of_two_inputs(contents, third, place):
    """All of them, before either operand of an adder or the second of a subtractor."""
    operands = [2, 50] if place == "B" else [50, 2]
    cells = {
        "table": lut4(int(f"{contents:04b}" * 4, 2), [0, 1, "0", "1"]),
        "adder": ccu2c([0x96AA, 0x96AA], [*operands, third, "1", 3, 4, "0", "1"]),
    }
    check(cells, int(place == "B" or third == "0"), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("third", ["0", "1"])
def test_tables_of_three_inputs(third):
    """Those that leave the carry as it is: for some input, and whatever its level, two zeros."""
    fitting = 0
    for contents in range(256):
        cells = {
            "table": lut4(int(f"{contents:08b}" * 2, 2), [0, 1, 5, "1"]),
            "adder": ccu2c([0x96AA, 0x96AA], [2, 50, third, "1", 3, 4, "0", "1"]),
        }
        after = module(copy.deepcopy(cells))
        saved = absorb_tables(after)
        fitting += saved
        check(cells, saved, [0, 1, 2, 3, 4, 5])
    # 112 that are 0 at 000 and at 100, 010 or 001, and 19 of fewer inputs.
    assert fitting == 112 + 19


def test_a_multiplexer_and_an_or_of_ands_fit():
    for contents in (0xCACA, 0xEAEA):
        cells = {
            "table": lut4(contents, [0, 1, 5, "1"]),
            "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 4, "0", "1"]),
        }
        check(cells, 1, [0, 1, 2, 3, 4, 5])


def test_a_table_may_feed_several_halves():
    cells = {
        "table": lut4(0x6666, [0, 1, "1", "1"]),
        "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 50, "0", "1"]),
    }
    check(cells, 1, [0, 1, 2, 3])


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells["adder"]["connections"].update(C0=[9]),
        lambda cells: cells["adder"]["parameters"].update(INIT0=f"{0x6666:016b}"),
        lambda cells: cells["adder"]["connections"].update(A0=[50]),
        lambda cells: cells["table"].update(attributes={"keep": "1"}),
        lambda cells: cells.update(other=lut4(0x8000, [50, 0, 1, 2]) | {"type": "PFUMX"}),
        lambda cells: cells["table"]["connections"].update(C=[6], D=[7]),
    ],
)
def test_what_does_not_fit_is_left(change):
    cells = {
        "table": lut4(0x6996, [0, 1, "1", "1"]),
        "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 4, "0", "1"]),
    }
    change(cells)
    before = copy.deepcopy(cells)
    assert absorb_tables(module(cells)) == 0
    assert cells == before


def test_an_output_of_the_design_stays():
    cells = {
        "table": lut4(0x6666, [0, 1, "1", "1"]),
        "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 4, "0", "1"]),
    }
    assert absorb_tables(module(cells, outputs=[50])) == 0


def test_chains_of_random_gates_keep_their_sums():
    chance = random.Random(3)
    for _ in range(40):
        cells = {
            f"table_{index}": lut4(
                int(f"{chance.getrandbits(4):04b}" * 4, 2), [*chance.sample(range(4), 2), "0", "1"]
            )
            for index in range(4)
        }
        for index in range(4):
            cells[f"table_{index}"]["connections"]["Z"] = [60 + index]
        inputs = [
            bit
            for _half in range(2)
            for bit in (*chance.sample([0, 1, 2, 3, 60, 61, 62, 63], 2), chance.choice("01"), "1")
        ]
        cells["adder"] = ccu2c([0x96AA, 0x96AA], inputs)
        after = module(copy.deepcopy(cells))
        saved = absorb_tables(after)
        check(cells, saved, range(4))


def flip_flop(reset, **parameters):
    return {
        "type": "TRELLIS_FF",
        "parameters": {"LSRMUX": "LSR", **parameters},
        "connections": {"DI": [5], "CLK": [6], "LSR": [reset], "Q": [7]},
    }


def test_flip_flops_invert_their_reset():
    cells = {
        "inverter": lut4(0x00FF, ["1", "0", "0", 1]),
        "first": flip_flop(50),
        "second": flip_flop(50),
        "third": flip_flop(2),
    }
    assert absorb_inverters(module(cells)) == 1
    assert cells == {
        "first": flip_flop(1, LSRMUX="INV"),
        "second": flip_flop(1, LSRMUX="INV"),
        "third": flip_flop(2),
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells["inverter"]["parameters"].update(INIT=f"{0xFF00:016b}"),
        lambda cells: cells["inverter"]["parameters"].update(INIT=f"{0x0F00:016b}"),
        lambda cells: cells.update(reader=lut4(0x8000, [50, 1, 2, 3])),
        lambda cells: cells["first"]["parameters"].update(LSRMUX="INV"),
        lambda cells: cells["first"]["connections"].update(DI=[50]),
    ],
)
def test_other_inverters_are_left(change):
    cells = {"inverter": lut4(0x00FF, ["1", "0", 3, 1]), "first": flip_flop(50)}
    change(cells)
    before = copy.deepcopy(cells)
    assert absorb_inverters(module(cells)) == 0
    assert cells == before
