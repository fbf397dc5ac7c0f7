"""A small build to show: real facts of the tiny design, tools' results made up to their form."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from mxhw.compiler.context import Settings
from mxhw.compiler.describe import describe_graph
from mxhw.compiler.estimate import estimate
from mxhw.compiler.float_reading import measure_node_errors
from mxhw.compiler.nonlinear import nonlinear_nodes
from mxhw.compiler.pipeline import STEPS
from mxhw.compiler.report import make_report
from mxhw.compiler.timeline import measure_timeline
from mxhw.compiler.workspace import MARKER
from tests import tiny

TOKENS = [3, 17, 5, 40, 41]
SETTINGS = Settings("llama", "ulx3s-85f", board=True, bitstream=True)


@functools.cache
def _measured() -> dict[str, Any]:
    lowered, binding = tiny.lowered(), tiny.binding()
    sim = tiny.simulation()
    sim.reset()
    timeline = measure_timeline(sim, lowered, binding, TOKENS)
    errors = measure_node_errors(lowered, TOKENS)
    return {
        "graph": describe_graph(lowered, tiny.CONFIG.context),
        "errors": {
            "tokens": len(TOKENS),
            "nodes": {name: dataclasses.asdict(error) for name, error in errors.items()},
        },
        "timeline": timeline.to_dict(),
    }


def facts(text: str = "Once upon a <time> & a half") -> dict[str, dict[str, Any]]:
    """Facts of every step."""
    binding = tiny.binding()
    units = {
        name: {"luts": round(u.lut), "flip_flops": round(u.ff), "block_rams": u.block_ram}
        | {"multipliers": u.dsp}
        for name, u in estimate(binding).units.items()
    }
    total = {key: sum(unit[key] for unit in units.values()) for key in units["engine"]}
    capacity = dict.fromkeys(total, 90_000)
    cycles = _measured()["timeline"]["cycles"]
    return {
        "plan": {
            "parameters": 40_000,
            "architecture": tiny.CONFIG.to_dict(),
            "weight_format": "mxint8",
            "activation_format": "mxint8",
            "board": "ulx3s-85f",
            "binding": binding.describe(),
            "multipliers": binding.multipliers,
            "resources": total,
            "units": units,
            "capacity": capacity,
            "context": 64,
            "cycles_per_token": cycles + 9,
            "nonlinear": nonlinear_nodes(tiny.lowered(), tiny.OPTIONS),
        },
        "golden": {
            "text": text,
            "prompt": "Once",
            "perplexity": {"float": 6.1, "ideal": 6.2, "golden": 6.21},
            "bits_per_byte": {"float": 0.91, "ideal": 0.92, "golden": 0.921},
            "perplexity_ratio": 1.0016,
            "perplexity_ratio_error": 0.0004,
            "scored_tokens": 1000,
        },
        "rtl": {},
        "simulate": {
            "tokens": 6,
            "logits": 1,
            "cycles_per_token": cycles,
            "cycles_context": len(TOKENS),
            "macs_per_token": binding.useful_macs(len(TOKENS)),
            "cycles_by_position": {"2": cycles - 4, "3": cycles - 1, "4": cycles},
        },
        "errors": _measured()["errors"],
        "synthesise": {"resources": total, "units": units},
        "place-and-route": {"clock_mhz": 65.0, "fmax_mhz": 66.5, "resources": total},
        "bitstream": {},
    }


_TIMING = {
    "fmax": {"$glbnet$clk": {"achieved": 66.5, "constraint": 65.0}},
    "critical_paths": [
        {
            "from": "posedge $glbnet$clk",
            "to": "posedge $glbnet$clk",
            "path": [
                {"type": "clk-to-q", "delay": 0.5, "to": {"cell": "ff$1", "loc": [3, 4]}},
                {"type": "routing", "delay": 2.0, "net": "design.decoder.norm.total"},
                {"type": "logic", "delay": 0.25, "to": {"cell": "lut$2", "loc": [5, 4]}},
                {"type": "setup", "delay": 0.0, "to": {"cell": "ff$3"}},
            ],
        }
    ],
}
_FLOORPLAN = {
    "columns": 12,
    "rows": 8,
    "units": ["engine", "norm"],
    "tiles": [[2, 3, 0, 8], [3, 3, 1, 5], [4, 6, 1, 2]],
    "blocks": [[5, 3, 0, "MULT18X18D"], [7, 3, 0, "DP16KD"]],
}


def write_folder(path: Path, upto: str = "bitstream", **changes: Any) -> Path:
    """A build folder that ended after a step."""
    path.mkdir(exist_ok=True)
    (path / MARKER).write_text("")
    names = [step.name for step in STEPS]
    names = names[: names.index(upto) + 1]
    results = {name: content for name, content in facts(**changes).items() if name in names}
    seconds = {name: 1.5 + number for number, name in enumerate(names)}
    report = make_report(SETTINGS, results, seconds, 700.0)
    files = {f"{name}.json": content for name, content in results.items()}
    files["report.json"] = report
    # Files of later steps lie there from an earlier build and must not be shown.
    files |= {f"{name}.json": content for name, content in _measured().items()}
    files |= {"timing.json": _TIMING, "floorplan.json": _FLOORPLAN}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path
