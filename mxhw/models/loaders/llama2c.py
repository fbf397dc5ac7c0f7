"""Models in the files of llama2.c (``.bin``), versions 0 and 1.

Version 0 is seven numbers and float32 weights; a negative vocabulary says that the head is not the
embedding. Version 1 begins with ``ak42`` and has a header of 256 bytes. Rotary pairs lie side by
side, as in :class:`~mxhw.models.llama.Rope`.
"""

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama
from mxhw.models.loaders.checked import (
    FileReader,
    choose_context,
    make_config,
    make_llama,
    refuse,
    weight_shapes,
)
from mxhw.models.loaders.tokenizer import ModelTokenizer, load_tokenizer_json, read_tokenizer_bin

__all__ = ["find_tokenizer", "load_llama2c", "read_llama2c"]

_MAGIC = 0x616B3432
_HEADER_BYTES = 256
_FIELDS = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary_size", "context")
_THETA = 10000.0
_TABLE_TOLERANCE = 1e-3
_TENSORS = (
    ("attention_norm.weight", "attention_norm"),
    ("attention.wq.weight", "wq"),
    ("attention.wk.weight", "wk"),
    ("attention.wv.weight", "wv"),
    ("attention.wo.weight", "wo"),
    ("feed_forward_norm.weight", "ffn_norm"),
    ("feed_forward.gate.weight", "w1"),
    ("feed_forward.down.weight", "w2"),
    ("feed_forward.up.weight", "w3"),
)
_NORMS = ("attention_norm.weight", "feed_forward_norm.weight")


def load_llama2c(
    path: Path, context: int | None, tokenizer: Path | None
) -> tuple[Llama, ModelTokenizer, LlamaConfig]:
    """Load a model and its tokenizer.

    Parameters
    ----------
    path : Path
    context : int, optional
        Positions, at most the file's.
    tokenizer : Path, optional
        By default a file beside the model's (:func:`find_tokenizer`).

    Raises
    ------
    UserError
        If a file is not what it should be.
    """
    config, weights = read_llama2c(path, context)
    found = tokenizer or find_tokenizer(path, config.vocabulary_size)
    if found.suffix == ".json":
        words = load_tokenizer_json(found, config.vocabulary_size, bos=1, eos=2)
    else:
        words = read_tokenizer_bin(found, config.vocabulary_size)
    return make_llama(path, config, weights), words, config


def find_tokenizer(path: Path, vocabulary: int) -> Path:
    """The tokenizer beside a model: ``tokNUMBER.bin``, ``tokenizer.bin`` or ``tokenizer.json``."""
    names = [f"tok{vocabulary}.bin", "tokenizer.bin", "tokenizer.json"]
    for name in names:
        if (path.parent / name).is_file():
            return path.parent / name
    raise UserError(
        f"{path}: no tokenizer is beside it ({', '.join(names)}); name one with --tokenizer"
    )


def read_llama2c(path: Path, context: int | None = None) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Read shape and weights; the size of the file is checked before any of them is read."""
    with FileReader(path) as file:
        version, fields, tied = _read_header(file)
        for name, value in fields.items():
            if not 0 < value < 1 << 31:
                raise refuse(path, f"Field {name!r}", "positive", value)
        if fields["dim"] % (2 * fields["heads"]):
            raise refuse(
                path,
                "Field 'dim'",
                f"a multiple of twice the number of heads ({fields['heads']})",
                fields["dim"],
            )
        allowed = fields.pop("context")
        config = make_config(
            path,
            **fields,
            head_size=fields["dim"] // fields["heads"],
            context=choose_context(path, allowed, context),
            tied=tied,
            rope_theta=_THETA,
        )
        _check_size(file, config, version, allowed)
        weights = _read_weights(file, config, version)
        if version == 0:
            _check_tables(file, config, allowed)
        if not tied:
            shape = (config.vocabulary_size, config.dim)
            weights["head.weight"] = file.floats(shape, "output head")
    return config, weights


def _read_header(file: FileReader) -> tuple[int, dict[str, int], bool]:
    first = file.read(4, "header")
    version, tied = 0, True
    if struct.unpack("<I", first)[0] == _MAGIC:
        (version,) = struct.unpack("<i", file.read(4, "version"))
        if version != 1:
            what = "int8 weights, which are not read; export float32" if version == 2 else "unknown"
            raise refuse(file.path, "Version", "0 or 1", f"{version} ({what})")
        values = struct.unpack("<7i", file.read(28, "header"))
        shared = file.read(1, "header")[0]
        if shared > 1:
            raise refuse(file.path, "Field 'shared_classifier'", "0 or 1", shared)
        tied = bool(shared)
        file.read(_HEADER_BYTES - file.position, "header")
        return version, dict(zip(_FIELDS, values, strict=True)), tied
    values = list(struct.unpack("<7i", first + file.read(24, "header")))
    tied = values[5] > 0
    values[5] = abs(values[5])
    return version, dict(zip(_FIELDS, values, strict=True)), tied


def _check_size(file: FileReader, config: LlamaConfig, version: int, allowed: int) -> None:
    # The number of layers is hostile until the size is known to fit: count without a list of them.
    one = {**config.to_dict(), "layers": 1}
    shapes = weight_shapes(LlamaConfig.from_dict(one))
    layer = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("blocks."))
    rest = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("blocks."))
    elements = config.layers * layer + rest
    if version == 0:
        elements += allowed * config.head_size
    wanted = file.position + 4 * elements
    if wanted != file.size:
        raise refuse(
            file.path, "Size of the file", f"{wanted:,} bytes, as its header says", f"{file.size:,}"
        )


def _read_weights(file: FileReader, config: LlamaConfig, version: int) -> dict[str, Tensor]:
    shapes = weight_shapes(config)
    weights: dict[str, Tensor] = {}

    def layers(name: str, field: str) -> None:
        shape = shapes[f"blocks.0.{name}"]
        for index in range(config.layers):
            key = f"blocks.{index}.{name}"
            weights[key] = file.floats(shape, f"{field} of layer {index}")

    def one(name: str, field: str) -> None:
        weights[name] = file.floats(shapes[name], field)

    if version == 0:
        one("embedding.weight", "embedding")
        for name, field in _TENSORS:
            layers(name, field)
        one("norm.weight", "final norm")
    else:
        for name, field in _TENSORS:
            if name in _NORMS:
                layers(name, field)
        one("norm.weight", "final norm")
        one("embedding.weight", "embedding")
        for name, field in _TENSORS:
            if name not in _NORMS:
                layers(name, field)
    return weights


def _check_tables(file: FileReader, config: LlamaConfig, allowed: int) -> None:
    """Refuse a file whose stored rotary tables are not those of the base that it stands for."""
    half = config.head_size // 2
    for field, function in (("cosines", torch.cos), ("sines", torch.sin)):
        start = file.position
        table = file.floats([config.context, half], f"rotary {field}").double()
        file.seek(start + 4 * allowed * half)
        pairs = torch.arange(half, dtype=torch.float64)
        frequency = _THETA ** (-2 * pairs / config.head_size)
        angle = torch.outer(torch.arange(config.context, dtype=torch.float64), frequency)
        difference = (table - function(angle)).abs().max()
        if not float(difference) < _TABLE_TOLERANCE:
            raise refuse(
                file.path, f"Rotary {field}", f"those of the base {_THETA:g}", "another table"
            )
