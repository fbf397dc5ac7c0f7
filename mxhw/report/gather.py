"""What a build left in its folder, as far as it got: the facts that the page shows."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxhw.errors import UserError

__all__ = ["Facts", "gather", "read_folder"]

_FILES = {
    "graph": ("plan", "graph.json"),
    "timeline": ("simulate", "timeline.json"),
    "timing": ("place-and-route", "timing.json"),
    "floorplan": ("place-and-route", "floorplan.json"),
}
"""Files with more than a step's facts, and the step that leaves them."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Everything that the page is made from; what no step has left is empty.

    Members
    -------
    report : mapping
        Content of ``report.json``.
    steps : mapping of str to mapping
        Facts of each step that has ended.
    graph, timeline, timing, floorplan : mapping
        Content of the file of that name.
    """

    report: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]
    graph: Mapping[str, Any]
    timeline: Mapping[str, Any]
    timing: Mapping[str, Any]
    floorplan: Mapping[str, Any]

    @property
    def errors(self) -> Mapping[str, Any]:
        """Error of every node."""
        return self.step("errors")

    def step(self, name: str) -> Mapping[str, Any]:
        """Facts of a step, empty if it has not ended."""
        return self.steps.get(name, {})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise UserError(f"File {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"File {path} must hold a JSON object, not a {type(content).__name__}")
    return content


def gather(
    folder: Path, report: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]
) -> Facts:
    """Collect the files of the steps that have ended; older files of other steps are left out."""
    files = {
        field: _read(folder / name) if step in steps else {}
        for field, (step, name) in _FILES.items()
    }
    return Facts(report=report, steps=steps, **files)


def read_folder(folder: Path) -> Facts:
    """Collect what a finished build left in a folder.

    Raises
    ------
    UserError
        If there is no ``report.json``, or a file cannot be read.
    """
    # The pipeline makes reports.
    from mxhw.compiler.pipeline import STEPS

    report = _read(folder / "report.json")
    if not report:
        raise UserError(f"Folder {folder} holds no report.json: build first (python -m mxhw.build)")
    # Steps that ran or were reused have a wall time; a step's older result is not shown.
    ended = [step.name for step in STEPS if step.name in report.get("wall_seconds", {})]
    return gather(folder, report, {name: _read(folder / f"{name}.json") for name in ended})
