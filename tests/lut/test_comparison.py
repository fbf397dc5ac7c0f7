# amaranth: UnusedElaboratable=no
"""The printed comparison with published tables and units."""

import functools
import io

import pytest
from lut import UNITS, area_table, ecp5_cells, error_table, reduced_table, without_queue
from rich.console import Console


def printed(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_area_table_shows_what_is_saved():
    keys = ("comb", "ff", "dsp", "comb_without_dsp", "gates")
    rows = {
        name: dict.fromkeys(keys, size)
        for name, size in (("INT8", 82), ("INT16", 180), ("INT32", 410), ("FP32", 1640))
    }
    text = printed(area_table(rows))
    assert text.count("80.0%") == len(keys)
    assert text.count("95.0%") == len(keys)
    # What the published areas say.
    assert "81.7%" in text
    assert "81.3%" in text


def test_error_table_has_published_figures_beside():
    row = {"optimal": 3.36e-5, "GQA-LUT": 9.4e-5, "optimal_seconds": 0.125, "genetic_seconds": 1}
    text = printed(error_table({("gelu", 8): row}))
    assert "3.4e-05" in text
    assert "9.4e-05" in text
    assert "0.12" in text


def test_reduced_table_has_expected_figures_beside():
    text = printed(reduced_table({"exp2": [1e-3, 2e-3, 3e-3]}))
    assert [part in text for part in ("2.0e-03", "3.3e-04", "32 entries")] == [True] * 3


@pytest.mark.synth
@pytest.mark.parametrize(
    ("peer", "dsp", "saved"),
    [
        ("INT32", False, 0.817),
        ("FP32", False, 0.813),
        ("FP32", True, 0.813),
        # The four multipliers of 32 bits are no lookup tables: the rest alone saves less.
        ("INT32", True, 0.795),
    ],
)
def test_8_bit_unit_saves_what_is_published(peer, dsp, saved):
    measure = functools.partial(ecp5_cells, dsp=dsp)
    small, large = (without_queue(UNITS[name], measure)["comb"] for name in ("INT8", peer))
    assert 1 - small / large > saved
