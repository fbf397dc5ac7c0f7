"""The report of a build: its schema, its file and its summary.

``docs/reference/report.md`` describes every field. The names are stable: programs read them.
"""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mxhw import __version__

__all__ = [
    "FIELDS",
    "REPORT_FILE",
    "make_report",
    "nonlinear_shares",
    "peak_memory_mb",
    "render_summary",
    "to_json",
]

REPORT_FILE = "report.json"

FIELDS = (
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
"""Every field of the report, in order; one that no step has measured yet is null."""

_RESOURCE_TITLES = {
    "luts": "lookup tables",
    "flip_flops": "flip-flops",
    "block_rams": "block RAMs",
    "multipliers": "multipliers",
}


def to_json(value: Mapping[str, Any]) -> str:
    """Text of a JSON file."""
    return json.dumps(value, indent=2) + "\n"


def peak_memory_mb() -> float:
    """Largest memory that this process, or one of the tools that it ran, has held."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(user).ru_maxrss for user in users) / unit, 1)


def nonlinear_shares(
    nodes: Sequence[Mapping[str, Any]],
    errors: Mapping[str, Mapping[str, float | None]],
    units: Mapping[str, Mapping[str, int]],
) -> list[dict[str, Any]]:
    """Nonlinear nodes with what was measured: their shares of error and of area.

    Parameters
    ----------
    nodes : sequence of mapping
        Of :func:`mxhw.compiler.nonlinear.nonlinear_nodes`.
    errors : mapping of str to mapping
        For every node of the graph ``added`` and ``function``, as in
        :class:`~mxhw.compiler.float_reading.NodeError`; empty if they were not measured.
    units : mapping of str to mapping
        Resources of all units, as synthesised or else as estimated.

    Returns
    -------
    list of dict
        The same with ``error``: root mean square, relative, of the function over a text;
        ``error_share``: power of that error over the power of all that the node adds;
        ``error_share_of_all``: the same over what all nodes add; ``luts`` of the unit, which all
        nodes of an operator share, and ``area_share``: of all units'.
    """
    power = sum((error["added"] or 0.0) ** 2 for error in errors.values())
    luts = sum(unit["luts"] for unit in units.values())
    rows = []
    for node in nodes:
        error = errors.get(node["node"])
        function = error["function"] if error else None
        added = error["added"] if error else None
        unit = units.get(node["unit"])
        rows.append(
            {
                **node,
                "error": function,
                "error_share": None if function is None or not added else function**2 / added**2,
                "error_share_of_all": None if function is None else function**2 / power,
                "luts": unit and unit["luts"],
                "area_share": unit and unit["luts"] / luts,
            }
        )
    return rows


def make_report(
    settings: Any,
    results: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
    memory_mb: float,
    stopped: str | None = None,
) -> dict[str, Any]:
    """Collect what the steps found.

    Parameters
    ----------
    settings : Settings
    results : mapping of str to mapping
        Facts by step; steps that did not run are absent.
    seconds : mapping of str to float
        Wall time by step.
    memory_mb : float
        Largest memory of any step.
    stopped : str, optional
        Why the build ended early.
    """
    plan = results.get("plan", {})
    golden = results.get("golden", {})
    simulation = results.get("simulate", {})
    synthesis = results.get("synthesise", {})
    routing = results.get("place-and-route", {})
    clock = routing.get("clock_mhz")
    cycles = simulation.get("cycles_per_token")
    speed = clock * 1e6 / cycles if clock and cycles else None
    macs = simulation.get("macs_per_token")
    utilisation = macs / (plan["multipliers"] * cycles) if macs and cycles and plan else None
    report = {
        "version": __version__,
        "model": settings.name,
        "format": settings.format,
        "board": settings.target if settings.board else None,
        "text": golden.get("text"),
        "bit_exact_tokens": simulation.get("tokens"),
        "bit_exact_logits": simulation.get("logits"),
        "perplexity": golden.get("perplexity"),
        "bits_per_byte": golden.get("bits_per_byte"),
        "perplexity_ratio": golden.get("perplexity_ratio"),
        "resources": {
            "estimated": plan.get("resources"),
            "measured": routing.get("resources") or synthesis.get("resources"),
            "capacity": plan.get("capacity"),
        },
        "nonlinear": nonlinear_shares(
            plan["nonlinear"],
            results.get("errors", {}).get("nodes", {}),
            synthesis.get("units") or plan["units"],
        )
        if "nonlinear" in plan
        else None,
        "fmax_mhz": routing.get("fmax_mhz"),
        "clock_mhz": clock,
        "cycles_per_token": cycles,
        "cycles_estimated": plan.get("cycles_per_token"),
        "cycles_context": simulation.get("cycles_context"),
        "tokens_per_second": None if speed is None else round(speed, 1),
        "multiplier_utilisation": None if utilisation is None else round(utilisation, 4),
        "wall_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_memory_mb": memory_mb,
        "stopped": stopped,
    }
    return {name: report[name] for name in FIELDS}


def _percent(value: float, capacity: float | None) -> str:
    return f"{value:,} ({100 * value / capacity:.0f} %)" if capacity else f"{value:,}"


def resource_table(resources: Mapping[str, Any]) -> Table:
    """Estimated and measured resources, with their share of the device."""
    table = Table(box=None, pad_edge=False)
    table.add_column("resource")
    for title in ("estimated", "measured", "device"):
        table.add_column(title, justify="right")
    capacity = resources.get("capacity") or {}
    estimated, measured = resources.get("estimated") or {}, resources.get("measured") or {}
    for name, title in _RESOURCE_TITLES.items():
        table.add_row(
            title,
            *(
                _percent(part[name], capacity.get(name)) if name in part else "-"
                for part in (estimated, measured)
            ),
            f"{capacity[name]:,}" if name in capacity else "-",
        )
    return table


def render_summary(report: Mapping[str, Any], where: str, files: Sequence[str]) -> RenderableType:
    """The end of a build for people.

    Parameters
    ----------
    report : mapping
    where : str
        The build folder.
    files : sequence of str
        Files in it.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    tokens, logits = report["bit_exact_tokens"], report["bit_exact_logits"]
    if report["text"] is not None:
        table.add_row("text", Text(report["text"]))
    if tokens is not None:
        table.add_row(
            "bit-exact", f"{tokens} tokens and {logits} vectors of logits, hardware against golden"
        )
    if report["perplexity"] is not None:
        values = report["perplexity"]
        table.add_row(
            "perplexity",
            f"float {values['float']:.4f}, ideal {values['ideal']:.4f}, "
            f"golden {values['golden']:.4f} (x{report['perplexity_ratio']:.4f} of ideal)",
        )
    table.add_row("cycles a token", _cycles_line(report))
    if report["clock_mhz"] is not None:
        table.add_row(
            "clock", f"{report['clock_mhz']:.2f} MHz (routed for {report['fmax_mhz']:.2f} MHz)"
        )
    if report["tokens_per_second"] is not None:
        table.add_row("tokens/s", f"{report['tokens_per_second']:,.0f}")
    if report["multiplier_utilisation"] is not None:
        table.add_row("multipliers busy", f"{report['multiplier_utilisation']:.1%}")
    steps = ", ".join(f"{name} {value:.1f}" for name, value in report["wall_seconds"].items())
    total = sum(report["wall_seconds"].values())
    table.add_row("seconds", f"{steps}; {total:.1f} in all")
    table.add_row("memory", f"{report['peak_memory_mb']:,.0f} MB at most")
    parts: list[RenderableType] = ["", table]
    if report["resources"]["estimated"] is not None:
        parts += ["", resource_table(report["resources"])]
    return Group(*parts, "", Text(f"{where}: {', '.join(files)}"))


def _cycles_line(report: Mapping[str, Any]) -> str:
    measured, estimated = report["cycles_per_token"], report["cycles_estimated"]
    if measured is None:
        return "not simulated" if estimated is None else f"{estimated:,} estimated"
    line = f"{measured:,} at context {report['cycles_context']}"
    return line if estimated is None else f"{line} ({estimated:,} estimated)"
