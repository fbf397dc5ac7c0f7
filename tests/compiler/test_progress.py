import io

import pytest
from rich.console import Console

from mxhw.compiler import progress
from mxhw.compiler.progress import (
    LineProgress,
    LiveProgress,
    SilentProgress,
    StatusProgress,
    make_progress,
)

STEPS = [("plan", "think"), ("rtl", "write [it]"), ("simulate", "run it")]


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"),
    [
        (True, False, LiveProgress),
        (False, False, LineProgress),
        (True, True, SilentProgress),
        (False, True, SilentProgress),
    ],
)
def test_the_display_fits_the_console(terminal, quiet, kind):
    assert type(make_progress(console(terminal), quiet=quiet)) is kind


def test_lines(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    output = console(False)
    with LineProgress(output) as shown:
        shown.plan(STEPS)
        shown.finish("plan", 2.0, reused=True)
        shown.begin("rtl")
        for seconds, text, done in (
            (1.0, "a", 1),  # Too soon after the begin.
            (1.5, "b", 2),
            (3.0, "b", 3),  # The same again.
            (3.0, "c", 4),
            (10.5, "c", 5),  # The same, but long ago.
        ):
            now[0] += seconds
            shown.update(text, done, 9)
        shown.finish("rtl", 19.0, reused=False)
    assert output.file.getvalue().splitlines() == [
        "plan: unchanged",
        "rtl: write [it]",
        "  b (2 of 9)",
        "  c (4 of 9)",
        "  c (5 of 9)",
        "rtl: done in 19.0 s",
    ]


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_status_is_for_terminals(terminal, quiet, shown):
    output = console(terminal)
    with StatusProgress(output, quiet=quiet) as progress:
        progress.update("lowering the decode step")
        if shown:
            progress._status._live.refresh()
    assert ("lowering the decode step" in output.file.getvalue()) == shown
    if not shown:
        assert output.file.getvalue() == ""


def test_live_table():
    output = console(True)
    with LiveProgress(output) as shown:
        shown.plan(STEPS)
        shown.begin("plan")
        shown.finish("plan", 2.0, reused=False)
        shown.begin("rtl")
        shown.update("Verilog [x]", 3, 4)
    last = output.file.getvalue().split("\x1b[2K")[-1]
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    assert "plan" in output.file.getvalue()
    assert any("rtl" in line and "Verilog [x] 3/4" in line for line in lines)


def test_silence():
    with SilentProgress() as shown:
        shown.plan(STEPS)
        shown.begin("plan")
        shown.update("x", 1, 2)
        shown.finish("plan", 1.0, reused=False)
