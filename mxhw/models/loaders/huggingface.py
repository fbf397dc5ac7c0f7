"""Models in Hugging Face folders: ``config.json``, safetensors and ``tokenizer.json``.

The folder's shapes are checked first, against each other and the files. Then the unmodified model
class of package ``transformers`` is exported, without its weights, and what it computes is read off
the graph (:mod:`mxhw.models.loaders.export`); so a model that computes something else is refused
instead of misread. Code of a folder is never run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mxhw.errors import UserError
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama
from mxhw.models.loaders.checked import (
    choose_context,
    make_config,
    make_llama,
    read_small,
    refuse,
    rows_to_pairs,
    shorten,
    weight_shapes,
)
from mxhw.models.loaders.export import FAMILIES, export_names
from mxhw.models.loaders.tokenizer import ModelTokenizer, load_tokenizer_json

__all__ = ["load_huggingface", "parameter_names", "read_config"]

_CONFIG_BYTES = 4 << 20
_MOST_LAYERS = 4096
_DTYPES = ("F32", "F16", "BF16")
_LAYER = {
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.q_proj.bias": "attention.wq.bias",
    "self_attn.k_proj.bias": "attention.wk.bias",
    "self_attn.v_proj.bias": "attention.wv.bias",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "post_attention_layernorm.weight": "feed_forward_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.gate.weight",
    "mlp.up_proj.weight": "feed_forward.up.weight",
    "mlp.down_proj.weight": "feed_forward.down.weight",
}


def load_huggingface(path: Path, context: int | None) -> tuple[Llama, ModelTokenizer, LlamaConfig]:
    """Load a model and its tokenizer.

    Raises
    ------
    UserError
        If a file is malformed, or the model computes what is not supported.
    ToolError
        If package ``transformers`` is missing.
    """
    file = path / "config.json"
    settings = _read_json(file)
    config = read_config(file, settings, context)
    names = parameter_names(config)
    places = _find_tensors(path, config, names)
    # A tied head is one parameter of two names.
    known = {**names, "lm_head.weight": "embedding.weight"} if config.tied else names
    for name, inner in export_names(file, settings, config).items():
        if known.get(name) != inner:
            raise UserError(f"{file}: model uses {name!r} as {inner!r}, which is not supported")
    tokenizer = _load_tokenizer(path, settings, config)
    weights = _read_weights(config, names, places)
    return make_llama(path, config, weights), tokenizer, config


def parameter_names(config: LlamaConfig) -> dict[str, str]:
    """Name in :class:`~mxhw.models.llama.Llama` of each parameter of the folder."""
    names = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.weight"}
    for index in range(config.layers):
        names |= {
            f"model.layers.{index}.{outer}": f"blocks.{index}.{inner}"
            for outer, inner in _LAYER.items()
            if config.qkv_bias or not outer.endswith("bias")
        }
    if not config.tied:
        names["lm_head.weight"] = "head.weight"
    return names


def _read_json(path: Path) -> dict[str, Any]:
    data = read_small(path, path.stem, limit=_CONFIG_BYTES)
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: file is no JSON: {shorten(error)}") from error
    if not isinstance(content, dict):
        raise refuse(path, "Content", "an object", type(content).__name__)
    return content


def _field(path: Path, settings: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = settings.get(name)
    if value is None:
        if default is None:
            raise UserError(f"{path}: field {name!r} is missing")
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        titles = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
        raise refuse(path, f"Field {name!r}", titles[kind], repr(value))
    return value


def read_config(path: Path, settings: Mapping[str, Any], context: int | None) -> LlamaConfig:
    """Shape of the model that a ``config.json`` describes.

    Parameters
    ----------
    path : Path
        The file, for messages.
    settings : mapping
        Its content.
    context : int, optional
        Positions, at most the model's.

    Raises
    ------
    UserError
        If a field is missing or malformed, or says what is not supported.
    """

    def number(name: str, default: int | None = None) -> int:
        value = _field(path, settings, name, int, default)
        if not 0 < value < 1 << 31:
            raise refuse(path, f"Field {name!r}", "positive and below 2**31", value)
        return value

    family = _field(path, settings, "model_type", str, None)
    if family not in FAMILIES:
        raise refuse(path, "Field 'model_type'", " or ".join(map(repr, FAMILIES)), repr(family))
    for name, wanted in (
        ("hidden_act", "silu"),
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("quantization_config", None),
    ):
        if settings.get(name, wanted) not in (wanted, None):
            raise refuse(path, f"Field {name!r}", f"{wanted!r}", repr(settings[name]))
    dim, heads = number("hidden_size"), number("num_attention_heads")
    layers = number("num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise refuse(path, "Field 'num_hidden_layers'", f"at most {_MOST_LAYERS}", layers)
    biased = _field(path, settings, "attention_bias", bool, False)
    if biased and family == "llama":
        raise refuse(path, "Field 'attention_bias'", "false", "true (the output has a bias too)")
    return make_config(
        path,
        vocabulary_size=number("vocab_size"),
        dim=dim,
        hidden=number("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_size=number("head_dim", max(1, dim // heads)),
        context=choose_context(path, number("max_position_embeddings", 2048), context),
        rope_theta=_rope_theta(path, settings),
        norm_epsilon=_field(path, settings, "rms_norm_eps", float, 1e-6),
        tied=_field(path, settings, "tie_word_embeddings", bool, False),
        qkv_bias=family == "qwen2",
    )


def _rope_theta(path: Path, settings: Mapping[str, Any]) -> float:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise refuse(path, "Field 'rope_parameters'", "an object", repr(rope))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise refuse(path, "Kind of the rotary embedding", "'default'", repr(kind))
    return _field(path, {**settings, **rope}, "rope_theta", float, 10000.0)


def _find_tensors(path: Path, config: LlamaConfig, names: Mapping[str, str]) -> dict[str, Path]:
    """The file of each parameter, after its shape and type are checked; nothing is read."""
    shapes = weight_shapes(config)
    places: dict[str, Path] = {}
    for file in _weight_files(path):
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 (it is no mapping)
                    if name in places:
                        raise refuse(file, f"Tensor {name!r}", "in one file", "in two")
                    inner = names.get(name)
                    if inner is None:
                        if name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq"):
                            continue
                        known = shorten(repr(name))
                        raise UserError(f"{file}: tensor {known} is no part of the model")
                    part = content.get_slice(name)
                    shape, dtype = tuple(part.get_shape()), part.get_dtype()
                    if shape != shapes[inner]:
                        raise refuse(file, f"Shape of {name!r}", f"{shapes[inner]}", shape)
                    if dtype not in _DTYPES:
                        raise refuse(file, f"Type of {name!r}", " or ".join(_DTYPES), dtype)
                    places[name] = file
        except SafetensorError as error:
            raise UserError(f"{file}: file is no valid safetensors: {shorten(error)}") from error
        except OSError as error:
            raise UserError(f"{file}: file cannot be read: {shorten(error)}") from error
    for name in names:
        if name not in places:
            raise UserError(f"{path}: tensor {name!r} is missing")
    return places


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        single = path / "model.safetensors"
        if single.is_file():
            return [single]
        pickles = [file.name for file in sorted(path.glob("pytorch_model*.bin"))]
        reason = (
            f"; {pickles[0]} is a pickle, which can run code and is never read" if pickles else ""
        )
        raise UserError(f"{path}: model.safetensors is missing{reason}")
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise refuse(index, "Field 'weight_map'", "an object", type(files).__name__)
    found = []
    for name in sorted({str(file) for file in files.values()}):
        # Only names of this folder's own files.
        if Path(name).name != name or not name.endswith(".safetensors") or not name.isprintable():
            raise refuse(index, "File of weights", "a .safetensors file of the folder", repr(name))
        found.append(path / name)
    return found


def _read_weights(
    config: LlamaConfig, names: Mapping[str, str], places: Mapping[str, Path]
) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        with safe_open(file, framework="pt") as content:
            for name in (name for name, place in places.items() if place == file):
                inner = names[name]
                value = content.get_tensor(name).to(torch.float32)
                # Queries and keys turn pairs that lie side by side here, in halves there.
                if ".wq." in inner:
                    value = rows_to_pairs(value, config.heads)
                elif ".wk." in inner:
                    value = rows_to_pairs(value, config.kv_heads)
                weights[inner] = value
    return weights


def _load_tokenizer(path: Path, settings: Mapping[str, Any], config: LlamaConfig) -> ModelTokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{path}: tokenizer.json is missing")

    def token(name: str) -> int | None:
        value = settings.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise refuse(path / "config.json", f"Field {name!r}", "a token number", repr(value))
        return value

    size, bos = config.vocabulary_size, token("bos_token_id")
    result = load_tokenizer_json(file, size, bos=bos, eos=token("eos_token_id"))
    # Whether texts begin with a token is the tokenizer's affair, not the configuration's.
    if not result.begins_texts():
        result.bos = None
    return result
