from mxhw.compiler.netlist.cells import OTHER, assign_cells, count_by_unit


def unit_of(path):
    return path[1] if path[0] == "design" and len(path) > 1 else None


def cell(kind, inputs, outputs):
    return {
        "type": kind,
        "port_directions": {"i": "input", "o": "output"},
        "connections": {"i": inputs, "o": outputs},
    }


MODULE = {
    "ports": {},
    "cells": {
        "$scope": {"type": "$scopeinfo", "port_directions": {}, "connections": {}},
        "design.ram.0": cell("RAM", [2], [3]),
        "$flatten\\design.\\mul.$1": cell("MUL", [3], [4]),
        "$abc$7$lut\\design.ram.x": cell("LUT4", [4], [5]),
        "$abc$7$aiger$8": cell("LUT4", [5, 3], [6]),
        "$auto$ff": cell("FF", [6, "0"], [7]),
        "$abc$7$aiger$9": cell("LUT4", [7], [8]),
        "$alone": cell("LUT4", ["1"], [9]),
    },
    "netnames": {
        "design.alu.sum": {"bits": [7]},
        "copy": {"bits": [7]},
        "$abc$7$lut\\design.mul.y": {"bits": [6]},
        "design.alu.low": {"bits": [5, "x"]},
    },
}


def test_cells_go_to_units_by_name_net_and_neighbours():
    assert assign_cells(MODULE, unit_of) == {
        "design.ram.0": "ram",
        "$flatten\\design.\\mul.$1": "mul",
        "$abc$7$lut\\design.ram.x": "alu",  # drives design.alu.low
        "$abc$7$aiger$8": "alu",  # read by the register
        "$auto$ff": "alu",  # drives design.alu.sum
        "$abc$7$aiger$9": "alu",  # read by nothing; reads the register
        "$alone": OTHER,
    }


def test_counts_hold_every_cell():
    counts = count_by_unit(MODULE, assign_cells(MODULE, unit_of))
    assert counts == {
        "alu": {"FF": 1, "LUT4": 3},
        "mul": {"MUL": 1},
        "other": {"LUT4": 1},
        "ram": {"RAM": 1},
    }
