import json

import pytest

from mxhw.compiler.netlist.floorplan import Floorplan, read_floorplan
from mxhw.errors import BuildError


def cell(kind, bel, output):
    return {
        "type": kind,
        "attributes": {} if bel is None else {"NEXTPNR_BEL": bel},
        "port_directions": {"o": "output"},
        "connections": {"o": [output]},
    }


MODULE = {
    "attributes": {"top": "00000000000000000000000000000001"},
    "ports": {},
    "cells": {
        "a.lut0": cell("TRELLIS_COMB", "X4/Y7/SLICEA.LUT0", 2),
        "a.lut1": cell("TRELLIS_COMB", "X4/Y7/SLICEA.LUT1", 3),
        "$ff": cell("TRELLIS_FF", "X4/Y7/SLICEB.FF0", 4),
        "b.ram": cell("DP16KD", "X9/Y2/EBR", 5),
        "b.mul": cell("MULT18X18D", "X3/Y2/MULT18_1", 6),
        "a.pin": cell("TRELLIS_IO", "X0/Y11/PIOA", 7),
        "b.lut": cell("TRELLIS_COMB", None, 8),
    },
    "netnames": {"b.register": {"bits": [4]}},
}


def unit_of(path):
    return path[0] if len(path) > 1 else None


def test_tiles_and_blocks(tmp_path):
    path = tmp_path / "placed.json"
    path.write_text(json.dumps({"modules": {"top": MODULE}}))
    assert read_floorplan(path, unit_of) == Floorplan(
        columns=10,
        rows=12,
        units=("a", "b"),
        tiles=((4, 7, 0, 3),),
        blocks=((3, 2, 1, "MULT18X18D"), (9, 2, 1, "DP16KD")),
    )


def test_a_file_that_is_no_netlist(tmp_path):
    path = tmp_path / "placed.json"
    path.write_text("[]")
    with pytest.raises(BuildError, match=r"^Netlist 'placed.json' cannot be read: "):
        read_floorplan(path, unit_of)
