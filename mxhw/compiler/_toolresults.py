"""Readers of what the tools write: netlists and nextpnr's report."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxhw.boards.catalog import Resources
from mxhw.errors import BuildError

__all__ = [
    "ClockTiming",
    "CriticalPath",
    "PathSegment",
    "TimingReport",
    "count_cells",
    "read_netlist",
    "read_route_report",
    "resources_of_cells",
    "resources_of_utilisation",
    "top_module",
]


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


def read_netlist(netlist: Path) -> dict[str, Any]:
    """Read a flat netlist of Yosys.

    Raises
    ------
    BuildError
        If the file is no netlist.
    """
    try:
        with netlist.open(encoding="utf-8") as file:
            document = json.load(file)
        top_module(document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BuildError(f"Netlist '{netlist.name}' cannot be read: {error}") from error
    return document


def top_module(document: dict[str, Any]) -> dict[str, Any]:
    """Return the top module of a netlist; LookupError if there is none."""
    for module in document["modules"].values():
        if int(str(module.get("attributes", {}).get("top", "0")), 2):
            return module
    raise LookupError("it has no top module")


def count_cells(module: dict[str, Any]) -> dict[str, int]:
    """Return how many cells of each type a module of a netlist has."""
    counts = Counter(cell["type"] for cell in module["cells"].values())
    counts.pop("$scopeinfo", None)
    return dict(sorted(counts.items()))


def resources_of_cells(cells: dict[str, int]) -> Resources:
    """Return what the cells of a netlist take on an ECP5 or a 7-series device."""

    def count(*names: str) -> int:
        return sum(cells.get(name, 0) for name in names)

    if any(name in cells for name in ("FDRE", "FDSE", "FDCE", "FDPE")):
        # A block RAM is counted in units of 36 kbit, distributed RAM in lookup tables.
        return Resources(
            luts=count("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "SRL16E", "SRLC32E")
            + 4 * count("RAM32M", "RAM64M")
            + 2 * count("RAM64X1D", "RAM32X1D"),
            flip_flops=count("FDRE", "FDSE", "FDCE", "FDPE"),
            block_rams=count("RAMB36E1") + (count("RAMB18E1") + 1) // 2,
            multipliers=count("DSP48E1"),
        )
    # A carry cell takes two lookup tables; a distributed RAM four, and two for its write port.
    return Resources(
        luts=count("LUT4") + 2 * count("CCU2C") + 6 * count("TRELLIS_DPR16X4"),
        flip_flops=count("TRELLIS_FF"),
        block_rams=count("DP16KD", "PDPW16KD"),
        multipliers=count("MULT18X18D"),
    )


def resources_of_utilisation(utilisation: dict[str, tuple[int, int]]) -> Resources:
    """Return what a placed ECP5 design takes."""

    def used(name: str) -> int:
        return utilisation.get(name, (0, 0))[0]

    return Resources(
        luts=used("TRELLIS_COMB"),
        flip_flops=used("TRELLIS_FF"),
        block_rams=used("DP16KD"),
        multipliers=used("MULT18X18D"),
    )


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
