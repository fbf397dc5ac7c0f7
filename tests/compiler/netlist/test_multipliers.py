import copy
import random

import pytest

from mxhw.compiler.netlist.multipliers import align_factors

FACTOR_BITS = 18
PRODUCT_BITS = 36


def factor(width, *, signed, first):
    """Bits of a port that holds a factor of a width, extended as synthesis does."""
    bits = list(range(first, first + width))
    return bits + [bits[-1] if signed else "0"] * (FACTOR_BITS - width)


def netlist(a, b, *, signed, product_bits, registers=False):
    """A module with one multiplier, whose product's low bits are read."""
    sign = ["1" if signed else "0"]
    connections = {"SIGNEDA": sign, "SIGNEDB": sign}
    connections |= {f"A{index}": [bit] for index, bit in enumerate(a)}
    connections |= {f"B{index}": [bit] for index, bit in enumerate(b)}
    product = [1000 + index for index in range(PRODUCT_BITS)]
    connections |= {f"P{index}": [bit] for index, bit in enumerate(product)}
    directions = {name: "output" if name[0] == "P" else "input" for name in connections}
    cells = {
        "multiplier": {
            "type": "MULT18X18D",
            "parameters": {"REG_OUTPUT_CLK": "CLK0"} if registers else {},
            "connections": connections,
            "port_directions": directions,
        },
        "reader": {
            "type": "READER",
            "parameters": {},
            "connections": {"A": product[:product_bits]},
            "port_directions": {"A": "input"},
        },
    }
    return {"ports": {}, "cells": cells}


def evaluate(module, values):
    """Bits of the product by name, for values of the nets that drive the factors."""
    connections = module["cells"]["multiplier"]["connections"]

    def number(letter, width):
        bits = [connections[f"{letter}{index}"][0] for index in range(width)]
        levels = [values[bit] if isinstance(bit, int) else int(bit) for bit in bits]
        unsigned = sum(level << index for index, level in enumerate(levels))
        signed = connections[f"SIGNED{letter}"] == ["1"] and levels[-1]
        return unsigned - (1 << width if signed else 0)

    product = number("A", FACTOR_BITS) * number("B", FACTOR_BITS)
    result = {}
    for index in range(PRODUCT_BITS):
        for bit in connections[f"P{index}"]:
            result[bit] = product >> index & 1
    return result


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("width_a", "width_b"), [(8, 8), (1, 18), (18, 18), (16, 17), (4, 8), (2, 2), (17, 3)]
)
def test_product_is_kept(width_a, width_b, signed):
    a = factor(width_a, signed=signed, first=0)
    b = factor(width_b, signed=signed, first=100)
    before = netlist(a, b, signed=signed, product_bits=width_a + width_b)
    after = copy.deepcopy(before)
    saved = align_factors(after)
    connected = [
        bit
        for letter in "AB"
        for index in range(FACTOR_BITS)
        for bit in after["cells"]["multiplier"]["connections"][f"{letter}{index}"]
        if bit != "0"
    ]
    if width_a + width_b <= 34:
        assert len(connected) == width_a + width_b
    extended = 2 * FACTOR_BITS if signed else width_a + width_b
    assert saved == extended - len(connected)
    chance = random.Random(width_a * 100 + width_b)
    for _ in range(200):
        values = {bit: chance.randrange(2) for bit in {*a, *b} if isinstance(bit, int)}
        expected = evaluate(before, values)
        made = evaluate(after, values)
        for bit in before["cells"]["reader"]["connections"]["A"]:
            assert made[bit] == expected[bit]


def test_bits_that_are_read_stay():
    a, b = factor(8, signed=True, first=0), factor(8, signed=True, first=100)
    module = netlist(a, b, signed=True, product_bits=PRODUCT_BITS)
    before = copy.deepcopy(module)
    assert align_factors(module) == 0
    assert module == before


def test_bits_at_a_port_of_the_module_stay():
    a, b = factor(8, signed=True, first=0), factor(8, signed=True, first=100)
    module = netlist(a, b, signed=True, product_bits=16)
    module["ports"] = {"sign": {"direction": "output", "bits": [1000 + PRODUCT_BITS - 1]}}
    before = copy.deepcopy(module)
    assert align_factors(module) == 0
    assert module == before


def test_one_bit_less_room_than_wanted():
    a, b = factor(8, signed=True, first=0), factor(8, signed=True, first=100)
    before = netlist(a, b, signed=True, product_bits=17)
    after = copy.deepcopy(before)
    assert align_factors(after) == 19
    for first in (0, 127, 128, 255):
        for second in (0, 127, 128, 255):
            values = {bit: first >> bit & 1 for bit in range(8)}
            values |= {100 + bit: second >> bit & 1 for bit in range(8)}
            expected = evaluate(before, values)
            assert all(
                evaluate(after, values)[1000 + bit] == expected[1000 + bit] for bit in range(17)
            )


@pytest.mark.parametrize("change", ["registers", "chain", "sign"])
def test_other_multipliers_are_left(change):
    a, b = factor(8, signed=True, first=0), factor(8, signed=True, first=100)
    module = netlist(a, b, signed=True, product_bits=16, registers=change == "registers")
    connections = module["cells"]["multiplier"]["connections"]
    if change == "chain":
        connections["SRIA0"] = [500]
        module["cells"]["multiplier"]["port_directions"]["SRIA0"] = "input"
    if change == "sign":
        connections["SIGNEDA"] = [500]
    before = copy.deepcopy(module)
    assert align_factors(module) == 0
    assert module == before
