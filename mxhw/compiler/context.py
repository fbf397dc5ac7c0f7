"""What a user asked for, and what the steps of a build share."""

import dataclasses
import difflib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxhw.compiler.progress import Progress
from mxhw.errors import UserError
from mxhw.formats import BlockFormat, list_formats, parse_format

if TYPE_CHECKING:
    from torch import fx

    from mxhw.boards.catalog import Board, Resources
    from mxhw.compiler.binding import FoldedBinding
    from mxhw.compiler.estimate import Estimate
    from mxhw.compiler.prebuild import Prebuild
    from mxhw.models.config import LlamaConfig
    from mxhw.models.llama import Llama
    from mxhw.models.tokenizer import TextTokenizer

# Modules that load PyTorch are imported where they are used: lists and help need none of them.

__all__ = [
    "REPORT_CONTEXT",
    "TABLE_BUDGET",
    "Context",
    "Settings",
    "parse_formats",
    "unknown_name",
]

REPORT_CONTEXT = 64
"""Positions that a token sees in the figures of speed."""

TABLE_BUDGET = 0.1
"""Largest error of a node's function tables, in half steps of the activation format."""

_LARGEST_ENGINE_BITS = 18

_NAME_BYTES = 40
_BLOCK_BITS = 18 * 1024
_RESOURCE_FIELDS = {
    "lut": "luts",
    "ff": "flip_flops",
    "block_ram": "block_rams",
    "dsp": "multipliers",
}


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Sentence about a name that does not exist, with the nearest ones or else all."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if near:
        return f"There is no {what} {name!r}: did you mean {' or '.join(map(repr, near))}?"
    return f"There is no {what} {name!r}: choose one of {', '.join(known)}"


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
        raise UserError(unknown_name("format", name, list_formats())) from error


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user asked for.

    Members
    -------
    model : str
        Name of a bundled model, or path of another one (:mod:`mxhw.models.loaders`).
    target : str
        Board whose budget the design is made for.
    board : bool
        Whether the design is also built for that board.
    bitstream : bool
        Whether that board's build ends in a bitstream, and not in a project for other tools.
    weight_format, activation_format : str
    table_budget : float
        Largest relative error that the function tables of a node may have, in half steps of the
        activation format.
    clock_mhz : float
        Clock that the design is built for.
    tokens : int
        Tokens to generate.
    prompt : str
    context : int or None
        Positions to build for, where the model is from outside; by default as many as it has.
    tokenizer : str or None
        Path of its tokenizer, where its files do not tell.
    fingerprint : str
        Digest of its files.
    """

    model: str
    target: str
    board: bool = False
    bitstream: bool = False
    weight_format: str = "mxint8"
    activation_format: str = "mxint8"
    table_budget: float = TABLE_BUDGET
    clock_mhz: float = 65.0
    tokens: int = 256
    prompt: str = "Once upon a time"
    context: int | None = None
    tokenizer: str | None = None
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Short name of the model."""
        from mxhw.models.loaders import model_name

        return model_name(self.model) if self.fingerprint else self.model

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
        self._prebuild: Prebuild | None = None

    @functools.cached_property
    def _loaded(self) -> "tuple[Llama, TextTokenizer, LlamaConfig]":
        import torch

        from mxhw.models import bundled
        from mxhw.models.loaders import load_path

        settings = self.settings
        # The operators are small: more threads cost more than they bring.
        torch.set_num_threads(1)
        if settings.fingerprint:
            self.progress.update("reading the model")
            tokenizer = Path(settings.tokenizer) if settings.tokenizer else None
            return load_path(Path(settings.model), context=settings.context, tokenizer=tokenizer)
        if settings.model not in bundled.MODELS:
            raise UserError(unknown_name("model", settings.model, bundled.MODELS))
        return bundled.load(settings.model)

    @property
    def model(self) -> "Llama":
        """The float model."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> "TextTokenizer":
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
            parse_format(self.settings.weight_format),
            parse_format(self.settings.activation_format),
            table_budget=self.settings.table_budget,
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

        model = self.model
        self.progress.update("lowering the decode step")
        return lower(LlamaDecode(model), self.options)

    @functools.cached_property
    def _fitted(self) -> "Estimate":
        return self._fit()

    def _fit(self, contexts: Sequence[int] = ()) -> "Estimate":
        """The widest binding that the board's device holds, also for other contexts."""
        from mxhw.compiler.fit import fit

        capacity, decode = self.board.capacity, self.decode
        self.progress.update("binding it to units")
        return fit(
            decode,
            self.options,
            multipliers=capacity.multipliers,
            luts=capacity.luts,
            block_rams=capacity.block_rams * self._blocks_a_ram,
            contexts=contexts,
        )

    def fitting_context(self) -> int:
        """Positions to build for, where none are asked for.

        Those that the model was made for, at most 1024, if the board's device holds them; else the
        largest number of whole blocks that it does hold; if it holds none, the first again.
        """
        whole = self.config.context
        if not self.holds_weights():
            # Lowering a large model takes long, and no context would help.
            return whole
        size = self.options.activation_format.block_size
        return self._fit(range((whole - 1) // size * size, 0, -size)).binding.shape.context

    def holds_weights(self) -> bool:
        """Whether the board's block RAM has as many bits as the weights; needs no lowering."""
        from mxhw.compiler.memory import memory_needed

        options, board = self.options, self.board
        bits = memory_needed(
            self.config, options.weight_format, options.activation_format, options.wide_format
        ).weight_bits
        return bits <= board.device.block_ram_bits * board.capacity.block_rams

    @property
    def _blocks_a_ram(self) -> int:
        """Blocks of 18 kbit, which estimates count, in one block RAM of the board's device."""
        return max(1, self.board.device.block_ram_bits // _BLOCK_BITS)

    @property
    def binding(self) -> "FoldedBinding":
        """The decode step bound to units, as many rows as the board's device holds."""
        return self._fitted.binding

    @functools.cached_property
    def estimate(self) -> "tuple[Resources, int]":
        """Resources that the design will take, and cycles of a token at :data:`REPORT_CONTEXT`."""
        from mxhw.boards.catalog import Resources

        figures = self._fitted
        needed = {name: figures.resources[key] for key, name in _RESOURCE_FIELDS.items()}
        needed["block_rams"] = -(-needed["block_rams"] // self._blocks_a_ram)
        return Resources(**needed), figures.cycles_per_token(REPORT_CONTEXT)

    def for_board(self, target: str) -> "Context":
        """A context of the same settings for another board; it shares the lowered decode step."""
        settings = dataclasses.replace(self.settings, target=target)
        other = Context(settings, self.folder, self.progress)
        shared = {"_loaded": self._loaded, "options": self.options, "decode": self.decode}
        vars(other).update(shared)
        return other

    def first_layers(self, layers: int) -> "Context":
        """A context of the same settings for the model's first layers alone.

        Raises
        ------
        UserError
            If the model has not so many.
        """
        model, tokenizer, _ = self._loaded
        try:
            short = model.first_layers(layers)
        except ValueError as error:
            raise UserError(str(error)) from error
        other = Context(self.settings, self.folder, self.progress)
        vars(other)["_loaded"] = (short, tokenizer, short.config)
        return other

    @property
    def unit_estimates(self) -> dict[str, dict[str, int]]:
        """The same resources for every unit, in units of the device."""
        units = {}
        for name, cost in self._fitted.units.items():
            figures = {field: round(getattr(cost, key)) for key, field in _RESOURCE_FIELDS.items()}
            figures["block_rams"] = -(-figures["block_rams"] // self._blocks_a_ram)
            units[name] = figures
        return units

    def start_prebuild(self) -> None:
        """Begin to compile the simulator in the background, once."""
        from mxhw.compiler.prebuild import Prebuild

        if self._prebuild is None:
            self._prebuild = Prebuild(self.settings)

    def finish_prebuild(self) -> Path | None:
        """Wait for the compilation in the background, if there is one: the simulator's path."""
        return None if self._prebuild is None else self._prebuild.wait(self.progress)

    def stop_prebuild(self) -> None:
        """End the compilation in the background, if there is one."""
        if self._prebuild is not None:
            self._prebuild.stop()

    def component(self) -> Any:
        """A new instance of the hardware; one can be elaborated once."""
        from mxhw.compiler.elaborate import elaborate

        return elaborate(self.binding)

    @functools.cached_property
    def board(self) -> "Board":
        """The board that the design is made for."""
        from mxhw.boards.catalog import find_board

        return find_board(self.settings.target)

    @functools.cached_property
    def _board_build(self) -> tuple[Any, int]:
        from mxhw.boards.wrapper import BoardTop
        from mxhw.compiler.toolflow import make_plan

        top = BoardTop(
            decoder=self.component(),
            vocabulary=self.config.vocabulary_size,
            context=self.config.context,
            model_hash=self.model_hash,
            board=self.board,
            clock_hz=round(self.settings.clock_mhz * 1e6),
            name=self.design_name,
        )
        return make_plan(top, self.board), top.clock_hz

    @property
    def board_plan(self) -> Any:
        """Amaranth's build plan of the design on the board."""
        return self._board_build[0]

    @property
    def clock_hz(self) -> int:
        """Clock that the board's PLL really makes."""
        return self._board_build[1]

    @property
    def design_name(self) -> str:
        """What a design calls itself when a host asks: at most 40 bytes."""
        from mxhw import __version__

        name = f"mxhw {__version__} {self.settings.name}".encode()[:_NAME_BYTES]
        return name.decode("utf-8", "ignore")

    @property
    def model_hash(self) -> bytes:
        """Eight bytes that identify the weights and their formats."""
        words = b"".join(word.to_bytes(-(-word.bit_length() // 8)) for word in self.binding.words)
        return hashlib.sha256(self.settings.format.encode() + b" " + words).digest()[:8]
