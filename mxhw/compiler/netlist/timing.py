"""How fast a placed netlist is, and how many cells it takes: the report of nextpnr."""

import json
from dataclasses import dataclass
from pathlib import Path

from mxhw.errors import BuildError

__all__ = ["ClockTiming", "CriticalPath", "PathSegment", "TimingReport", "read_route_report"]


@dataclass(frozen=True)
class ClockTiming:
    """A clock: the highest frequency that the routed design allows, and the one wanted."""

    name: str
    achieved_mhz: float
    wanted_mhz: float

    @property
    def met(self) -> bool:
        """The design is fast enough, but for the rounding of periods to picoseconds."""
        return self.achieved_mhz >= self.wanted_mhz * (1 - 1e-4)


@dataclass(frozen=True)
class PathSegment:
    """A step of a path: its kind (``logic``, ``routing``, ``setup``...), delay and cells."""

    kind: str
    delay_ns: float
    source: str
    sink: str


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path between two clock events."""

    source: str
    sink: str
    segments: tuple[PathSegment, ...]

    @property
    def delay_ns(self) -> float:
        """Delay of the whole path."""
        return sum(segment.delay_ns for segment in self.segments)

    @property
    def routing_ns(self) -> float:
        """Part of the delay that is in wires."""
        return sum(item.delay_ns for item in self.segments if item.kind == "routing")


@dataclass(frozen=True)
class TimingReport:
    """Timing of a routed design: its clocks, the slowest relative to its target first."""

    clocks: tuple[ClockTiming, ...]
    critical_paths: tuple[CriticalPath, ...]

    @property
    def met(self) -> bool:
        """All clocks are fast enough."""
        return all(clock.met for clock in self.clocks)


def read_route_report(report: Path) -> tuple[dict[str, tuple[int, int]], TimingReport]:
    """Return used and available cells by type, and the timing, from nextpnr's report.

    Raises
    ------
    BuildError
        If the file is no report of nextpnr.
    """
    try:
        with report.open(encoding="utf-8") as file:
            data = json.load(file)
        utilisation = {
            name: (item["used"], item["available"]) for name, item in data["utilization"].items()
        }
        clocks = [
            ClockTiming(_clock_name(name), item["achieved"], item["constraint"])
            for name, item in data["fmax"].items()
        ]
        paths = [
            CriticalPath(
                item["from"],
                item["to"],
                tuple(
                    PathSegment(
                        step["type"],
                        step["delay"],
                        _cell(step.get("from")),
                        _cell(step.get("to")),
                    )
                    for step in item["path"]
                ),
            )
            for item in data["critical_paths"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"Report '{report.name}' cannot be read: {error}") from error
    clocks.sort(key=lambda clock: clock.achieved_mhz / clock.wanted_mhz)
    return utilisation, TimingReport(tuple(clocks), tuple(paths))


def _clock_name(name: str) -> str:
    return name.removeprefix("$glbnet$")


def _cell(end: dict[str, str] | None) -> str:
    return f"{end['cell']}.{end['port']}" if end else ""
