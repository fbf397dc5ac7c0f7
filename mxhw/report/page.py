"""The page that shows a build: facts in, one self-contained HTML file out."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from mxhw.compiler.units import UNIT_TITLES
from mxhw.report import charts
from mxhw.report.gather import Facts
from mxhw.report.graph import Picture, draw_graph

__all__ = ["PAGE_FILE", "render"]

PAGE_FILE = "report.html"

_RESOURCES = {
    "luts": "lookup tables",
    "flip_flops": "flip-flops",
    "block_rams": "block RAMs",
    "multipliers": "multipliers",
}
_SHAPE = {
    "vocabulary_size": "vocabulary",
    "dim": "width",
    "hidden": "feed-forward width",
    "layers": "layers",
    "heads": "query heads",
    "kv_heads": "key/value heads",
    "head_size": "head size",
    "context": "context",
    "rope_theta": "base of the rotary angles",
    "norm_epsilon": "norm epsilon",
    "tied": "head is the embedding",
    "qkv_bias": "biases on q, k and v",
}
_QUOTE_LETTERS = 420
_THIN = "\N{NO-BREAK SPACE}"


def _thousands(value: float | str) -> str:
    return value if isinstance(value, str) else f"{round(value):,}"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}{_THIN}%"


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.1f}{_THIN}%"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mxhw.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thousands=_thousands, percent=_percent, signed_percent=_signed_percent
    )
    return environment


def _kind(format: str, narrow: str) -> str:
    """Which colour an edge has."""
    if format == "token":
        return "token"
    if format.startswith("fixed"):
        return "fixed"
    return "narrow" if format == narrow else "wide"


def _label(node: Mapping[str, Any]) -> str:
    """Where in the model a node comes from, as short as a box needs it."""
    origin = re.sub(r"^.*?\d+\.", "", node["origin"]) or node["source"] or node["name"]
    return origin if len(origin) <= 22 else origin.rsplit(".", 1)[-1]


def _nodes(facts: Facts, narrow: str) -> list[dict[str, Any]]:
    """Every node with its cycles and errors; what was not measured is None."""
    cycles = charts.node_cycles(facts.timeline)
    errors = facts.errors.get("nodes", {})
    result = []
    for node in facts.graph.get("nodes", ()):
        spent = cycles.get(node["name"], charts.NodeCycles()) if cycles else None
        error = errors.get(node["name"], {})
        result.append(
            {
                "code": "",
                **node,
                "label": _label(node),
                "kind": _kind(node["format"], narrow),
                "multiply": spent and spent.multiply,
                "wait": spent and spent.wait,
                "error": error.get("error"),
                "added": error.get("added"),
                "largest": error.get("largest"),
            }
        )
    return result


def _operators(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cycles by operator, the largest first."""
    rows: dict[str, dict[str, Any]] = {}
    for node in nodes:
        row = rows.setdefault(
            node["operator"],
            {"operator": node["operator"], "nodes": 0, "multiply": 0, "wait": 0},
        )
        row["nodes"] += 1
        row["multiply"] += node["multiply"] or 0
        row["wait"] += node["wait"] or 0
    total = sum(row["multiply"] + row["wait"] for row in rows.values())
    for row in rows.values():
        row["total"] = row["multiply"] + row["wait"]
        row["share"] = row["total"] / total if total else 0.0
    return sorted((row for row in rows.values() if row["total"]), key=lambda row: -row["total"])


def _functions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Nonlinear nodes by operator: what its unit looks up, and the shares of all its nodes."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["operator"], []).append(row)

    def over(group: list[Mapping[str, Any]], key: str, combine: Callable[[Any], Any]) -> Any:
        values = [row[key] for row in group]
        return None if None in values else combine(values)

    return [
        {
            **group[0],
            "nodes": len(group),
            "title": UNIT_TITLES.get(group[0]["unit"], group[0]["unit"]),
            "error": over(group, "error", max),
            "error_share": over(group, "error_share", max),
            "error_share_of_all": over(group, "error_share_of_all", sum),
        }
        for group in groups.values()
    ]


def _quote(text: str | None) -> str:
    """The beginning of the text, cut at the end of a word."""
    if not text:
        return ""
    first = text.split("\n\n")[0]
    if len(first) <= _QUOTE_LETTERS:
        return first
    return first[:_QUOTE_LETTERS].rsplit(" ", 1)[0] + " …"


def _figures(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures at the head of the page: those that were measured."""
    figures: list[dict[str, str]] = []

    def add(value: str, text: str) -> None:
        figures.append({"value": value, "text": text})

    if report["tokens_per_second"]:
        text = f"tokens/s at {report['clock_mhz']:.0f} MHz and context {report['cycles_context']}"
        add(_thousands(report["tokens_per_second"]), text)
    if report["cycles_per_token"]:
        text = f"cycles a token, {_thousands(report['cycles_estimated'])} predicted"
        add(_thousands(report["cycles_per_token"]), text)
    elif report["cycles_estimated"]:
        add(_thousands(report["cycles_estimated"]), "cycles a token, predicted")
    if report["multiplier_utilisation"]:
        add(_percent(report["multiplier_utilisation"]), "of the multipliers busy")
    if report["bit_exact_tokens"]:
        text = "tokens generated by the hardware, all equal to golden’s"
        add(_thousands(report["bit_exact_tokens"]), text)
    if report["perplexity_ratio"]:
        text = "perplexity of the hardware over the ideal model"
        add(f"× {report['perplexity_ratio']:.4f}", text)
    resources = report["resources"]
    used = resources["measured"] or resources["estimated"]
    if used and resources["capacity"]:
        share = used["luts"] / resources["capacity"]["luts"]
        kind = "" if resources["measured"] else ", estimated"
        text = (
            f"of the lookup tables, {used['block_rams']} of "
            f"{resources['capacity']['block_rams']} block RAMs{kind}"
        )
        add(_percent(share, 0), text)
    return figures


def _meters(resources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Used, estimated and available of each kind."""
    estimated, capacity = resources["estimated"], resources["capacity"]
    if not estimated or not capacity:
        return []
    measured = resources["measured"] or {}
    return [
        {
            "title": title,
            "estimated": estimated[key],
            "measured": measured.get(key),
            "shown": measured.get(key, estimated[key]),
            "capacity": capacity[key],
        }
        for key, title in _RESOURCES.items()
        if capacity[key]
    ]


def _summary(facts: Facts) -> str:
    """One sentence about what was built."""
    plan = facts.step("plan")
    shape = plan.get("architecture")
    if shape is None:
        return "Nothing was built yet."
    return (
        f"{plan['parameters']:,} parameters in {shape['layers']} layers of width {shape['dim']}, "
        f"bound to one matrix engine of {plan['multipliers']} multipliers for {plan['board']}."
    )


def _resource_text(resources: Mapping[str, Any], routed: bool) -> str:
    if resources["measured"] is None:
        return "Estimated before any tool ran; nothing was synthesised."
    how = "placed and routed" if routed else "synthesised"
    return f"Used of the device, as {how}. The mark is the estimate."


def _accuracy(facts: Facts) -> dict[str, Any]:
    golden = facts.step("golden")
    return {
        "readings": [
            ("float", "float32, as trained"),
            ("ideal", "matrix operands rounded to their formats, all else float32"),
            ("golden", "the hardware’s integers"),
        ],
        "ratio_error": golden.get("perplexity_ratio_error"),
        "scored_tokens": golden.get("scored_tokens"),
        "prompt": golden.get("prompt", ""),
        "error_tokens": facts.errors.get("tokens"),
    }


def _time(facts: Facts, names: Sequence[str], picture: Picture | None) -> dict[str, Any]:
    timeline = facts.timeline
    layers = charts.layer_spans(timeline, names, picture.repetition) if picture else []
    return {
        "gantt": charts.gantt_rows(timeline) if timeline else [],
        "timeline_cycles": timeline.get("cycles", 0),
        "timeline_context": timeline.get("context"),
        "shares": charts.cycle_shares(timeline) if timeline else [],
        "layers": layers,
        "curve": charts.cycles_curve(facts.step("simulate").get("cycles_by_position", {})),
    }


def _hardware(facts: Facts) -> dict[str, Any]:
    plan, routing = facts.step("plan"), facts.step("place-and-route")
    measured = facts.step("synthesise").get("units") or {}
    units = charts.unit_rows(plan.get("units", {}), measured)
    luts = [part["luts"] for row in units for part in (row["estimated"], row["measured"]) if part]
    return {
        "meters": _meters(facts.report["resources"]),
        "resource_text": _resource_text(facts.report["resources"], bool(routing)),
        "units": units,
        "has_units": bool(measured),
        "largest_luts": max(luts, default=1) or 1,
        "floorplan": charts.floorplan_paths(facts.floorplan),
        "path": charts.critical_path(facts.timing, facts.report["clock_mhz"]),
        "macs": facts.step("simulate").get("macs_per_token", 0),
        "multipliers": plan.get("multipliers", 0),
        "plan_context": plan.get("context"),
        "binding": plan.get("binding"),
        "architecture": [
            (_SHAPE.get(key, key.replace("_", " ")), _plain(value))
            for key, value in plan.get("architecture", {}).items()
        ],
    }


def _script_data(page: Mapping[str, Any]) -> dict[str, Any]:
    """What the script reads: nodes by number, boxes and units."""
    picture: Picture | None = page["picture"]
    fields = (
        "name",
        "operator",
        "origin",
        "source",
        "code",
        "format",
        "shape",
        "weight",
        "units",
        "inputs",
        "multiply",
        "wait",
        "error",
        "added",
        "largest",
    )
    return {
        "nodes": [{field: node[field] for field in fields} for node in page["nodes"]],
        "boxes": {str(n): box.members for n, box in picture.boxes.items()} if picture else {},
        "measures": [key for key, _ in page["measures"]],
        "units": {
            row["unit"]: {"estimated": row["estimated"], "measured": row["measured"]}
            for row in page["units"]
        },
        "titles": UNIT_TITLES,
        "cycles": page["timeline_cycles"],
    }


def _page(facts: Facts) -> dict[str, Any]:
    report = facts.report
    narrow = facts.step("plan").get("activation_format", "")
    nodes = _nodes(facts, narrow)
    picture = draw_graph(nodes) if nodes else None
    measures = []
    if facts.timeline:
        measures.append(("cycles", "cycles"))
    if facts.errors.get("nodes"):
        measures += [("error", "error"), ("added", "added error")]
    names = [node["name"] for node in nodes]
    wide = [node["format"] for node in nodes if node["kind"] == "wide"]
    page = {
        "summary": _summary(facts),
        "figures": _figures(report),
        "quote": _quote(report["text"]),
        "nodes": nodes,
        "picture": picture,
        "measures": measures,
        "narrow": narrow,
        "wide": wide[0] if wide else "wide",
        "operators": _operators(nodes),
        "unit_titles": {**UNIT_TITLES, "engine": "multiplying", "operands": "loading"},
        "slowest": max(report["wall_seconds"].values(), default=1.0) or 1.0,
        "functions": _functions(report.get("nonlinear") or ()),
        "error_chart": charts.error_chart(
            names, facts.errors, picture.repetition if picture else None
        ),
        **_accuracy(facts),
        **_time(facts, names, picture),
        **_hardware(facts),
    }
    page["script_data"] = _script_data(page)
    return page


def render(facts: Facts) -> str:
    """Write the page.

    The file needs nothing besides itself: no network, no other file. Whatever comes from the build
    is escaped.

    Parameters
    ----------
    facts : Facts

    Returns
    -------
    str
        HTML.
    """
    template = _environment().get_template("report.html")
    return template.render(report=facts.report, page=_page(facts)).lstrip()
