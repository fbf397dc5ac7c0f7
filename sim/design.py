"""Measure the compiled design and print its figures beside those of others.

Usage: ``python sim/design.py --json FILE [--report build/NAME/report.json] [--no-pysim]``

Simulates the bundled model in native code, checks it against golden, and measures the speed of the
same design in Amaranth's simulator. What only a build can measure (clock, perplexity, resources,
times) comes from its ``report.json``. Times of simulation are processor time: both engines use one
thread, and the machine may have other work.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mxhw.compiler.context import Context, Settings
from mxhw.compiler.progress import Progress, make_progress
from mxhw.errors import MxhwError, UserError

TARGET_CLOCK_MHZ = 65.0
TARGET_TOKENS_PER_SECOND = 8_000
TARGET_SIMULATION_RATIO = 100
TARGET_PERPLEXITY_RATIO = 1.005
TARGET_CYCLES_ERROR = 0.05
TARGET_RESOURCE_ERROR = 0.20
TARGET_BUILD_SECONDS = 600
TARGET_TO_SIMULATION_SECONDS = 90

PEERS = {"llama2c_esp32s3": 19, "llama2c_server_core": 19_600}
"""Tokens a second of llama2.c with a 260 k-parameter model, quoted: on an ESP32-S3, and on one core
of a server (-Ofast, 256 tokens)."""

STEPS = (
    ("lower", "capture, lower and bind the model"),
    ("golden", "golden text"),
    ("native", "the design in native code"),
    ("pysim", "the same design in Amaranth's simulator"),
)
TO_SIMULATION = ("plan", "golden", "rtl", "simulate")
ROUTING = ("place-and-route", "bitstream")


def make_script(design: Context, tokens: int, progress: Progress) -> Any:
    """Golden's greedy text: what the hardware must answer."""
    from mxhw.compiler.simulate import write_script
    from mxhw.models.tokenizer import BOS

    return write_script(
        design.decode,
        [BOS],
        tokens,
        design.config.context,
        lambda done, total: progress.update("tokens", done, total),
    )


def measure_native(
    design: Context, script: Any, context: int, progress: Progress
) -> dict[str, Any]:
    """Speed of the native code over a script, and cycles of the token that sees the context."""
    from mxhw.compiler.simulate import replay
    from mxhw.cosim.engine import make_engine

    component = design.component()
    step_shape = component.i_step.payload.shape()
    times = [0.0]

    def on_token(done: int, total: int) -> None:
        times.append(time.perf_counter())
        progress.update("tokens", done, total)

    start = time.perf_counter()
    with make_engine(
        component, "cxxrtl", on_progress=progress.update, inner_signals=False
    ) as engine:
        times[0] = time.perf_counter()
        setup = times[0] - start
        start = time.process_time()
        result = replay(engine, step_shape, script, on_token)
        seconds = time.process_time() - start
    cycles, seen = result.cycles_per_token(context)
    return {
        "setup_s": round(setup, 2),
        "cycles": result.cycles,
        "cycles_per_s": round(result.cycles / seconds),
        "token_wall_s": round(times[-1] - times[-2], 3),
        "bit_exact_tokens": result.tokens,
        "cycles_per_token": cycles,
        "cycles_context": seen,
    }


def measure_pysim(
    design: Context, script: Any, warm_up: int, cycles: int, progress: Progress
) -> dict[str, Any]:
    """Speed of Amaranth's simulator over some cycles of the first token.

    It evaluates only what changes, so the cycles before the engine starts are left out.
    """
    from mxhw.cosim.engine import make_engine

    component = design.component()
    first = script.steps[0]
    step = component.i_step.payload.shape().const(
        {"token": first.token, "position": 0, "sample": 1, "logits": 0}
    )
    progress.update("elaborate")
    start = time.perf_counter()
    with make_engine(component, "pysim") as engine:
        setup = time.perf_counter() - start
        engine.put("i_step", [step.as_bits()])
        engine.collect("o_token", 1)
        for done in range(0, warm_up, 10):
            engine.run(min(10, warm_up - done))
            progress.update("cycles before the engine starts", done + 10, warm_up)
        start = time.process_time()
        for done in range(0, cycles, 10):
            engine.run(min(10, cycles - done))
            progress.update("cycles", done + 10, cycles)
        seconds = time.process_time() - start
    return {
        "setup_s": round(setup, 2),
        "cycles": cycles,
        "cycles_per_s": round(cycles / seconds, 2),
    }


def _error(estimated: float | None, measured: float | None) -> float | None:
    return round(estimated / measured - 1, 4) if estimated is not None and measured else None


def _pair(estimated: float | None, measured: float | None, limit: float) -> dict[str, Any]:
    error = _error(estimated, measured)
    return {"estimated": estimated, "measured": measured, "error": error, "limit": limit}


def collect(
    design: Context,
    native: Mapping[str, Any],
    pysim: Mapping[str, Any] | None,
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """All figures under stable names; null where neither this run nor the report measured one."""
    from mxhw.compiler.schedule import schedule_token

    clock = report.get("clock_mhz")
    cycles, seen = native["cycles_per_token"], native["cycles_context"]
    if report.get("tokens_per_second"):
        cycles, seen = report["cycles_per_token"], report["cycles_context"]
        speed, basis = report["tokens_per_second"], "routed clock"
    else:
        clock, basis = TARGET_CLOCK_MHZ, "target clock, not routed"
        speed = round(clock * 1e6 / cycles, 1)
    predicted = schedule_token(design.component(), seen - 1).cycles
    estimate = {"cycles": _pair(predicted, cycles, TARGET_CYCLES_ERROR)}
    resources = report.get("resources") or {}
    estimated = resources.get("estimated") or dataclasses.asdict(design.estimate[0])
    measured = resources.get("measured") or {}
    for name in ("luts", "flip_flops", "block_rams", "multipliers"):
        estimate[name] = _pair(estimated.get(name), measured.get(name), TARGET_RESOURCE_ERROR)
    seconds = report.get("wall_seconds") or {}
    macs = design.binding.useful_macs(seen)
    return {
        "model": design.settings.model,
        "board": design.settings.target,
        "format": design.settings.format,
        "bit_exact_tokens": native["bit_exact_tokens"],
        "tokens_per_second": {
            "ours": speed,
            "basis": basis,
            "clock_mhz": clock,
            "cycles_per_token": cycles,
            "cycles_context": seen,
            "target": TARGET_TOKENS_PER_SECOND,
            "peers": dict(PEERS),
        },
        "multiplier_utilisation": round(macs / (design.binding.multipliers * cycles), 4),
        "simulation": {
            "cxxrtl": {key: native[key] for key in ("setup_s", "cycles", "cycles_per_s")},
            "pysim": None if pysim is None else dict(pysim),
            "ratio": (
                None if pysim is None else round(native["cycles_per_s"] / pysim["cycles_per_s"], 1)
            ),
            "ratio_target": TARGET_SIMULATION_RATIO,
            "token_wall_s": native["token_wall_s"],
        },
        "perplexity": {
            **{name: (report.get("perplexity") or {}).get(name) for name in _READINGS},
            "ratio": report.get("perplexity_ratio"),
            "ratio_limit": TARGET_PERPLEXITY_RATIO,
        },
        "estimate": estimate,
        "build_seconds": {
            "steps": dict(seconds) or None,
            # A build that did not reach its bitstream has no total.
            "total": _total(seconds, lambda _: True) if "bitstream" in seconds else None,
            "total_limit": TARGET_BUILD_SECONDS,
            "to_simulation": _total(seconds, lambda name: name in TO_SIMULATION),
            "to_simulation_limit": TARGET_TO_SIMULATION_SECONDS,
            "without_place_and_route": _total(seconds, lambda name: name not in ROUTING),
        },
    }


_READINGS = ("float", "ideal", "golden")


def _total(seconds: Mapping[str, float], wanted: Callable[[str], bool]) -> float | None:
    chosen = [value for name, value in seconds.items() if wanted(name)]
    return round(sum(chosen), 1) if chosen else None


def _number(value: float | None, pattern: str = "{:,.0f}") -> str:
    return "needs --report" if value is None else pattern.format(value)


def _verdict(value: float | None, limit: float, *, at_least: bool) -> str:
    if value is None:
        return "-"
    return "met" if (value >= limit if at_least else value <= limit) else "missed"


def render(figures: Mapping[str, Any]) -> Table:
    """The figures for people."""
    table = Table(title="The compiled design", title_justify="left")
    table.add_column("figure")
    table.add_column("ours", justify="right")
    table.add_column("peer or limit")
    table.add_column("against it", justify="right")
    speed = figures["tokens_per_second"]
    table.add_row(
        f"tokens/s ({speed['basis']}: {speed['clock_mhz']:.1f} MHz, "
        f"{speed['cycles_per_token']:,} cycles at context {speed['cycles_context']})",
        _number(speed["ours"]),
        f"at least {speed['target']:,}",
        _verdict(speed["ours"], speed["target"], at_least=True),
    )
    for title, name in (
        ("llama2.c on an ESP32-S3", "llama2c_esp32s3"),
        ("llama2.c on one server core, -Ofast", "llama2c_server_core"),
    ):
        peer = speed["peers"][name]
        ratio = speed["ours"] / peer
        against = f"x{ratio:,.0f}" if ratio >= 10 else f"x{ratio:.2f}"
        table.add_row("", "", f"{peer:,} quoted: {title}", against)
    table.add_row("multipliers busy", f"{figures['multiplier_utilisation']:.1%}", "", "")
    table.add_section()
    simulation = figures["simulation"]
    pysim, ratio = simulation["pysim"], simulation["ratio"]
    table.add_row(
        "simulation, native code, cycles/s",
        f"{simulation['cxxrtl']['cycles_per_s']:,}",
        "not measured" if pysim is None else f"{pysim['cycles_per_s']:,.1f} pysim, this run",
        "-" if ratio is None else f"x{ratio:,.0f}",
    )
    table.add_row(
        "  ratio",
        "-" if ratio is None else f"{ratio:,.0f}",
        f"at least {simulation['ratio_target']}",
        _verdict(ratio, simulation["ratio_target"], at_least=True),
    )
    table.add_row("  a token, wall seconds", f"{simulation['token_wall_s']:.3f}", "", "")
    table.add_section()
    perplexity = figures["perplexity"]
    table.add_row(
        "perplexity, golden over ideal",
        _number(perplexity["ratio"], "{:.4f}"),
        f"at most {perplexity['ratio_limit']}",
        _verdict(perplexity["ratio"], perplexity["ratio_limit"], at_least=False),
    )
    for name, pair in figures["estimate"].items():
        if pair["estimated"] is None or pair["measured"] is None:
            continue
        error = pair["error"]
        table.add_row(
            f"estimate of {name.replace('_', ' ')}",
            _number(pair["estimated"]),
            f"{pair['measured']:,} measured, within {pair['limit']:.0%}",
            "-"
            if error is None
            else f"{error:+.1%}, {_verdict(abs(error), pair['limit'], at_least=False)}",
        )
    build = figures["build_seconds"]
    for title, name in (("build, seconds", "total"), ("  to simulation", "to_simulation")):
        limit = build[f"{name}_limit"]
        verdict = _verdict(build[name], limit, at_least=False)
        table.add_row(title, _number(build[name], "{:.0f}"), f"at most {limit}", verdict)
    return table


def read_report(path: Path | None) -> dict[str, Any]:
    """A build's report, or nothing."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Report {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"Report {path} is no report of a build")
    return content


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run everything."""
    report = read_report(arguments.report)
    with make_progress(console, quiet=False) as progress:
        progress.plan(STEPS if arguments.pysim else STEPS[:-1])

        def timed(name: str, function: Callable[..., Any], *rest: Any) -> Any:
            progress.begin(name)
            start = time.monotonic()
            result = function(*rest)
            progress.finish(name, time.monotonic() - start, reused=False)
            return result

        settings = Settings(arguments.model, arguments.board)
        design = Context(settings, Path(), progress)
        timed("lower", lambda: design.binding)
        script = timed("golden", make_script, design, arguments.context, progress)
        native = timed("native", measure_native, design, script, arguments.context, progress)
        pysim = None
        if arguments.pysim:
            cycles = (arguments.pysim_skip, arguments.pysim_cycles)
            pysim = timed("pysim", measure_pysim, design, script, *cycles, progress)
    return collect(design, native, pysim, report)


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--report", type=Path, help="report.json of a build of the same model")
    parser.add_argument("--model", default="llama", help="bundled model (default: llama)")
    parser.add_argument(
        "--board", default="ulx3s-85f", help="board that the design is for (default: ulx3s-85f)"
    )
    parser.add_argument(
        "--context", type=int, default=64, help="tokens to simulate; the last one is the figure"
    )
    parser.add_argument(
        "--no-pysim", dest="pysim", action="store_false", help="leave Amaranth's simulator out"
    )
    parser.add_argument("--pysim-skip", type=int, default=100, help="cycles before the measurement")
    parser.add_argument("--pysim-cycles", type=int, default=60, help="cycles that are measured")
    arguments = parser.parse_args()
    if min(arguments.context, arguments.pysim_cycles) < 1 or arguments.pysim_skip < 0:
        parser.error("counts of tokens and cycles must be positive")
    console = Console()
    try:
        figures = measure(arguments, console)
    except MxhwError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    console.print(render(figures))
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
