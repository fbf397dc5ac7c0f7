"""How far a build is: a live table on a terminal, plain lines elsewhere, or nothing."""

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = [
    "LineProgress",
    "LiveProgress",
    "Progress",
    "SilentProgress",
    "StatusProgress",
    "make_progress",
]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_NEW_LINES = 2.0


class Progress(Protocol):
    """What a build tells while it runs; use it as a context manager."""

    def __enter__(self) -> "Progress":
        """Begin to show."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Leave the display as it stands."""
        ...

    def plan(self, steps: Sequence[tuple[str, str]]) -> None:
        """Announce the steps to come, each with its summary."""
        ...

    def begin(self, step: str) -> None:
        """A step begins."""
        ...

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Say what the running step does, and how much of it is done."""
        ...

    def finish(self, step: str, seconds: float, *, reused: bool) -> None:
        """A step has ended, or its result of an earlier build was reused."""
        ...


class SilentProgress:
    """Shows nothing."""

    def __enter__(self) -> "SilentProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def plan(self, steps: Sequence[tuple[str, str]]) -> None:
        """Show nothing."""

    def begin(self, step: str) -> None:
        """Show nothing."""

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Show nothing."""

    def finish(self, step: str, seconds: float, *, reused: bool) -> None:
        """Show nothing."""


class StatusProgress(SilentProgress):
    """What is done now, on a line of a terminal that goes away at the end; nothing elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._status = console.status("") if console.is_terminal and not quiet else None

    def __enter__(self) -> "StatusProgress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Show the text."""
        if self._status is not None:
            self._status.update(text)


class LineProgress(SilentProgress):
    """One line when a step begins, one when it ends, and one now and then between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0
        self._text = ""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def plan(self, steps: Sequence[tuple[str, str]]) -> None:
        """Remember the summaries."""
        self._summaries = dict(steps)

    def begin(self, step: str) -> None:
        """Print the step's name and summary."""
        self._print(f"{step}: {self._summaries.get(step, '')}")
        self._last = time.monotonic()
        self._text = ""

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Print what is done unless something was printed a moment ago."""
        now = time.monotonic()
        known = text == self._text
        if now - self._last < (_SECONDS_BETWEEN_LINES if known else _SECONDS_BETWEEN_NEW_LINES):
            return
        self._last, self._text = now, text
        share = f" ({done} of {total})" if total else ""
        self._print(f"  {text}{share}")

    def finish(self, step: str, seconds: float, *, reused: bool) -> None:
        """Print the time taken."""
        self._print(f"{step}: unchanged" if reused else f"{step}: done in {seconds:.1f} s")


class LiveProgress(SilentProgress):
    """A table of the steps that redraws itself."""

    def __init__(self, console: Console) -> None:
        self._steps: list[tuple[str, str]] = []
        self._ended: dict[str, tuple[float, bool]] = {}
        self._running: str | None = None
        self._started = 0.0
        self._detail = ""
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def plan(self, steps: Sequence[tuple[str, str]]) -> None:
        """Show the steps as waiting."""
        self._steps = list(steps)

    def begin(self, step: str) -> None:
        """Mark the step as running."""
        self._running, self._started, self._detail = step, time.monotonic(), ""

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Show the text beside the running step."""
        self._detail = f"{text} {done}/{total}" if total else text

    def finish(self, step: str, seconds: float, *, reused: bool) -> None:
        """Mark the step as done."""
        self._ended[step] = (seconds, reused)
        self._running = None

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, summary in self._steps:
            if name in self._ended:
                seconds, reused = self._ended[name]
                taken = "unchanged" if reused else f"{seconds:.1f} s"
                table.add_row(Text("done", "green"), name, Text(taken), Text(summary, "dim"))
            elif name == self._running:
                taken = f"{time.monotonic() - self._started:.0f} s"
                table.add_row(Text("now", "yellow"), name, taken, Text(self._detail or summary))
            else:
                table.add_row("", Text(name, "dim"), "", Text(summary, "dim"))
        return table


def make_progress(console: Console, *, quiet: bool) -> Progress:
    """The display that fits the console."""
    if quiet:
        return SilentProgress()
    return LiveProgress(console) if console.is_terminal else LineProgress(console)
