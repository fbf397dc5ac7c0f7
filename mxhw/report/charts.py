"""Numbers and places of the page's charts; the templates draw them as SVG."""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mxhw.compiler.units import UNIT_TITLES
from mxhw.report.graph import Repetition

__all__ = [
    "Curve",
    "NodeCycles",
    "critical_path",
    "cycle_shares",
    "cycles_curve",
    "error_chart",
    "floorplan_paths",
    "gantt_rows",
    "layer_spans",
    "node_cycles",
    "round_ticks",
    "unit_rows",
]


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


@dataclasses.dataclass
class NodeCycles:
    """Cycles of a token that belong to a node: multiplying, and making the engine wait."""

    multiply: int = 0
    wait: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.multiply + self.wait


def node_cycles(timeline: Mapping[str, Any]) -> dict[str, NodeCycles]:
    """Cycles by node; their sum is the token's."""
    result: dict[str, NodeCycles] = defaultdict(NodeCycles)
    for segment in timeline.get("critical", ()):
        cycles = segment["end"] - segment["start"]
        if segment["unit"] == "engine":
            result[segment["node"]].multiply += cycles
        else:
            result[segment["node"]].wait += cycles
    return dict(result)


def cycle_shares(timeline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cycles by unit, the largest first, with the offset of their part of one bar."""
    counts: Counter[str] = Counter()
    for segment in timeline.get("critical", ()):
        counts[segment["unit"]] += segment["end"] - segment["start"]
    total = sum(counts.values())
    shares, offset = [], 0.0
    for unit, cycles in counts.most_common():
        share = cycles / total
        title = "multiplying" if unit == "engine" else UNIT_TITLES.get(unit, unit)
        shares.append(
            {"unit": unit, "title": title, "cycles": cycles, "share": share, "offset": offset}
        )
        offset += share
    return shares


def gantt_rows(timeline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the timeline: what the token waits for, then each unit's spans."""
    spans: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for span in (*timeline.get("words", ()), *timeline.get("results", ())):
        spans[span["unit"]].append(span)
    rows = [{"unit": "token", "title": "token", "spans": timeline.get("critical", ())}]
    order = list(UNIT_TITLES)
    for unit in sorted(spans, key=lambda name: order.index(name) if name in order else len(order)):
        rows.append({"unit": unit, "title": UNIT_TITLES.get(unit, unit), "spans": spans[unit]})
    return rows


def layer_spans(
    timeline: Mapping[str, Any], names: Sequence[str], repetition: Repetition
) -> list[tuple[int, int]]:
    """First cycle and end of each occurrence of the repeated nodes."""
    numbers = {name: index for index, name in enumerate(names)}
    spans: dict[int, list[int]] = defaultdict(list)
    for segment in timeline.get("critical", ()):
        index = numbers[segment["node"]] - repetition.start
        if repetition.count > 1 and 0 <= index < repetition.length * repetition.count:
            spans[index // repetition.length] += [segment["start"], segment["end"]]
    return [(min(ends), max(ends)) for _, ends in sorted(spans.items())]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line over two axes, in a picture of a width and a height.

    Members
    -------
    width, height : float
        Of the picture, axes included.
    left, bottom : float
        Where the axes are.
    path : str
    points : list of (float, float, Any, Any)
        Place, and the values there.
    x_ticks, y_ticks : list of (float, float)
        Place and value.
    """

    width: float
    height: float
    left: float
    bottom: float
    path: str
    points: list[tuple[float, float, Any, Any]]
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, float]]


def cycles_curve(by_position: Mapping[str, int]) -> Curve | None:
    """Cycles of a token over the positions that it sees, as the simulation counted them."""
    pairs = sorted((int(position) + 1, cycles) for position, cycles in by_position.items())
    if len(pairs) < 2:
        return None
    width, height, left, bottom, right, top = 460.0, 220.0, 48.0, 190.0, 448.0, 14.0
    last = pairs[-1][0]
    high = max(cycles for _, cycles in pairs) * 1.05

    def x_of(value: float) -> float:
        return left + (right - left) * value / last

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * value / high

    points = [(x_of(x), y_of(y), x, y) for x, y in pairs]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in points)
    x_ticks = [(x_of(value), value) for value in round_ticks(0, last, 4)]
    y_ticks = [(y_of(value), value) for value in round_ticks(0, high, 5)]
    return Curve(width, height, left, bottom, path, points, x_ticks, y_ticks)


def error_chart(
    names: Sequence[str], errors: Mapping[str, Any], repetition: Repetition | None
) -> dict[str, Any] | None:
    """Error of every node in the graph's order: what has come together, what the node adds."""
    nodes = errors.get("nodes", {})
    if not nodes:
        return None
    width, height, left, bottom, right, top = 1000.0, 240.0, 52.0, 214.0, 992.0, 12.0
    high = max(node["error"] for node in nodes.values()) * 1.08 or 1.0
    step = (right - left) / len(names)
    bars = []
    for index, name in enumerate(names):
        node = nodes.get(name)
        if node is None:
            continue

        def length(value: float | None) -> float:
            return (bottom - top) * (value or 0.0) / high

        bars.append(
            {
                "name": name,
                "x": left + step * index,
                "width": step,
                "error": length(node["error"]),
                "added": length(node["added"]),
                "text": node,
            }
        )
    ticks = [(bottom - (bottom - top) * tick / high, tick) for tick in round_ticks(0, high, 4)]
    layers = []
    if repetition is not None and repetition.count > 1:
        first, each = repetition.start, repetition.length
        edges = [left + step * (first + each * n) for n in range(repetition.count + 1)]
        layers = list(itertools.pairwise(edges))
    return {
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "bottom": bottom,
        "top": top,
        "bars": bars,
        "ticks": ticks,
        "layers": layers,
    }


def unit_rows(
    estimated: Mapping[str, Mapping[str, int]], measured: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Every unit's resources, estimate and measurement side by side, in the order of the titles."""
    order = [*UNIT_TITLES, *sorted({*estimated, *measured} - set(UNIT_TITLES))]
    return [
        {
            "unit": unit,
            "title": UNIT_TITLES.get(unit, unit),
            "estimated": estimated.get(unit, {}),
            "measured": measured.get(unit, {}),
        }
        for unit in order
        if any((*estimated.get(unit, {}).values(), *measured.get(unit, {}).values()))
    ]


def critical_path(timing: Mapping[str, Any], clock_mhz: float | None) -> dict[str, Any] | None:
    """The slowest path of the clock that the design runs on: its segments, one after the other."""
    fmax = timing.get("fmax", {})
    if not fmax or clock_mhz is None:
        return None
    clock = min(fmax, key=lambda name: abs(fmax[name]["constraint"] - clock_mhz))
    event = f"posedge {clock}"
    for path in timing.get("critical_paths", ()):
        if path["from"] == event and path["to"] == event:
            return {"clock": clock, **_segments(path["path"])}
    return None


def _segments(steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    segments, total = [], 0.0
    for step in steps:
        source, sink = step.get("from", {}), step.get("to", {})
        segments.append(
            {
                "kind": step["type"],
                "delay": step["delay"],
                "start": total,
                "name": step.get("net") or sink.get("cell", ""),
                "place": source.get("loc"),
                "end": sink.get("loc"),
            }
        )
        total += step["delay"]
    routing = sum(item["delay"] for item in segments if item["kind"] == "routing")
    levels = sum(item["kind"] == "logic" for item in segments)
    return {"segments": segments, "total": total, "routing": routing, "levels": levels}


def floorplan_paths(floorplan: Mapping[str, Any]) -> dict[str, Any] | None:
    """One path for each unit's tiles and one for its block RAMs and multipliers."""
    tiles = floorplan.get("tiles")
    if not tiles:
        return None
    paths: dict[int, list[str]] = defaultdict(list)
    cells: Counter[int] = Counter()
    for column, row, unit, count in tiles:
        paths[unit].append(f"M{column} {row}h1v1h-1z")
        cells[unit] += count
    for column, row, unit, kind in floorplan["blocks"]:
        size = 2 if kind.startswith(("DP", "PDP")) else 1
        paths[unit].append(f"M{column} {row}h{size}v1h-{size}z")
    order = list(UNIT_TITLES)
    units = floorplan["units"]
    shown = sorted(paths, key=lambda n: order.index(units[n]) if units[n] in order else len(order))
    return {
        "columns": floorplan["columns"],
        "rows": floorplan["rows"],
        "units": [
            {
                "unit": units[number],
                "title": UNIT_TITLES.get(units[number], units[number]),
                "path": "".join(paths[number]),
                "cells": cells[number],
            }
            for number in shown
        ],
    }
