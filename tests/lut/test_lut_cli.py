"""The command line of the fitter."""

import subprocess
import sys
from pathlib import Path

import pytest

from mxhw.lut import __main__ as cli
from mxhw.lut import read_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def test_fit_and_plot(run, tmp_path):
    path = tmp_path / "gelu.json"
    status, out, err = run("fit", "gelu", "--entries", 8, "--out", path)
    assert (status, err) == (0, "")
    assert "mean squared error 3.355e-05" in out
    assert f"written to {path}" in out.replace("\n", "")
    table = read_table(path)
    assert table.settings == {"method": "optimal", "storage": "published", "tails": "fixed"}
    assert run("plot", path)[0] == 0
    assert (tmp_path / "gelu.png").read_bytes().startswith(b"\x89PNG")
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        assert run("plot", path, "--out", picture)[0] == 0
    first, second = (picture.read_text() for picture in pictures)
    assert first == second
    assert "gelu, 8 entries of 8 bits, optimal: mean squared error 3.36e-05" in first


def test_options_reach_the_methods(run, tmp_path):
    path = tmp_path / "table.json"
    options = {
        "genetic": ("--generations", 5, "--fitness", "quantised", "--seed", 7),
        "nn-lut": ("--steps", 50, "--seed", 1),
        "optimal": ("--storage", "per-entry", "--tails", "free", "--breakpoint-mode", "ceil"),
    }
    for method, chosen in options.items():
        arguments = ("fit", "tanh", "--method", method, "--scales", "0-3", "--quiet", *chosen)
        assert run(*arguments, "--out", path) == (0, "", "")
        table = read_table(path)
        assert table.settings["method"] == method
        assert table.scales == (0, 1, 2, 3)
        if method == "genetic":
            assert (table.settings["generations"], table.settings["seed"]) == (5, 7)
        if method == "optimal":
            assert isinstance(table.slope_frac, tuple)


def test_any_callable(run, tmp_path):
    path = tmp_path / "sinc.json"
    arguments = ("fit", "numpy:sinc", "--range", -2, 2, "--scales", "4,5", "--out", path)
    assert run(*arguments)[0] == 0
    assert read_table(path).scales == (4, 5)
    status, _, err = run("plot", path)
    assert status == 1
    assert "Function 'sinc' of the table is not a known one" in err
    assert run("plot", path, "--function", "numpy:sinc")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "tan:gent"), "Function 'tan:gent' cannot be imported: No module named 'tan'"),
        (("fit", "math:pi"), "Function 'math:pi' must be callable, not float"),
        (("fit", "numpy:sinc"), "Range of a callable must be given"),
        (("fit", "gelu", "--entries", "1"), "Entries of a fit must be between 2 and 64, not 1"),
        (("fit", "gelu", "--scales", "6-x"), "Scales must be like 0-6 or 0,2,5, not '6-x'"),
        (("fit", "gelu", "--range", "4", "-4"), "Range of a function must ascend, not 4 to -4"),
        (
            ("fit", "gelu", "--seed", "1"),
            "Setting of method 'optimal' must be one of storage, tails, not 'seed'",
        ),
        (
            ("fit", "gelu", "--generations", "1"),
            "Generations are a setting of the method 'genetic'",
        ),
        (("fit",), "Missing argument 'FUNCTION'. (--help lists the options)"),
        (
            ("fit", "gelu", "--out", "no/such/folder/x.json"),
            "Table 'no/such/folder/x.json' cannot be written: No such file or directory",
        ),
        (("plot", "none.json"), "Table 'none.json' cannot be read: No such file or directory"),
    ],
)
def test_errors_are_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err == f"mxhw: error: {message}\n"


def test_pictures_have_known_types(run, tmp_path):
    path = tmp_path / "t.json"
    assert run("fit", "exp", "--out", path)[0] == 0
    status, _, err = run("plot", path, "--out", tmp_path / "t.bmp")
    assert status == 1
    assert err == f"mxhw: error: Picture '{tmp_path}/t.bmp' must end in .png, .svg, .pdf\n"


def test_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mxhw.lut.genetic", None)
    monkeypatch.setitem(sys.modules, "deap", None)
    status, _, err = run("fit", "gelu", "--method", "genetic")
    assert status == 3
    assert "pip install 'mxhw[lut]'" in err


def test_help_loads_neither_torch_nor_numba():
    code = (
        "import sys; from mxhw.lut.__main__ import main; main(['fit', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numba', 'matplotlib')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "--entries" in result.stdout
