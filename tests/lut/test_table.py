"""Table files and their rules; the metric."""

import dataclasses
import json

import numpy as np
import pytest

from mxhw.errors import UserError
from mxhw.lut import FUNCTIONS, PwlTable, fit, mean_squared_errors, read_table, write_table
from mxhw.lut.metric import largest_error, table_values

SMALL = PwlTable(
    function="gelu",
    range=(-4.0, 4.0),
    scales=(0, 1),
    breakpoint_mode="round",
    breakpoints=(-3, 5),
    breakpoint_frac=2,
    slopes=(0, 32, 64),
    slope_frac=6,
    intercepts=(0, -4, 1),
    intercept_frac=(6, 5, 0),
    bits=8,
    mean_squared_error=0.5,
)


def test_values_and_ties_by_hand():
    # At the scale 1: -0.75 becomes -1, 1.25 becomes 1. At 1/2: -1.5 becomes -2, 2.5 becomes 2.
    assert table_values(SMALL, np.array([-2, -1, 0, 1]), 0).tolist() == [0, -0.625, -0.125, 2]
    assert table_values(SMALL, np.array([-3, -2, 1, 2]), 1).tolist() == [0, -0.625, 0.125, 2]
    exact = dataclasses.replace(SMALL, breakpoint_mode="ceil")
    assert table_values(exact, np.array([-1, 0, 1, 2]), 0).tolist() == [0, -0.125, 0.375, 3]


def test_metric_by_hand():
    x = np.arange(-4, 5)
    want = np.mean((table_values(SMALL, x, 0) - FUNCTIONS["gelu"](x)) ** 2)
    first, second = mean_squared_errors(SMALL)
    assert first == want
    x = np.arange(-8, 9)
    assert second == np.mean((table_values(SMALL, x, 1) - FUNCTIONS["gelu"](x / 2)) ** 2)
    assert largest_error(SMALL) > second**0.5


@pytest.mark.parametrize("storage", ["published", "per-entry"])
def test_file_round_trip(tmp_path, storage):
    table = fit("gelu", entries=8, storage=storage)
    path = tmp_path / "gelu.json"
    write_table(table, path)
    assert read_table(path) == table
    content = json.loads(path.read_text())
    assert list(content) == [field.name for field in dataclasses.fields(PwlTable)]
    assert content["settings"]["method"] == "optimal"
    assert isinstance(content["slope_frac"], list) == (storage == "per-entry")


def test_integers_in_a_file_may_stand_for_numbers(tmp_path):
    content = json.loads(json.dumps(dataclasses.asdict(SMALL)))
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**content, "range": [-4, 4], "mean_squared_error": 0}))
    assert read_table(path) == dataclasses.replace(SMALL, mean_squared_error=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": ""}, "Function of a table must be a name, not ''"),
        ({"range": [4, -4]}, "Range of a table must be two ascending numbers, not (4.0, -4.0)"),
        ({"range": [1]}, "Range of a table must be two ascending numbers, not (1.0,)"),
        ({"scales": []}, "Scales of a table must be exponents of 0 to 62, not []"),
        ({"scales": 3}, "Scales of a table must be integers, not 3"),
        ({"breakpoint_mode": "up"}, "Breakpoint mode of a table must be round or ceil, not 'up'"),
        ({"breakpoints": [0.5, 1]}, "Breakpoints of a table must be integers, not (0.5, 1)"),
        ({"breakpoints": [5, -3]}, "Breakpoints of a table must ascend"),
        ({"breakpoints": [-3, 1 << 60]}, "Breakpoints of a table must be below 2**53"),
        ({"breakpoints": [1]}, "Table of 3 slopes must have 2 breakpoints, not 1"),
        ({"intercepts": [1]}, "Table of 3 slopes must have 3 intercepts, not 1"),
        ({"slopes": [0, 128, 64]}, "Slopes of a table must fit 8 bits, not be 128"),
        ({"intercepts": [0, 0, -129]}, "Intercepts of a table must fit 8 bits, not be -129"),
        ({"slopes": [True, 1, 2]}, "Slopes of a table must be integers, not (True, 1, 2)"),
        ({"slopes": []}, "Entries of a table must be between 1 and 256, not 0"),
        ({"slope_frac": 63}, "Slope fraction bits of a table must be at most 62, not 63"),
        ({"slope_frac": "6"}, "Slope fraction bits of a table must be integers, not '6'"),
        (
            {"intercept_frac": [1, 2]},
            "Intercept fraction bits of a table must be one number or 3, not 2",
        ),
        ({"bits": 33}, "Bits of a table must be between 2 and 32, not 33"),
        ({"bits": "8"}, "Bits of a table must be an integer, not '8'"),
        (
            {"mean_squared_error": -1.0},
            "Mean squared error of a table must be a finite number of at least 0, not -1.0",
        ),
        ({"settings": []}, "Settings of a table must be a dictionary, not ()"),
    ],
)
def test_wrong_members(tmp_path, change, message):
    content = json.loads(json.dumps(dataclasses.asdict(SMALL)))
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert str(caught.value) == f"Table '{path}' is wrong: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must be a JSON object, not [1]"),
        ("{", "must be JSON: Expecting property name"),
        ('{"function": 1}', "lacks range, scales"),
        ("[" * 100_000, "must be JSON: "),
        (" " * (1 << 21), "must be at most 1048576 bytes, not 2097152"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"Table '{path}' {message}")


def test_unknown_members_and_missing_files(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**dataclasses.asdict(SMALL), "speed": 1}))
    with pytest.raises(UserError, match="has unknown speed$"):
        read_table(path)
    with pytest.raises(UserError, match="cannot be read: No such file or directory$"):
        read_table(tmp_path / "none.json")
