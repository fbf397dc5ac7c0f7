"""What each step of a build does, and what they share."""

import dataclasses
import difflib
import functools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mxhw.compiler.progress import Progress
from mxhw.errors import BuildError, ToolError, UserError
from mxhw.formats import BlockFormat, list_formats, parse_format

if TYPE_CHECKING:
    from torch import fx

    from mxhw.compiler.binding import FoldedBinding
    from mxhw.models.llama import Llama, LlamaConfig
    from mxhw.models.tokenizer import Tokenizer

# Modules that load PyTorch are imported where they are used: lists and help need none of them.

__all__ = [
    "REPORT_CONTEXT",
    "Context",
    "Settings",
    "bitstream",
    "golden",
    "parse_formats",
    "place_and_route",
    "plan",
    "rtl",
    "simulate",
    "synthesise",
    "unknown_name",
]

REPORT_CONTEXT = 64
"""Positions that a token sees in the figures of speed."""

_LARGEST_ENGINE_BITS = 18


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Sentence about a name that does not exist, with the nearest ones or else all."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if near:
        return f"{what} {name!r} does not exist; did you mean {' or '.join(near)}?"
    return f"{what} {name!r} does not exist; choose one of {', '.join(known)}"


def parse_formats(text: str) -> tuple[BlockFormat, BlockFormat]:
    """Weight and activation format of ``W`` or ``W/A``.

    A single name sets the weights, and the activations too if it is MXINT of at most 8 bits; else
    they are MXINT8 blocks of the same size.

    Raises
    ------
    UserError
        If a name is not a format, or the hardware cannot take it.
    """
    names = text.split("/")
    if len(names) > 2:
        raise UserError(f"Format must be W or W/A (weights/activations), not {text!r}")
    weights, *rest = [_parse_format(name) for name in names]
    narrow = weights.element.is_integer and weights.element.bits <= 8
    default = weights if narrow else BlockFormat.mxint(8, weights.block_size)
    activations = rest[0] if rest else default
    element = weights.element
    engine_bits = max(element.significand_bits, element.fraction_bits + 2)
    if element.bits > 8 or engine_bits > _LARGEST_ENGINE_BITS:
        raise UserError(
            f"Weights in {weights.name} do not fit the multipliers; hardware takes mxint2 to "
            f"mxint8, mxfp4, mxfp6_e2m3 and mxfp6_e3m2"
        )
    if not activations.element.is_integer or activations.element.bits > 8:
        raise UserError(
            f"Activations must be mxint2 to mxint8, not {activations.name}; "
            f"write --format {weights.name}/mxint8"
        )
    if weights.block_size != activations.block_size:
        raise UserError(
            f"Weights and activations must have blocks of one size, not {weights.block_size} and "
            f"{activations.block_size}"
        )
    return weights, activations


def _parse_format(name: str) -> BlockFormat:
    try:
        return parse_format(name)
    except UserError as error:
        near = difflib.get_close_matches(name.strip().lower(), list_formats(), n=2, cutoff=0.6)
        if not near:
            raise
        raise UserError(unknown_name("Format", name, list_formats())) from error


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user asked for.

    Members
    -------
    model : str
        Name of a bundled model.
    target : str
        Board whose budget the design is made for.
    board : bool
        Whether the design is also built for that board.
    weight_format, activation_format : str
    tokens : int
        Tokens to generate.
    prompt : str
    """

    model: str
    target: str
    board: bool = False
    weight_format: str = "mxint8"
    activation_format: str = "mxint8"
    tokens: int = 256
    prompt: str = "Once upon a time"

    @property
    def format(self) -> str:
        """Both formats as ``--format`` takes them."""
        if self.weight_format == self.activation_format:
            return self.weight_format
        return f"{self.weight_format}/{self.activation_format}"


class Context:
    """What the steps of one build share; everything is made when it is first needed.

    Parameters
    ----------
    settings : Settings
    folder : Path
        The build folder: files of earlier steps.
    progress : Progress

    Attributes
    ----------
    results : dict
        Facts of the steps so far, by name.
    """

    def __init__(self, settings: Settings, folder: Path, progress: Progress) -> None:
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.results: dict[str, dict[str, Any]] = {}

    @functools.cached_property
    def _loaded(self) -> "tuple[Llama, Tokenizer, LlamaConfig]":
        import torch

        from mxhw.models import bundled

        if self.settings.model not in bundled.MODELS:
            raise UserError(unknown_name("Model", self.settings.model, bundled.MODELS))
        # The operators are small: more threads cost more than they bring.
        torch.set_num_threads(1)
        return bundled.load(self.settings.model)

    @property
    def model(self) -> "Llama":
        """The float model."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer."""
        return self._loaded[1]

    @property
    def config(self) -> "LlamaConfig":
        """The model's shape."""
        return self._loaded[2]

    @functools.cached_property
    def options(self) -> Any:
        """Formats for the lowering."""
        from mxhw.compiler.passes import LoweringOptions

        return LoweringOptions(
            parse_format(self.settings.weight_format), parse_format(self.settings.activation_format)
        )

    @functools.cached_property
    def prefill(self) -> "fx.GraphModule":
        """The lowered model over whole sequences."""
        from mxhw.compiler.lower import lower

        return lower(self.model, self.options)

    @functools.cached_property
    def decode(self) -> "fx.GraphModule":
        """The lowered decode step, from which the hardware is made."""
        from mxhw.compiler.lower import lower
        from mxhw.models.llama import LlamaDecode

        return lower(LlamaDecode(self.model), self.options)

    @functools.cached_property
    def binding(self) -> "FoldedBinding":
        """The decode step bound to units."""
        from mxhw.compiler.binding import bind

        return bind(self.decode, self.options)

    def component(self) -> Any:
        """A new instance of the hardware; one can be elaborated once."""
        from mxhw.compiler.elaborate import elaborate

        return elaborate(self.binding)


def plan(context: Context, out: Path) -> dict[str, Any]:
    """Load, capture, lower, bind and estimate; needs no tools.

    Files: ``graph.txt``, the lowered decode step.
    """
    from mxhw.boards import find_board
    from mxhw.compiler.estimate import estimate

    settings = context.settings
    board = find_board(settings.target)
    context.progress.update("load the model")
    config = context.config
    context.progress.update("capture and lower")
    (out / "graph.txt").write_text(f"{context.decode.graph}\n", "utf-8")
    context.progress.update("bind and estimate")
    binding = context.binding
    figures = estimate(binding)
    _check_capacity(settings, figures.resources, board.capacity)
    return {
        "model": settings.model,
        "parameters": sum(value.numel() for value in context.model.weights().values()),
        "architecture": config.to_dict(),
        "weight_format": settings.weight_format,
        "activation_format": settings.activation_format,
        "board": settings.target,
        "binding": binding.describe(),
        "multipliers": binding.multipliers,
        "resources": figures.resources,
        "capacity": board.capacity,
        "context": REPORT_CONTEXT,
        "cycles_per_token": figures.cycles_per_token(REPORT_CONTEXT),
        "macs_per_token": binding.useful_macs(REPORT_CONTEXT),
    }


def _check_capacity(settings: Settings, needed: dict[str, int], capacity: dict[str, int]) -> None:
    over = [
        f"{needed[name]:,} {name.replace('_', ' ')} of {capacity[name]:,} "
        f"({needed[name] / capacity[name]:.1f} times what there is)"
        for name in needed
        if name in capacity and needed[name] > capacity[name]
    ]
    if over:
        raise UserError(
            f"Model {settings.model!r} in {settings.format} is too big for {settings.target}: it "
            f"needs {', '.join(over)}; choose a bigger board (--list-boards) or a narrower format "
            f"(--format mxfp4/mxint8 halves the weights)"
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
    )
    (out / "script.json").write_text(json.dumps(script.to_dict()), "utf-8")
    np.savez(out / "logits.npz", **{str(key): value for key, value in script.logits.items()})
    scores = accuracy.measure(
        accuracy.model_readings(
            context.model, IdealModel(context.model, context.options), context.prefill
        ),
        context.tokenizer,
        accuracy.validation_stories(),
        context.config.context,
        lambda done, total: progress.update("perplexity, stories", done, total),
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


_VERILOG_PROGRAM = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in (
    f'read_rtlil "{sys.argv[1]}"', "proc -nomux -norom", "memory_collect",
    f'write_verilog -norename "{sys.argv[2]}"',
):
    libyosys.run_pass(command, design)
"""


def _write_verilog(source: Path, target: Path) -> None:
    # In a process of its own: Yosys writes to the standard output and may end its process.
    log = target.with_suffix(".log")
    with log.open("wb") as stream:
        status = subprocess.run(
            [sys.executable, "-c", _VERILOG_PROGRAM, str(source), str(target)],
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
    log.unlink()


def simulate(context: Context, out: Path) -> dict[str, Any]:
    """Let the compiled simulation of the hardware generate the text, and compare with golden."""
    from mxhw.compiler.simulate import Script, replay
    from mxhw.cosim.engine import make_engine

    progress = context.progress
    with np.load(context.folder / "logits.npz") as arrays:
        logits = {int(key): arrays[key] for key in arrays.files}
    content = json.loads((context.folder / "script.json").read_text("utf-8"))
    script = Script.from_dict(content, logits)
    component = context.component()
    step_shape = component.i_step.payload.shape()
    with make_engine(component, "cxxrtl", on_progress=progress.update) as engine:
        result = replay(
            engine,
            step_shape,
            script,
            lambda done, total: progress.update("hardware text, tokens", done, total),
        )
    cycles, seen = result.cycles_per_token(REPORT_CONTEXT)
    return {
        "tokens": result.tokens,
        "logits": result.logits,
        "cycles": result.cycles,
        "cycles_per_token": cycles,
        "cycles_context": seen,
        "macs_per_token": context.binding.useful_macs(seen),
        "cycles_by_position": {str(key): value for key, value in result.cycles_by_position.items()},
    }


def synthesise(context: Context, out: Path) -> dict[str, Any]:
    """Map the design and the board's clock and serial port to the device."""
    from mxhw.compiler import toolflow

    return toolflow.synthesise(context, out)


def place_and_route(context: Context, out: Path) -> dict[str, Any]:
    """Place and route, with the highest clock that timing closes at."""
    from mxhw.compiler import toolflow

    return toolflow.place_and_route(context, out)


def bitstream(context: Context, out: Path) -> dict[str, Any]:
    """Pack the routed design into the file that configures the device."""
    from mxhw.compiler import toolflow

    return toolflow.pack(context, out)
