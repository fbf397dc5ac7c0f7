"""Perplexity of the bundled model in number formats: the scenario's figures make sense."""

import json

import arith_accuracy
from click.testing import CliRunner


def test_wider_formats_cost_less(tmp_path):
    file = tmp_path / "figures.json"
    result = CliRunner().invoke(arith_accuracy.main, ["--stories", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert set(figures) == {"float32", *arith_accuracy.FORMATS}
    assert figures["float32"]["ratio"] == 1
    ratios = [figures[name]["ratio"] for name in ("mxint8", "mxint6", "mxint5", "mxint4")]
    assert 0.97 < ratios[0] < 1.03
    assert ratios == sorted(ratios)
