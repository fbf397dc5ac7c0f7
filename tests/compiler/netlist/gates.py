"""Cells of a netlist as Yosys writes them, and what they compute."""


def lut4(contents, inputs, output=50):
    return _cell(
        "LUT4",
        {"INIT": f"{contents:016b}"},
        dict(zip("ABCD", inputs, strict=True)),
        {"Z": output},
    )


def ccu2c(contents, inputs, outputs=(80, 81, 82)):
    """A carry cell; its inputs are A0, B0, C0, D0, A1..., its carry input is a constant."""
    names = [f"{name}{half}" for half in range(2) for name in "ABCD"]
    return _cell(
        "CCU2C",
        {f"INIT{half}": f"{value:016b}" for half, value in enumerate(contents)},
        {**dict(zip(names, inputs, strict=True)), "CIN": "0"},
        dict(zip(("S0", "S1", "COUT"), outputs, strict=True)),
    )


def flip_flop(reset, *, di=5, **parameters):
    return _cell(
        "TRELLIS_FF",
        {"LSRMUX": "LSR", **parameters},
        {"DI": di, "CLK": 6, "LSR": reset},
        {"Q": 7},
    )


def module(cells, outputs=()):
    return {"ports": {"o": {"direction": "output", "bits": list(outputs)}}, "cells": cells}


def levels(cell, names, values):
    """Levels at inputs of a cell; an open input and a constant one read as one."""
    bits = [cell["connections"][name][0] for name in names]
    return [values[bit] if isinstance(bit, int) else int(bit) for bit in bits]


def lut_output(cell, values):
    return _table(int(cell["parameters"]["INIT"], 2), *levels(cell, "ABCD", values))


def carry_outputs(cell, values, carry):
    """Sums and carry of a CCU2C, as Lattice's model makes them."""
    outputs = []
    for half in "01":
        contents = int(cell["parameters"][f"INIT{half}"], 2)
        a, b, c, d = levels(cell, [f"{name}{half}" for name in "ABCD"], values)
        propagate = _table(contents, a, b, c, d)
        generate = _table(contents & 0xF, a, b, 0, 0)
        outputs.append(propagate ^ carry)
        carry = carry if propagate else generate
    return [*outputs, carry]


def reset_level(cell, values):
    """Level at which the reset of a flip-flop arrives inside."""
    (level,) = levels(cell, ["LSR"], values)
    return level ^ (cell["parameters"]["LSRMUX"] == "INV")


def _table(contents, a, b, c, d):
    return contents >> (a | b << 1 | c << 2 | d << 3) & 1


def _cell(kind, parameters, inputs, outputs):
    return {
        "type": kind,
        "parameters": parameters,
        "attributes": {},
        "port_directions": {
            **dict.fromkeys(inputs, "input"),
            **dict.fromkeys(outputs, "output"),
        },
        "connections": {name: [bit] for name, bit in {**inputs, **outputs}.items()},
    }
