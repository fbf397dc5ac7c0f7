import copy
import itertools
import random

import pytest

from mxhw.compiler.netlist.absorb import absorb_tables
from tests.compiler.netlist.gates import (
    carry_outputs,
    ccu2c,
    flip_flop,
    lut4,
    lut_output,
    module,
    reset_level,
)


def settle(cells, values):
    """Levels of all nets: those given, and the outputs of the tables."""
    values = dict(values)
    waiting = [cell for cell in cells.values() if cell["type"] == "LUT4"]
    while waiting:
        cell = waiting.pop(0)
        try:
            values[cell["connections"]["Z"][0]] = lut_output(cell, values)
        except KeyError:
            waiting.append(cell)
    return values


def outputs(cells, values, carry):
    """What the cells behind the tables compute: sums and carry, and the level of a reset."""
    values = settle(cells, values)
    result = {}
    for name, cell in cells.items():
        if cell["type"] == "CCU2C":
            result[name] = carry_outputs(cell, values, carry)
        elif cell["type"] == "TRELLIS_FF":
            result[name] = reset_level(cell, values)
    return result


def check(cells, saved, nets):
    """The pass saves so many tables, and nothing else changes; returns the cells that are left."""
    after = module(copy.deepcopy(cells))
    assert absorb_tables(after) == saved
    assert len(after["cells"]) == len(cells) - saved
    for levels in itertools.product((0, 1), repeat=len(nets)):
        values = dict(zip(nets, levels, strict=True))
        for carry in (0, 1):
            assert outputs(after["cells"], values, carry) == outputs(cells, values, carry)
    return after["cells"]


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


def test_random_gates_before_adders_keep_their_sums():
    chance = random.Random(3)
    total = 0
    for _ in range(40):
        cells = {
            f"table_{index}": lut4(
                int(f"{chance.getrandbits(4):04b}" * 4, 2),
                # Sometimes behind another table.
                [*chance.sample([0, 1, 2, 3, *range(60, 60 + index)], 2), "0", "1"],
                output=60 + index,
            )
            for index in range(4)
        }
        for name in ("adder", "other"):
            halves = [
                (*chance.sample([0, 1, 2, 3, 60, 61, 62, 63], 2), chance.choice("01"), "1")
                for _half in range(2)
            ]
            cells[name] = ccu2c([0x96AA, 0x96AA], [bit for half in halves for bit in half])
        after = module(copy.deepcopy(cells))
        saved = absorb_tables(after)
        check(cells, saved, range(4))
        total += saved
    assert total > 30


@pytest.mark.parametrize("order", [["first", "second"], ["second", "first"]])
def test_a_chain_of_tables(order):
    """An inverter leaves room in the half for the table before it."""
    tables = {
        "first": lut4(0x6666, [0, 1, "1", "1"], output=51),
        "second": lut4(0x5555, [51, "1", "1", "1"]),
    }
    cells = {name: tables[name] for name in order}
    cells["adder"] = ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 4, "0", "1"])
    check(cells, 2, range(5))


@pytest.mark.parametrize("order", [["first", "second"], ["second", "first"]])
def test_a_table_whose_reader_was_deleted(order):
    """One that this ignored fits into its other reader; one that has no other stays."""
    tables = {
        "first": lut4(0x6666, [0, 1, "1", "1"], output=51),
        "second": lut4(0x5555, [5, 51, 52, "1"]),
        "unread": lut4(0x6666, [0, 1, "1", "1"], output=52),
    }
    cells = {name: tables[name] for name in (*order, "unread")}
    cells["adder"] = ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 51, 4, "0", "1"])
    left = check(cells, 2, range(6))
    assert set(left) == {"unread", "adder"}


@pytest.mark.parametrize(
    "source",
    [
        lut4(0x6666, [0, 1, "1", "1"], output=7) | {"attributes": {"keep": "1"}},
        flip_flop(0),
    ],
    ids=["a table to keep", "a register"],
)
def test_what_drives_an_absorbed_table_stays(source):
    cells = {
        "source": source,
        "table": lut4(0x5555, [7, "1", "1", "1"]),
        "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 4, "0", "1"]),
    }
    left = check(cells, 1, [0, 1, 2, 3, 4, 7])
    assert left["source"] == source


def test_operands_that_changed_places_are_found():
    """Two tables before one half: the first takes the place of the second."""
    cells = {
        "first": lut4(0x5555, [0, "1", "1", "1"], output=51),
        "second": lut4(0x5555, [1, "1", "1", "1"], output=52),
        "adder": ccu2c([0x96AA, 0x96AA], [51, 52, "0", "1", 3, 4, "0", "1"]),
    }
    # What a half has taken in, it does not exchange.
    left = check(cells, 1, range(5))
    assert left["adder"]["connections"]["A0"] == [52]


def test_readers_of_both_types():
    inverter = lut4(0x5555, [0, "1", "1", "1"])
    cells = {
        "inverter": inverter,
        "register": flip_flop(50),
        "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 50, 4, "0", "1"]),
    }
    check(cells, 1, range(5))


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells["table"].update(lut4(0x6666, [0, 1, "1", "1"])),
        lambda cells: cells["adder"]["connections"].update(C0=[9]),
        lambda cells: cells["register"]["connections"].update(DI=[50]),
    ],
)
def test_one_reader_that_needs_it_keeps_a_table(change):
    cells = {
        "table": lut4(0x5555, [0, "1", "1", "1"]),
        "register": flip_flop(50),
        "adder": ccu2c([0x96AA, 0x96AA], [2, 50, "0", "1", 3, 4, "0", "1"]),
    }
    change(cells)
    before = copy.deepcopy(cells)
    assert absorb_tables(module(cells)) == 0
    assert cells == before


def test_flip_flops_invert_their_reset():
    cells = {
        "inverter": lut4(0x00FF, ["1", "0", "0", 1]),
        "first": flip_flop(50),
        "second": flip_flop(50),
        "third": flip_flop(2),
    }
    assert absorb_tables(module(cells)) == 1
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
        lambda cells: cells["inverter"].update(attributes={"keep": "1"}),
    ],
)
def test_other_inverters_are_left(change):
    cells = {"inverter": lut4(0x00FF, ["1", "0", 3, 1]), "first": flip_flop(50)}
    change(cells)
    before = copy.deepcopy(cells)
    assert absorb_tables(module(cells)) == 0
    assert cells == before
