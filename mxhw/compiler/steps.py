"""What each step of a build does: it reads the context, writes files and returns facts."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mxhw.compiler.context import REPORT_CONTEXT, Context, Settings
from mxhw.elaboration import fast_elaboration
from mxhw.errors import BuildError, StuckError, ToolError, UserError

if TYPE_CHECKING:
    from mxhw.compiler._tools import Progress as ToolProgress
    from mxhw.compiler.simulate import Script

# Modules that load PyTorch are imported where they are used: lists and help need none of them.

__all__ = [
    "bitstream",
    "errors",
    "golden",
    "place_and_route",
    "plan",
    "plan_facts",
    "rtl",
    "simulate",
    "synthesise",
]

_SEEDS = (1, 2, 3)
"""Seeds of the placer, tried in order until timing closes."""


def plan(context: Context, out: Path) -> dict[str, Any]:
    """Load, capture, lower, bind and estimate; needs no tools.

    Files: ``graph.txt`` and ``graph.json``, the lowered decode step.
    """
    from mxhw.compiler.describe import describe_graph

    context.progress.update("load the model")
    config = context.config
    context.progress.update("capture and lower")
    (out / "graph.txt").write_text(f"{context.decode.graph}\n", "utf-8")
    graph = describe_graph(context.decode, config.context)
    (out / "graph.json").write_text(json.dumps(graph, indent=1) + "\n", "utf-8")
    context.progress.update("bind and estimate")
    facts, refusal = plan_facts(context)
    if refusal is not None:
        raise UserError(refusal)
    return facts


def plan_facts(context: Context) -> tuple[dict[str, Any], str | None]:
    """What the plan says, and why the board cannot hold the design, if it cannot."""
    from mxhw.boards.catalog import check
    from mxhw.compiler.nonlinear import nonlinear_nodes

    settings, board, binding = context.settings, context.board, context.binding
    resources, cycles = context.estimate
    reasons = check(board, resources, needs_uart=settings.board)
    facts = {
        "model": settings.name,
        "parameters": sum(value.numel() for value in context.model.weights().values()),
        "architecture": context.config.to_dict(),
        "weight_format": settings.weight_format,
        "activation_format": settings.activation_format,
        "board": settings.target,
        "binding": binding.describe(),
        "multipliers": binding.multipliers,
        "resources": dataclasses.asdict(resources),
        "units": context.unit_estimates,
        "nonlinear": nonlinear_nodes(context.decode, context.options),
        "capacity": dataclasses.asdict(board.capacity),
        "context": REPORT_CONTEXT,
        "cycles_per_token": cycles,
        "macs_per_token": binding.useful_macs(REPORT_CONTEXT),
    }
    return facts, _too_big(settings, board.name, reasons) if reasons else None


def _too_big(settings: Settings, board: str, reasons: Sequence[str]) -> str:
    """Sentence about a board that cannot hold a model, and what would."""
    simulation = (
        f"; without a board, python -m mxhw.compiler.compare {settings.model} --layers 1 simulates "
        f"as many layers as you like"
        if settings.fingerprint
        else ""
    )
    return (
        f"Model {settings.name!r} in {settings.format} cannot be built for {board!r}: the board "
        f"{'; '.join(reasons)}; choose another board (--list-boards) or narrower weights "
        f"(--format mxfp4){simulation}"
    )


def golden(context: Context, out: Path) -> dict[str, Any]:
    """Perplexity of the float, ideal and golden models, and the golden model's greedy text.

    Files: ``script.json`` and ``logits.npz``, what the hardware must answer.
    """
    from mxhw.compiler import accuracy
    from mxhw.compiler.ideal import IdealModel
    from mxhw.compiler.simulate import write_script

    settings, progress = context.settings, context.progress
    script = write_script(
        context.decode,
        context.tokenizer.encode(settings.prompt),
        settings.tokens,
        context.config.context,
        lambda done, total: progress.update("golden text, tokens", done, total),
        bos=context.tokenizer.bos,
        eos=context.tokenizer.eos,
    )
    (out / "script.json").write_text(json.dumps(script.to_dict()), "utf-8")
    np.savez(
        out / "logits.npz",
        steps=np.array(list(script.logits)),
        logits=np.stack(list(script.logits.values())),
    )
    scores = accuracy.measure(
        accuracy.model_readings(
            context.model, IdealModel(context.model, context.options), context.prefill
        ),
        context.tokenizer,
        accuracy.validation_stories(),
        context.config.context,
        lambda done, total: progress.update("perplexity, windows", done, total),
    )
    cost = scores.difference("golden", "ideal")
    texts = [context.tokenizer.decode(ids) for ids in script.sequences()]
    return {
        "text": "\n\n".join(text.strip() for text in texts),
        "prompt": settings.prompt,
        "tokens": len(script.chosen),
        "perplexity": {name: scores.perplexity(name) for name in scores.nats},
        "bits_per_byte": {name: scores.bits_per_byte(name) for name in scores.nats},
        "perplexity_ratio": cost.ratio,
        "perplexity_ratio_error": cost.ratio * cost.standard_error,
        "scored_tokens": scores.tokens,
        "scored_bytes": scores.bytes,
    }


def errors(context: Context, out: Path) -> dict[str, Any]:
    """How far every node of the golden model is from float, over a text of its own."""
    from mxhw.compiler.float_reading import measure_node_errors

    text = _read_script(context).sequences()[0][:REPORT_CONTEXT]
    found = measure_node_errors(
        context.decode,
        text,
        lambda done, total: context.progress.update("error of every node, tokens", done, total),
    )
    return {
        "tokens": len(text),
        "nodes": {name: dataclasses.asdict(error) for name, error in found.items()},
    }


def _read_script(context: Context) -> "Script":
    """What the golden model wrote for the hardware."""
    from mxhw.compiler.simulate import Script

    with np.load(context.folder / "logits.npz") as arrays:
        logits = dict(zip(arrays["steps"].tolist(), arrays["logits"], strict=True))
    content = json.loads((context.folder / "script.json").read_text("utf-8"))
    return Script.from_dict(content, logits)


def rtl(context: Context, out: Path) -> dict[str, Any]:
    """Generate the hardware.

    Files: ``design.il`` (RTLIL), ``design.v`` (Verilog), ``weights.bin`` and ``weights.json``
    (the weight memory's words, little endian, and where each matrix lies).
    """
    from amaranth.back import rtlil

    from mxhw.sw.packing import pack_words

    binding = context.binding
    context.progress.update("RTLIL")
    design = out / "design.il"
    with fast_elaboration():
        design.write_text(rtlil.convert(context.component(), name="mxhw_decoder"), "utf-8")
    context.progress.update("Verilog")
    _write_verilog(design, out / "design.v")
    context.progress.update("packed weights")
    word_bits = binding.shape.rows * binding.weight_format.block_bits
    (out / "weights.bin").write_bytes(pack_words(binding.words, word_bits))
    layout = {
        "format": binding.weight_format.name,
        "rows": binding.shape.rows,
        "block_size": binding.shape.block_size,
        "word_bits": word_bits,
        "words": len(binding.words),
        "regions": [dataclasses.asdict(region) for region in binding.regions],
    }
    (out / "weights.json").write_text(json.dumps(layout, indent=2) + "\n", "utf-8")
    return {
        "rtlil_bytes": design.stat().st_size,
        "weight_words": len(binding.words),
        "weight_bits": len(binding.words) * word_bits,
    }


def _write_verilog(source: Path, target: Path) -> None:
    script, log = target.with_suffix(".ys"), target.with_suffix(".log")
    commands = (
        f'read_rtlil "{source}"',
        "proc -nomux -norom",
        "memory_collect",
        f'write_verilog -norename "{target}"',
    )
    script.write_text("\n".join(commands), "utf-8")
    # In a process of its own: Yosys writes to the standard output and may end its process.
    with log.open("wb") as stream:
        status = subprocess.run(
            [sys.executable, "-m", "mxhw.compiler._yosys", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    content = log.read_text("utf-8", "replace")
    if "No module named 'pyosys'" in content:
        raise ToolError("Verilog needs Yosys, of package 'pyosys' (pip install pyosys)")
    if status:
        last = (content.strip().splitlines() or ["no output"])[-1]
        raise BuildError(f"Yosys failed on the design: {last}")
    script.unlink()
    log.unlink()


def simulate(context: Context, out: Path) -> dict[str, Any]:
    """Let the compiled simulation of the hardware generate the text, and compare with golden.

    Files: ``timeline.json``, where the cycles of one token go.
    """
    from mxhw.compiler.simulate import replay
    from mxhw.compiler.timeline import measure_timeline, probe_names
    from mxhw.cosim.engine import make_engine

    progress = context.progress
    script = _read_script(context)
    component = context.component()
    step_shape = component.i_step.payload.shape()
    with make_engine(
        component,
        "cxxrtl",
        probes=probe_names(context.decode),
        on_progress=progress.update,
        inner_signals=False,
        prebuilt=context.finish_prebuild,
    ) as engine:
        result = replay(
            engine,
            step_shape,
            script,
            lambda done, total: progress.update("hardware text, tokens", done, total),
        )
        cycles, seen = result.cycles_per_token(REPORT_CONTEXT)
        text = next(tokens for tokens in script.sequences() if len(tokens) >= seen)[:seen]
        timeline = measure_timeline(
            engine,
            context.decode,
            context.binding,
            text,
            lambda done, total: progress.update("timeline of a token, tokens", done, total),
        )
    (out / "timeline.json").write_text(json.dumps(timeline.to_dict()) + "\n", "utf-8")
    return {
        "tokens": result.tokens,
        "logits": result.logits,
        "cycles": result.cycles,
        "cycles_per_token": cycles,
        "cycles_context": seen,
        "macs_per_token": context.binding.useful_macs(seen),
        "cycles_by_position": {str(key): value for key, value in result.cycles_by_position.items()},
    }


def _tool_progress(context: Context) -> "Callable[[ToolProgress], None]":
    def show(progress: "ToolProgress") -> None:
        context.progress.update(f"{progress.fraction:4.0%} {progress.message}")

    return show


def synthesise(context: Context, out: Path) -> dict[str, Any]:
    """Map the design, with the board's clock and serial port, to the device.

    Files: ``top.il``, ``top.json`` (netlist) and ``synthesis.log``; for a board whose tools are the
    vendor's, the complete project in ``project/``.
    """
    from mxhw.compiler import toolflow
    from mxhw.compiler.units import unit_of

    show = _tool_progress(context)
    context.progress.update("elaborate the design with the board's clock and serial port")
    clock = {"clock_mhz": context.clock_hz / 1e6}
    if not context.settings.bitstream:
        files, resources = toolflow.write_vendor_project(
            context.board_plan, out / "project", on_progress=show
        )
        measured = None if resources is None else dataclasses.asdict(resources)
        return {**clock, "project": [path.name for path in files], "resources": measured}
    with toolflow.being_prepared("nextpnr-ecp5"):
        result = toolflow.synthesise(context.board_plan, out, unit_of=unit_of, on_progress=show)
    units = {name: dataclasses.asdict(part) for name, part in (result.units or {}).items()}
    resources = dataclasses.asdict(result.resources)
    return {**clock, "cells": result.cells, "resources": resources, "units": units}


def place_and_route(context: Context, out: Path) -> dict[str, Any]:
    """Place and route until the clock closes.

    Files: ``top.config``, ``top.lpf``, ``timing.json``, ``floorplan.json`` (which unit lies where)
    and ``route.log``.
    """
    from mxhw.compiler import toolflow
    from mxhw.compiler.units import unit_of

    netlist = out / "top.json"
    os.link(context.folder / "top.json", netlist)
    show = _tool_progress(context)
    wanted = context.clock_hz / 1e6
    found: list[float] = []
    stuck: StuckError | None = None
    for seed in _SEEDS:
        try:
            result = toolflow.place_and_route(
                context.board_plan, out, seed=seed, unit_of=unit_of, on_progress=show
            )
        except StuckError as error:
            stuck = error
            continue
        # The board has an oscillator's clock too; the design runs on the PLL's.
        clock = min(result.timing.clocks, key=lambda clock: abs(clock.wanted_mhz - wanted))
        found.append(clock.achieved_mhz)
        if clock.met:
            netlist.unlink()
            if result.floorplan is not None:
                floorplan = dataclasses.asdict(result.floorplan)
                (out / "floorplan.json").write_text(json.dumps(floorplan) + "\n", "utf-8")
            return {
                "clock_mhz": wanted,
                "fmax_mhz": clock.achieved_mhz,
                "seed": seed,
                "resources": dataclasses.asdict(result.resources),
                "utilisation": result.utilisation,
            }
    if stuck is not None and not found:
        raise stuck
    raise BuildError(
        f"Timing does not close at {wanted:.2f} MHz: {len(found)} placements reach at most "
        f"{max(found):.2f} MHz; build for a lower clock (--clock {int(max(found))})"
    )


def bitstream(context: Context, out: Path) -> dict[str, Any]:
    """Pack the routed design into ``top.bit``, the file that configures the device."""
    from mxhw.compiler import toolflow

    configuration = out / "top.config"
    os.link(context.folder / "top.config", configuration)
    path = toolflow.pack_bitstream(context.board_plan, out, on_progress=_tool_progress(context))
    configuration.unlink()
    loader = context.board.loader
    command = f"openFPGALoader -b {loader} {path.name}" if loader else None
    return {"file": path.name, "bytes": path.stat().st_size, "load_with": command}
