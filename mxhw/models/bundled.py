"""The models that come with the package, and their loading."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama
from mxhw.models.tokenizer import Tokenizer

__all__ = ["MODELS", "BundledModel", "load", "load_from"]

_DATA = Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class BundledModel:
    """A model's name and files.

    Parameters
    ----------
    name : str
        Name for the command line.
    summary : str
        What it is, in a few words.
    directory : Path
        Folder of ``NAME.safetensors``, ``tokenizer.json`` and ``config.json``.
    """

    name: str
    summary: str
    directory: Path = _DATA

    @property
    def weights(self) -> Path:
        """File of the weights."""
        return self.directory / f"{self.name}.safetensors"

    @property
    def tokenizer(self) -> Path:
        """File of the tokenizer."""
        return self.directory / "tokenizer.json"

    @property
    def config(self) -> Path:
        """File of the shape, the digests and the measured quality."""
        return self.directory / "config.json"


MODELS: dict[str, BundledModel] = {
    model.name: model
    for model in (BundledModel("llama", "Llama of 248,512 parameters that tells short stories"),)
}


def load(name: str) -> tuple[Llama, Tokenizer, LlamaConfig]:
    """Load a bundled model, after checking its files.

    Parameters
    ----------
    name : str
        One of :data:`MODELS`.

    Returns
    -------
    model : Llama
        In evaluation mode, single precision, without gradients.
    tokenizer : Tokenizer
        Its tokenizer.
    config : LlamaConfig
        Its shape.

    Raises
    ------
    UserError
        If there is no such model, or a file is missing, changed or does not fit the others.
    """
    if name not in MODELS:
        raise UserError(f"Model must be one of {', '.join(sorted(MODELS))}, not {name!r}")
    return load_from(MODELS[name])


def load_from(model: BundledModel) -> tuple[Llama, Tokenizer, LlamaConfig]:
    """Load a model from its folder; results and errors as for :func:`load`."""
    description = _read_description(model)
    digests = description.get("sha256")
    if not isinstance(digests, dict):
        raise UserError(f"Configuration of {model.name!r} is corrupt: it has no SHA-256 values")
    architecture = description.get("architecture", {})
    if not isinstance(architecture, dict):
        raise UserError(
            f"Configuration of {model.name!r} is corrupt: its architecture is not an object"
        )
    try:
        config = LlamaConfig.from_dict(architecture)
    except (TypeError, ValueError) as error:
        raise UserError(f"Configuration of {model.name!r} is corrupt: {error}") from error
    data = _read_checked(model, "Weights", "are", model.weights, digests)
    _read_checked(model, "Tokenizer", "is", model.tokenizer, digests)
    tokenizer = Tokenizer.load(model.tokenizer)
    if len(tokenizer) != config.vocabulary_size:
        raise UserError(
            f"Tokenizer of {model.name!r} must have {config.vocabulary_size} tokens, "
            f"not {len(tokenizer)}"
        )
    # No memory or time goes into initial values that the file then replaces.
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Llama(config).weights().items()}
    weights = _parse_weights(model, data, shapes)
    llama = Llama(config)
    # A tied head is not in the file, and shares the embedding's memory.
    llama.load_state_dict(weights, strict=not config.tied)
    return llama.eval().requires_grad_(False), tokenizer, config


def _read_description(model: BundledModel) -> dict[str, Any]:
    try:
        description = json.loads(model.config.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"Configuration of {model.name!r} cannot be read: {model.config}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise UserError(f"Configuration of {model.name!r} is corrupt: {error}") from error
    if not isinstance(description, dict):
        raise UserError(f"Configuration of {model.name!r} is corrupt: it is not an object")
    return description


def _read_checked(
    model: BundledModel, label: str, verb: str, path: Path, digests: dict[str, Any]
) -> bytes:
    """Return a file's bytes if they have the digest that the configuration gives."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{label} of {model.name!r} cannot be read: {path}: {error.strerror}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != digests.get(path.name):
        raise UserError(
            f"{label} of {model.name!r} {verb} corrupt: SHA-256 of {path.name} is {digest}, "
            f"not {digests.get(path.name)}"
        )
    return data


def _parse_weights(
    model: BundledModel, data: bytes, shapes: dict[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file if they are what the configuration asks for."""
    label = f"Weights of {model.name!r}"
    try:
        weights = parse_safetensors(data)
    except SafetensorError as error:
        raise UserError(f"{label} are corrupt: {error}") from error
    for name in sorted(shapes.keys() | weights.keys()):
        if name not in weights:
            raise UserError(f"{label} are corrupt: tensor {name!r} is missing")
        if name not in shapes:
            raise UserError(f"{label} are corrupt: tensor {name!r} is not part of the model")
        value = weights[name]
        if tuple(value.shape) != shapes[name]:
            raise UserError(
                f"{label} are corrupt: shape of {name!r} must be {shapes[name]}, "
                f"not {tuple(value.shape)}"
            )
        if value.dtype != torch.float32:
            raise UserError(
                f"{label} are corrupt: type of {name!r} must be {torch.float32}, not {value.dtype}"
            )
        if not value.isfinite().all():
            raise UserError(f"{label} are corrupt: tensor {name!r} must be finite")
    return weights
