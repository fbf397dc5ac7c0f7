"""Models in GGUF files: Llama, and Qwen2 with its biases.

The structure of the file is read here, because every count in it is checked against the bytes that
are left before anything is allocated or looped over. Package ``gguf`` turns the quantised blocks of
weights into numbers.
"""

import dataclasses
import importlib
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mxhw.errors import ToolError, UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama
from mxhw.models.loaders.checked import (
    FileReader,
    choose_context,
    make_config,
    make_llama,
    refuse,
    rows_to_pairs,
    weight_shapes,
)
from mxhw.models.loaders.gguf_tokenizer import make_tokenizer
from mxhw.models.loaders.tokenizer import ModelTokenizer

__all__ = ["GgufFile", "GgufTensor", "load_gguf", "read_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_LONGEST_NAME = 1 << 10
_LONGEST_TEXT = 16 << 20
_MOST_AXES = 4
_ENTRY_BYTES = 13
#: More entries, and texts of a list, than any model has: each takes more memory than its bytes.
_MOST_ENTRIES = 1 << 16
_MOST_TEXTS = 1 << 21
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9

#: Architectures, and whether the rotary pairs of their files lie side by side.
_ARCHITECTURES = {"llama": True, "qwen2": False}
_LAYER = {
    "attn_norm.weight": "attention_norm.weight",
    "attn_q.weight": "attention.wq.weight",
    "attn_k.weight": "attention.wk.weight",
    "attn_v.weight": "attention.wv.weight",
    "attn_q.bias": "attention.wq.bias",
    "attn_k.bias": "attention.wk.bias",
    "attn_v.bias": "attention.wv.bias",
    "attn_output.weight": "attention.wo.weight",
    "ffn_norm.weight": "feed_forward_norm.weight",
    "ffn_gate.weight": "feed_forward.gate.weight",
    "ffn_up.weight": "feed_forward.up.weight",
    "ffn_down.weight": "feed_forward.down.weight",
}
_OUTER = {
    "token_embd.weight": "embedding.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies in its file.

    Members
    -------
    shape : tuple of int
        Outermost axis first.
    kind : int
        Number of its block type in ggml.
    start, size : int
        First byte in the file, and bytes.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What the head of a file says.

    Members
    -------
    path : Path
    fields : dict
        Values by key: numbers, strings, lists of strings and numpy arrays.
    tensors : dict of str to GgufTensor
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def field(self, key: str, kind: type, default: Any = None) -> Any:
        """A field's value.

        Raises
        ------
        UserError
            If it has another type, or is missing and has no default.
        """
        value = self.fields.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self.path}: field {key!r} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            name = {int: "an integer", float: "a number", str: "a text", list: "a list"}
            raise refuse(self.path, f"Field {key!r}", name.get(kind, kind.__name__), repr(value))
        return value


def _library() -> Any:
    """Package ``gguf``.

    Raises
    ------
    ToolError
        If it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ToolError("GGUF files need the package 'gguf' (pip install gguf)") from error


def load_gguf(path: Path, context: int | None) -> tuple[Llama, ModelTokenizer, LlamaConfig]:
    """Load a model and its tokenizer.

    Raises
    ------
    UserError
        If the file is malformed or holds no Llama.
    ToolError
        If package ``gguf`` is missing.
    """
    _library()
    head = read_gguf(path)
    config, weights = _read_model(head, context)
    tokenizer = make_tokenizer(head, config.vocabulary_size)
    return make_llama(path, config, weights), tokenizer, config


def read_gguf(path: Path) -> GgufFile:
    """Read the fields of a file and where its tensors lie; no weights are read.

    Raises
    ------
    UserError
        If the file is malformed.
    """
    with FileReader(path) as file:
        magic = file.read(4, "magic")
        if magic != _MAGIC:
            raise refuse(path, "Magic", repr(_MAGIC), repr(magic))
        version = _number(file, "<I", "version")
        if version not in _VERSIONS:
            raise refuse(path, "Version", "2 or 3", version)
        tensors, fields = (_number(file, "<Q", name) for name in ("tensor count", "field count"))
        for name, count in (("Number of tensors", tensors), ("Number of fields", fields)):
            limit = min(_MOST_ENTRIES, file.left // _ENTRY_BYTES)
            if count > limit:
                raise refuse(path, name, f"at most {limit} in a file of this size", count)
        values: dict[str, Any] = {}
        for _ in range(fields):
            key = _text(file, "name of a field", _LONGEST_NAME)
            if key in values:
                raise refuse(path, f"Field {key!r}", "there once", "again")
            values[key] = _value(file, _number(file, "<I", f"type of {key!r}"), key)
        return GgufFile(path, values, _read_tensors(file, tensors, values))


def _number(file: FileReader, layout: str, field: str) -> Any:
    return struct.unpack(layout, file.read(struct.calcsize(layout), field))[0]


def _text(file: FileReader, field: str, longest: int) -> str:
    length = _number(file, "<Q", f"length of {field}")
    if length > longest:
        raise refuse(file.path, f"Length of {field}", f"at most {longest}", length)
    data = file.read(length, field)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise refuse(file.path, field.capitalize(), "UTF-8", repr(data[:32])) from None


def _value(file: FileReader, kind: int, key: str) -> Any:
    field = f"field {key!r}"
    if kind == _STRING:
        return _text(file, field, _LONGEST_TEXT)
    if kind in _SCALARS:
        dtype = np.dtype(_SCALARS[kind])
        value = np.frombuffer(file.read(dtype.itemsize, field), dtype)[0]
        # The decimal number that was meant: 1e-5 has another float64 than its float32.
        return float(str(value)) if kind == _FLOAT32 else value.item()
    if kind != _ARRAY:
        raise refuse(file.path, f"Type of {field}", "0 to 12", kind)
    inner = _number(file, "<I", f"type of {field}")
    count = _number(file, "<Q", f"length of {field}")
    if inner == _STRING:
        limit = min(_MOST_TEXTS, file.left // 8)
        if count > limit:
            raise refuse(file.path, f"Length of {field}", f"at most {limit}", count)
        return [_text(file, field, _LONGEST_TEXT) for _ in range(count)]
    if inner not in _SCALARS:
        raise refuse(file.path, f"Type of the elements of {field}", "a number or text", inner)
    dtype = np.dtype(_SCALARS[inner])
    return np.frombuffer(file.read(count * dtype.itemsize, field), dtype)


def _read_tensors(file: FileReader, count: int, fields: dict[str, Any]) -> dict[str, GgufTensor]:
    library = _library()
    sizes = {int(kind): size for kind, size in library.GGML_QUANT_SIZES.items()}
    entries: dict[str, tuple[tuple[int, ...], int, int, int]] = {}
    for _ in range(count):
        name = _text(file, "name of a tensor", _LONGEST_NAME)
        if name in entries:
            raise refuse(file.path, f"Tensor {name!r}", "there once", "again")
        axes = _number(file, "<I", f"axes of {name!r}")
        if not 1 <= axes <= _MOST_AXES:
            raise refuse(file.path, f"Number of axes of {name!r}", f"1 to {_MOST_AXES}", axes)
        shape = struct.unpack(f"<{axes}Q", file.read(8 * axes, f"shape of {name!r}"))[::-1]
        kind = _number(file, "<I", f"type of {name!r}")
        if kind not in sizes:
            raise refuse(file.path, f"Type of {name!r}", "one that ggml has", kind)
        elements, bytes_ = sizes[kind]
        if shape[-1] % elements:
            raise refuse(
                file.path,
                f"Length of {name!r}",
                f"a multiple of its blocks ({elements})",
                shape[-1],
            )
        offset = _number(file, "<Q", f"place of {name!r}")
        entries[name] = (shape, kind, offset, math.prod(shape) // elements * bytes_)
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise refuse(file.path, "Field 'general.alignment'", "1 to 1048576", repr(alignment))
    base = -(-file.position // alignment) * alignment
    tensors = {
        name: GgufTensor(shape, kind, base + offset, size)
        for name, (shape, kind, offset, size) in entries.items()
    }
    end = base
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            raise refuse(file.path, f"Place of {name!r}", "behind the tensor before", "inside it")
        end = tensor.start + tensor.size
        if end > file.size:
            raise UserError(
                f"{file.path}: file is truncated: tensor {name!r} takes {tensor.size:,} bytes from "
                f"byte {tensor.start:,}, but it has {file.size:,}"
            )
    return tensors


def _read_model(head: GgufFile, context: int | None) -> tuple[LlamaConfig, dict[str, Tensor]]:
    config, side_by_side = _read_config(head, context)
    names = {outer: inner for outer, inner in _OUTER.items() if outer in head.tensors}
    for index in range(config.layers):
        names |= {
            f"blk.{index}.{outer}": f"blocks.{index}.{inner}"
            for outer, inner in _LAYER.items()
            if config.qkv_bias or not outer.endswith("bias")
        }
    for name in head.tensors:
        if name not in names:
            reason = ": scaled rotary angles are not supported" if "rope_freqs" in name else ""
            raise UserError(f"{head.path}: tensor {name!r} is no part of a Llama{reason}")
    shapes = weight_shapes(config)
    weights: dict[str, Tensor] = {}
    read = _tensor_reader(head.path)
    for outer, inner in names.items():
        tensor = head.tensors.get(outer)
        if tensor is None:
            raise UserError(f"{head.path}: tensor {outer!r} is missing")
        if tensor.shape != shapes[inner]:
            raise refuse(head.path, f"Shape of {outer!r}", f"{shapes[inner]}", tensor.shape)
        value = read(tensor)
        if not side_by_side and (".wq." in inner or ".wk." in inner):
            heads = config.heads if ".wq." in inner else config.kv_heads
            value = rows_to_pairs(value, heads)
        weights[inner] = value
    return config, weights


def _tensor_reader(path: Path) -> Callable[[GgufTensor], Tensor]:
    library = _library()
    content = np.memmap(path, mode="r")

    def read(tensor: GgufTensor) -> Tensor:
        kind = library.GGMLQuantizationType(tensor.kind)
        data = content[tensor.start : tensor.start + tensor.size]
        rows = data.reshape(*tensor.shape[:-1], -1)
        try:
            values = library.dequantize(rows, kind)
        except NotImplementedError:
            raise UserError(f"{path}: weights of type {kind.name} are not supported") from None
        values = np.array(values, dtype=np.float32).reshape(tensor.shape)
        return torch.from_numpy(values)

    return read


def _read_config(head: GgufFile, context: int | None) -> tuple[LlamaConfig, bool]:
    path = head.path
    architecture = head.field("general.architecture", str)
    if architecture not in _ARCHITECTURES:
        raise refuse(
            path, "Field 'general.architecture'", " or ".join(_ARCHITECTURES), repr(architecture)
        )

    def number(name: str, kind: type = int, default: Any = None) -> Any:
        return head.field(f"{architecture}.{name}", kind, default)

    scaling = number("rope.scaling.type", str, "none")
    if scaling != "none":
        raise refuse(path, f"Field '{architecture}.rope.scaling.type'", "none", repr(scaling))
    if number("expert_count", int, 0):
        raise refuse(path, f"Field '{architecture}.expert_count'", "0", number("expert_count"))
    table = head.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{path}: tensor 'token_embd.weight' with two axes is missing")
    heads, dim = number("attention.head_count"), number("embedding_length")
    layers = number("block_count")
    if heads < 1 or layers < 1 or layers > len(head.tensors):
        raise refuse(
            path,
            "Numbers of heads and layers",
            f"positive, and layers at most {len(head.tensors)}",
            f"{heads} and {layers}",
        )
    head_size = number("attention.key_length", int, dim // heads)
    rotary = number("rope.dimension_count", int, head_size)
    value_size = number("attention.value_length", int, head_size)
    if not head_size == rotary == value_size:
        raise refuse(
            path, "Size of heads", f"one, {head_size}", f"{rotary} (rotary), {value_size} (values)"
        )
    config = make_config(
        path,
        vocabulary_size=table.shape[0],
        dim=dim,
        hidden=number("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=number("attention.head_count_kv", int, heads),
        head_size=head_size,
        context=choose_context(path, number("context_length"), context),
        rope_theta=number("rope.freq_base", float, 10000.0),
        norm_epsilon=number("attention.layer_norm_rms_epsilon", float),
        tied="output.weight" not in head.tensors,
        qkv_bias="blk.0.attn_q.bias" in head.tensors,
    )
    return config, _ARCHITECTURES[architecture]
