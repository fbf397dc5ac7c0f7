"""What all loaders share: reads that are checked before memory is taken, and the model's making."""

import math
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, Positions, Rope

__all__ = [
    "DEFAULT_CONTEXT",
    "FileReader",
    "check_finite",
    "choose_context",
    "make_config",
    "make_llama",
    "read_small",
    "refuse",
    "shorten",
    "rows_to_pairs",
    "weight_shapes",
]

DEFAULT_CONTEXT = 1024
"""Positions of a model whose file allows more, if no number is asked for."""

_SMALL_BYTES = 64 << 20
_LONGEST_VALUE = 160
"""Letters of what a file says that an error repeats."""


def refuse(path: Path, field: str, expected: str, found: object) -> UserError:
    """The error about a field of a file: what it must be, and what it is."""
    return UserError(f"{path}: {field} must be {expected}, not {shorten(found)}")


def shorten(found: object) -> str:
    """What a file says, on one line that is not long."""
    text = " ".join(str(found).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _check_regular(path: Path) -> int:
    """Size of a file; a device or a pipe has none, and could be read without an end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: this is no regular file")
    return status.st_size


def read_small(path: Path, what: str, *, limit: int = _SMALL_BYTES) -> bytes:
    """Bytes of a file that holds no weights.

    Raises
    ------
    UserError
        If it cannot be read or is longer than ``limit``.
    """
    try:
        size = _check_regular(path)
        if size > limit:
            raise refuse(path, f"Size of the {what}", f"at most {limit:,} bytes", f"{size:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror}") from error


class FileReader:
    """Reads numbers and arrays of a binary file, never past its end; use it as a context manager.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    size, position : int
        Bytes of the file, and of them read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        try:
            _check_regular(path)
            self._file: BinaryIO = path.open("rb")
            self.size = self._file.seek(0, 2)
            self._file.seek(0)
        except OSError as error:
            raise UserError(f"{path}: file cannot be read: {error.strerror}") from error

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.size - self.position

    def read(self, count: int, field: str) -> bytes:
        """Bytes, if there are as many.

        Raises
        ------
        UserError
            If the file ends before.
        """
        if not 0 <= count <= self.left:
            raise UserError(
                f"{self.path}: file is truncated: {field} takes {count:,} bytes from byte "
                f"{self.position:,}, but it has {self.size:,}"
            )
        data = self._file.read(count)
        if len(data) != count:
            raise UserError(f"{self.path}: file changed while it was read")
        self.position += count
        return data

    def seek(self, position: int) -> None:
        """Go on from another byte of the file."""
        self.position = self._file.seek(min(position, self.size))

    def floats(self, shape: Sequence[int], field: str) -> Tensor:
        """A float32 tensor; little-endian."""
        count = math.prod(shape)
        data = bytearray(self.read(4 * count, field))
        if not count:
            return torch.zeros(*shape)
        return torch.frombuffer(data, dtype=torch.float32).reshape(*shape)


def check_finite(path: Path, name: str, values: Tensor) -> None:
    """Refuse a tensor that holds an infinity or a NaN."""
    # A sum is finite if all is, short of an overflow, and takes no memory.
    if not bool(values.sum(dtype=torch.float64).isfinite()) and not bool(values.isfinite().all()):
        raise refuse(path, f"Tensor {name!r}", "finite", "with infinities or NaNs")


def choose_context(path: Path, allowed: int, wanted: int | None) -> int:
    """Positions to build for.

    Raises
    ------
    UserError
        If more are wanted than the model was made for.
    """
    if allowed < 1:
        raise refuse(path, "Context", "positive", allowed)
    if wanted is None:
        return min(allowed, DEFAULT_CONTEXT)
    if not 1 <= wanted <= allowed:
        raise UserError(f"Context must be 1 to {allowed}, which {path} allows, not {wanted}")
    return wanted


def make_config(path: Path, **fields: Any) -> LlamaConfig:
    """A configuration from what a file says.

    Raises
    ------
    UserError
        If the fields are no Llama's, with the field.
    """
    try:
        return LlamaConfig(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by its name in :class:`~mxhw.models.llama.Llama`; takes no memory."""
    queries = config.heads * config.head_size
    keys = config.kv_heads * config.head_size
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (config.dim,),
        "attention.wq.weight": (queries, config.dim),
        "attention.wk.weight": (keys, config.dim),
        "attention.wv.weight": (keys, config.dim),
        "attention.wo.weight": (config.dim, queries),
        "feed_forward_norm.weight": (config.dim,),
        "feed_forward.gate.weight": (config.hidden, config.dim),
        "feed_forward.up.weight": (config.hidden, config.dim),
        "feed_forward.down.weight": (config.dim, config.hidden),
    }
    if config.qkv_bias:
        layer |= {
            "attention.wq.bias": (queries,),
            "attention.wk.bias": (keys,),
            "attention.wv.bias": (keys,),
        }
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocabulary_size, config.dim)}
    for index in range(config.layers):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (config.dim,)
    if not config.tied:
        shapes["head.weight"] = (config.vocabulary_size, config.dim)
    return shapes


def rows_to_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection whose rotary pairs are halves of a head, with each pair side by side."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def make_llama(path: Path, config: LlamaConfig, weights: Mapping[str, Tensor]) -> Llama:
    """A model of these weights, which it shares; in evaluation mode, without gradients.

    Raises
    ------
    UserError
        If a weight is missing, is too much, has the wrong shape or is not finite.
    """
    shapes = weight_shapes(config)
    for name in sorted(shapes.keys() | weights.keys()):
        if name not in weights:
            raise UserError(f"{path}: tensor {name!r} is missing")
        if name not in shapes:
            raise UserError(f"{path}: tensor {name!r} is no part of a Llama")
        if tuple(weights[name].shape) != shapes[name]:
            raise refuse(path, f"Shape of {name!r}", f"{shapes[name]}", tuple(weights[name].shape))
        check_finite(path, name, weights[name])
    # No memory or time goes into initial values that the file then replaces.
    with torch.device("meta"):
        model = Llama(config)
    model.load_state_dict(
        {name: value.float() for name, value in weights.items()}, strict=False, assign=True
    )
    if config.tied:
        model.head.weight = model.embedding.weight
    model.positions = Positions(config.context)
    rope = Rope(config.head_size, config.context, config.rope_theta)
    for block in model.blocks:
        block.attention.rope = rope
    return model.eval().requires_grad_(False)
