"""Sites of the engine's multipliers and block RAMs, on netlists made for the purpose."""

import re

import pytest

from mxhw.compiler.netlist.sites import place_engine

SITE = re.compile(r"X(\d+)/Y(\d+)/(MULT18_[0145]|EBR[0-3])$")


class Netlist:
    """An engine of some rows and lanes: block RAM, choice, register, multiplier."""

    def __init__(self, *, rows: int, lanes: int, others: int = 0):
        self.cells = {}
        self.netnames = {}
        self._bits = iter(range(2, 1 << 20))
        for lane in range(lanes):
            keys = self.cell("DP16KD", f"keys.column_{lane}", outputs=("DOA0",))
            for row in range(rows):
                weights = self.cell("DP16KD", f"weights.row_{row}.0.{lane}", outputs=("DOA0",))
                chosen = self.cell(
                    "LUT4", f"choice_{row}_{lane}", outputs=("Z",), A=weights[0], B=keys[0]
                )
                held = self.cell("TRELLIS_FF", f"w_{row}_{lane}", outputs=("Q",), DI=chosen[0])
                product = self.cell(
                    "MULT18X18D", f"multiplier_{row}_{lane}", outputs=("P0", "P1"), A0=held[0]
                )
                self.netnames[f"engine.tree_{row}.product_{lane}_full"] = {"bits": product}
        for index in range(others):
            self.cell("MULT18X18D", f"other_{index}", outputs=("P0",))
            self.cell("DP16KD", f"table_{index}", outputs=("DOA0",))

    def cell(self, kind, name, *, outputs, **inputs):
        bits = [next(self._bits) for _ in outputs]
        connections = {port: [bit] for port, bit in zip(outputs, bits, strict=True)}
        connections |= {port: [bit] for port, bit in inputs.items()}
        self.cells[name] = {
            "type": kind,
            "attributes": {},
            "connections": connections,
            "port_directions": {
                **dict.fromkeys(outputs, "output"),
                **dict.fromkeys(inputs, "input"),
            },
        }
        return bits

    @property
    def module(self):
        return {"ports": {}, "cells": self.cells, "netnames": self.netnames}

    def site(self, name):
        match = SITE.match(self.cells[name]["attributes"]["BEL"])
        assert match is not None
        return int(match[1]), int(match[2])

    @property
    def fixed(self):
        return [cell["attributes"]["BEL"] for cell in self.cells.values() if cell["attributes"]]


@pytest.mark.parametrize(("rows", "lanes", "others"), [(4, 32, 10), (2, 32, 0), (1, 8, 3)])
def test_every_macro_of_the_engine_has_a_site_of_its_own(rows, lanes, others):
    netlist = Netlist(rows=rows, lanes=lanes, others=others)
    count = place_engine(netlist.module, "um5g-85k")
    assert count == len(netlist.fixed) == 2 * rows * lanes + lanes
    assert len(set(netlist.fixed)) == count
    assert not any(netlist.cells[f"other_{index}"]["attributes"] for index in range(others))


def test_lanes_lie_side_by_side():
    netlist = Netlist(rows=4, lanes=32)
    place_engine(netlist.module, "85k")
    columns = [
        sum(netlist.site(f"multiplier_{row}_{lane}")[0] for row in range(4)) / 4
        for lane in range(32)
    ]
    assert sorted(columns) == columns
    for lane in range(32):
        for row in range(4):
            x, _y = netlist.site(f"multiplier_{row}_{lane}")
            assert abs(netlist.site(f"weights.row_{row}.0.{lane}")[0] - x) < 30
            assert abs(netlist.site(f"keys.column_{lane}")[0] - x) < 30


def test_other_macros_keep_the_middle():
    netlist = Netlist(rows=4, lanes=32, others=10)
    place_engine(netlist.module, "85k")
    taken = {netlist.site(name) for name in netlist.cells if name.startswith("multiplier")}
    middle = [(x, y) for x in (58, 59, 62, 63) for y in (34, 58)]
    assert not taken & set(middle)


@pytest.mark.parametrize(
    ("rows", "lanes", "others", "device"),
    [(4, 32, 0, "45k"), (4, 32, 40, "85k"), (0, 0, 5, "85k")],
    ids=["unknown die", "too many cells", "no engine"],
)
def test_left_to_the_placer(rows, lanes, others, device):
    netlist = Netlist(rows=rows, lanes=lanes, others=others)
    assert place_engine(netlist.module, device) == 0
    assert not netlist.fixed
