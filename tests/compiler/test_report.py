import io
from pathlib import Path

import pytest
from rich.console import Console

from mxhw import __version__
from mxhw.compiler.context import Settings
from mxhw.compiler.report import FIELDS, make_report, peak_memory_mb, render_summary

SETTINGS = Settings("llama", "ulx3s-85f", board=True)
RESULTS = {
    "plan": {
        "multipliers": 128,
        "resources": {"luts": 30000, "flip_flops": 9000, "block_rams": 190, "multipliers": 70},
        "capacity": {"luts": 83640, "flip_flops": 83640, "block_rams": 208, "multipliers": 156},
        "cycles_per_token": 3300,
    },
    "golden": {
        "text": "Once upon a time [there] was a cat.",
        "perplexity": {"float": 6.0, "ideal": 6.01, "golden": 6.02},
        "bits_per_byte": {"float": 0.95, "ideal": 0.951, "golden": 0.952},
        "perplexity_ratio": 6.02 / 6.01,
    },
    "simulate": {
        "tokens": 256,
        "logits": 17,
        "cycles_per_token": 3400,
        "cycles_context": 64,
        "macs_per_token": 299008,
    },
    "synthesise": {"resources": {"luts": 31000}},
    "place-and-route": {
        "fmax_mhz": 71.3,
        "clock_mhz": 70.0,
        "resources": {"luts": 31200, "flip_flops": 9100, "block_rams": 188, "multipliers": 70},
    },
}
SECONDS = {"plan": 2.123, "simulate": 30.0}


def make(**changes):
    return make_report(SETTINGS, {**RESULTS, **changes}, SECONDS, 812.5)


def test_names_are_stable():
    assert FIELDS == (
        "version",
        "model",
        "format",
        "board",
        "text",
        "bit_exact_tokens",
        "bit_exact_logits",
        "perplexity",
        "bits_per_byte",
        "perplexity_ratio",
        "resources",
        "nonlinear",
        "fmax_mhz",
        "clock_mhz",
        "cycles_per_token",
        "cycles_estimated",
        "cycles_context",
        "tokens_per_second",
        "multiplier_utilisation",
        "wall_seconds",
        "peak_memory_mb",
        "stopped",
    )
    report = make()
    assert tuple(report) == FIELDS
    assert list(report["perplexity"]) == ["float", "ideal", "golden"]
    assert list(report["resources"]) == ["estimated", "measured", "capacity"]


def test_every_field_is_documented():
    page = Path(__file__).parents[2] / "docs" / "reference" / "report.md"
    text = page.read_text("utf-8")
    assert [name for name in FIELDS if f"`{name}`" not in text] == []


def test_values():
    report = make()
    assert report["version"] == __version__
    assert report["board"] == "ulx3s-85f"
    assert report["format"] == "mxint8"
    assert report["bit_exact_tokens"] == 256
    assert report["bit_exact_logits"] == 17
    assert report["tokens_per_second"] == pytest.approx(70e6 / 3400, abs=0.1)
    assert report["multiplier_utilisation"] == pytest.approx(299008 / 128 / 3400, abs=1e-4)
    assert report["resources"]["measured"]["luts"] == 31200
    assert report["wall_seconds"] == {"plan": 2.12, "simulate": 30.0}
    assert report["peak_memory_mb"] == 812.5
    assert report["stopped"] is None


def test_what_was_not_measured_is_null():
    report = make_report(Settings("llama", "ulx3s-85f"), {}, {}, 0.0, "step plan: no")
    assert tuple(report) == FIELDS
    empty = [name for name, value in report.items() if value is None]
    assert empty == [
        "board",
        "text",
        "bit_exact_tokens",
        "bit_exact_logits",
        "perplexity",
        "bits_per_byte",
        "perplexity_ratio",
        "nonlinear",
        "fmax_mhz",
        "clock_mhz",
        "cycles_per_token",
        "cycles_estimated",
        "cycles_context",
        "tokens_per_second",
        "multiplier_utilisation",
    ]
    assert report["resources"] == {"estimated": None, "measured": None, "capacity": None}
    assert report["stopped"] == "step plan: no"


def test_synthesis_figures_stand_in_until_routing():
    report = make(**{"place-and-route": {}})
    assert report["resources"]["measured"] == {"luts": 31000}


def test_both_formats_are_named_if_they_differ():
    settings = Settings("llama", "ulx3s-85f", weight_format="mxfp4_e2m1")
    assert make_report(settings, {}, {}, 0.0)["format"] == "mxfp4_e2m1/mxint8"


def rendered(report) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    console.print(render_summary(report, "build/x", ["design.il", "report.json"]))
    return stream.getvalue()


def test_summary():
    lines = [line.rstrip() for line in rendered(make()).splitlines()]
    assert lines == [
        "",
        "text              Once upon a time [there] was a cat.",
        "bit-exact         256 tokens and 17 vectors of logits, hardware against golden",
        "perplexity        float 6.0000, ideal 6.0100, golden 6.0200 (x1.0017 of ideal)",
        "cycles a token    3,400 at context 64 (3,300 estimated)",
        "clock             70.00 MHz (routed for 71.30 MHz)",
        "tokens/s          20,588",
        "multipliers busy  68.7%",
        "seconds           plan 2.1, simulate 30.0; 32.1 in all",
        "memory            812 MB at most",
        "",
        "resource           estimated       measured  device",
        "lookup tables  30,000 (36 %)  31,200 (37 %)  83,640",
        "flip-flops      9,000 (11 %)   9,100 (11 %)  83,640",
        "block RAMs        190 (91 %)     188 (90 %)     208",
        "multipliers        70 (45 %)      70 (45 %)     156",
        "",
        "build/x: design.il, report.json",
    ]


def test_summary_of_a_build_that_stopped_early():
    report = make_report(SETTINGS, {"plan": RESULTS["plan"]}, {"plan": 2.0}, 300.0)
    text = rendered(report)
    assert "cycles a token  3,300 estimated" in text
    assert "tokens/s" not in text
    assert "perplexity" not in text


def test_peak_memory_is_plausible():
    assert 20 < peak_memory_mb() < 64_000
