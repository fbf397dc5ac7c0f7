"""Files that are truncated, corrupted or hostile: one error that names the file and the field."""

import contextlib
import importlib
import json
import math
import os
import pickle
import re
import resource
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mxhw.errors import UserError
from mxhw.models.loaders import load_path
from mxhw.models.loaders.checked import read_small
from mxhw.models.loaders.tokenizer import load_tokenizer_json

gguf = pytest.importorskip("gguf", reason="package gguf is not installed")
files = importlib.import_module("tests.models.model_files")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="package transformers is missing"
)


@pytest.fixture(scope="module")
def model():
    return files.random_llama()


@pytest.fixture
def llama2c(tmp_path, model):
    files.write_tokenizer_bin(tmp_path / "tokenizer.bin", 272)
    return files.write_llama2c(tmp_path / "model.bin", model)


@pytest.fixture
def gguf_file(tmp_path, model):
    return files.write_gguf(tmp_path / "model.gguf", model)


@pytest.fixture
def folder(tmp_path, model):
    return files.write_huggingface(tmp_path / "model", model)


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        load_path(path, **options)
    return check_message(str(error.value))


def check_message(message):
    """One line that a terminal can show."""
    assert "\n" not in message
    assert len(message) < 1000
    return message


def patch(path, position, layout, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, position, *values)
    path.write_bytes(data)


def field_names():
    return ["dim", "hidden", "layers", "heads", "kv_heads", "vocabulary_size", "context"]


@pytest.mark.parametrize("index", range(7), ids=field_names())
@pytest.mark.parametrize("value", [0, -(1 << 31), (1 << 31) - 1])
def test_llama2c_fields_that_lie(llama2c, index, value):
    patch(llama2c, 4 * index, "<i", value)
    message = refusal(llama2c)
    assert message.startswith(f"{llama2c}: ")
    assert re.search(r" must be .*, not ", message), message


@pytest.mark.parametrize("count", [0, 3, 27, 28, 1000, -4])
def test_llama2c_truncated(llama2c, count):
    data = llama2c.read_bytes()
    llama2c.write_bytes(data[:count])
    message = refusal(llama2c)
    assert message.startswith(f"{llama2c}: ")
    assert "truncated" in message or "Size of the file must be" in message


def test_llama2c_size_is_told(llama2c):
    size = llama2c.stat().st_size
    with llama2c.open("ab") as file:
        file.write(b"\0")
    assert refusal(llama2c) == (
        f"{llama2c}: Size of the file must be {size:,} bytes, as its header says, not {size + 1:,}"
    )


def test_llama2c_rotary_tables_of_another_base(llama2c, model):
    tables = 2 * 4 * model.config.context * model.config.head_size // 2
    patch(llama2c, llama2c.stat().st_size - tables + 4 * 13, "<f", 0.25)
    assert refusal(llama2c) == (
        f"{llama2c}: Rotary cosines must be those of the base 10000, not another table"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(llama2c, value):
    patch(llama2c, 28 + 4 * 70, "<f", value)
    assert refusal(llama2c) == (
        f"{llama2c}: Tensor 'embedding.weight' must be finite, not with infinities or NaNs"
    )


@pytest.mark.parametrize(("version", "reason"), [(2, "int8 weights"), (7, "unknown")])
def test_llama2c_versions(llama2c, version, reason):
    llama2c.write_bytes(struct.pack("<Ii", 0x616B3432, version) + bytes(300))
    assert refusal(llama2c).startswith(
        f"{llama2c}: Version must be 0 or 1, not {version} ({reason}"
    )


def test_tokenizer_that_is_missing(llama2c):
    (llama2c.parent / "tokenizer.bin").unlink()
    assert refusal(llama2c) == (
        f"{llama2c}: no tokenizer is beside it (tok272.bin, tokenizer.bin, tokenizer.json); "
        f"name one with --tokenizer"
    )


@pytest.mark.parametrize(
    ("position", "layout", "value", "message"),
    [
        (8, "<I", 1 << 31, "Length of token 0 must be at most 65536, not 2147483648"),
        (8, "<I", 60000, "file is truncated: token 0 takes 60,000 bytes from byte 12, but it has "),
        (4, "<f", math.nan, "Score of token 0 must be finite, not nan"),
        (12, "<B", 0xFF, "Token 0 must be UTF-8, not b'\\xffunk>'"),
    ],
)
def test_tokenizer_bin(llama2c, position, layout, value, message):
    path = llama2c.parent / "tokenizer.bin"
    patch(path, position, layout, value)
    assert refusal(llama2c).startswith(f"{path}: {message}")


def test_tokenizer_of_another_model(llama2c):
    path = files.write_tokenizer_bin(llama2c.parent / "tokenizer.bin", 280)
    assert refusal(llama2c).startswith(
        f"{path}: Number of tokens must be 272, the model's, not more ("
    )


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "weights.ckpt"])
@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_pickles_are_never_read(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "zip":
        torch.save({"a": torch.zeros(2)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful()))
    assert refusal(path) == (
        f"{path}: file is a pickle, which can run code and is never read; save the model as "
        f"safetensors"
    )


def test_other_files(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"something")
    assert refusal(path) == (
        f"{path}: file must be a GGUF file, a .bin file of llama2.c or a Hugging Face folder"
    )
    assert refusal(tmp_path / "gone.bin") == (
        f"{tmp_path}/gone.bin: file cannot be read: No such file or directory"
    )
    assert refusal(tmp_path) == f"{tmp_path}/config.json: config cannot be read: No such file " + (
        "or directory"
    )


def test_what_is_no_regular_file(tmp_path, llama2c):
    pipe = tmp_path / "pipe.bin"
    os.mkfifo(pipe)
    assert refusal(pipe) == f"{pipe}: this is no regular file"
    assert refusal(llama2c, tokenizer=pipe) == f"{pipe}: this is no regular file"
    for name in ("config.json", "tokenizer.json"):
        with pytest.raises(UserError, match="this is no regular file"):
            read_small(pipe, name)


def test_context_that_is_too_long(llama2c):
    assert refusal(llama2c, context=65) == (
        f"Context must be 1 to 64, which {llama2c} allows, not 65"
    )


# GGUF.


def entry(data, name):
    """Place behind a tensor's name: axes, shape, type, offset."""
    raw = name.encode()
    return data.index(struct.pack("<Q", len(raw)) + raw) + 8 + len(raw)


@pytest.mark.parametrize(
    ("position", "layout", "value", "message"),
    [
        (4, "<I", 99, "Version must be 2 or 3, not 99"),
        (8, "<Q", 1 << 60, "Number of tensors must be at most "),
        (16, "<Q", 1 << 60, "Number of fields must be at most "),
        (24, "<Q", 1 << 60, "Length of name of a field must be at most 1024, not "),
    ],
)
def test_gguf_head(gguf_file, position, layout, value, message):
    patch(gguf_file, position, layout, value)
    assert refusal(gguf_file).startswith(f"{gguf_file}: {message}")


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (0, "<I", 9, "Number of axes of 'token_embd.weight' must be 1 to 4, not 9"),
        (4, "<Q", 1 << 60, None),
        (12, "<Q", 1 << 60, None),
        (20, "<I", 77, "Type of 'token_embd.weight' must be one that ggml has, not 77"),
        (24, "<Q", 1 << 62, "file is truncated: tensor 'token_embd.weight' takes 69,632 bytes"),
    ],
    ids=["axes", "columns", "rows", "type", "place"],
)
def test_gguf_tensors_that_lie(gguf_file, offset, layout, value, message):
    at = entry(gguf_file.read_bytes(), "token_embd.weight")
    patch(gguf_file, at + offset, layout, value)
    found = refusal(gguf_file)
    assert found.startswith(f"{gguf_file}: ")
    assert message is None or message in found
    assert message is not None or "truncated" in found or "must be behind" in found


def test_gguf_tensors_that_overlap(gguf_file):
    at = entry(gguf_file.read_bytes(), "blk.1.attn_q.weight")
    patch(gguf_file, at + 24, "<Q", 0)
    assert "must be behind the tensor before, not inside it" in refusal(gguf_file)


@pytest.mark.parametrize(
    ("key", "layout", "value", "message"),
    [
        ("llama.block_count", "<I", 1 << 31, "Numbers of heads and layers must be positive"),
        ("llama.embedding_length", "<I", 65, "Shape of 'token_embd.weight' must be (272, 65), not"),
        ("llama.attention.head_count", "<I", 3, "Number of heads must be a multiple of"),
        ("llama.attention.key_length", "<I", 8, "Size of heads must be one, 8, not 8 (rotary), 16"),
        ("llama.context_length", "<I", 0, "Context must be positive, not 0"),
        ("llama.rope.freq_base", "<f", -1.0, "Rope theta must be positive and finite, not -1.0"),
        ("tokenizer.ggml.eos_token_id", "<I", 999, "_token_id' must be below 272, not 999"),
    ],
)
def test_gguf_fields_that_lie(gguf_file, key, layout, value, message):
    at = entry(gguf_file.read_bytes(), key)
    patch(gguf_file, at + 4, layout, value)
    found = refusal(gguf_file)
    assert found.startswith(f"{gguf_file}: ")
    assert message in found


def test_gguf_counts_that_a_large_file_has_room_for(gguf_file):
    """An entry takes more memory than its bytes."""
    with gguf_file.open("r+b") as file:
        file.truncate(64 << 20)
    patch(gguf_file, 8, "<Q", 1 << 21)
    assert "Number of tensors must be at most 65536 in a file of this size" in refusal(gguf_file)


def write_fields(path, fields, tensors=0):
    """A GGUF file of fields: key, type, bytes."""
    data = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(fields))
    for key, kind, value in fields:
        name = key.encode()
        data += struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value
    path.write_bytes(data)
    return path


def text_value(text):
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([("a", 13, b"")], "Type of field 'a' must be 0 to 12, not 13"),
        ([("a", 9, struct.pack("<IQ", 9, 1))], "Type of the elements of field 'a' must be a num"),
        ([("a", 9, struct.pack("<IQ", 8, 1 << 60))], "Length of field 'a' must be at most 0, not"),
        ([("a", 9, struct.pack("<IQ", 4, 1 << 61))], "file is truncated: field 'a' takes "),
        ([("a", 8, struct.pack("<Q", 1 << 60))], "Length of field 'a' must be at most 16777216"),
        ([("a", 8, text_value(b"\xff"))], "Field 'a' must be UTF-8, not b'\\xff'"),
        ([("a", 4, bytes(4)), ("a", 4, bytes(4))], "Field 'a' must be there once, not again"),
        (
            [("general.alignment", 4, bytes(4))],
            "Field 'general.alignment' must be 1 to 1048576, not 0",
        ),
        (
            [("general.architecture", 8, text_value(b"x" * 100_000))],
            "Field 'general.architecture' must be llama or qwen2, not 'xxx",
        ),
        (
            [("general.architecture", 9, struct.pack("<IQ", 4, 9999) + bytes(4 * 9999))],
            "Field 'general.architecture' must be a text, not array([0,",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_gguf_fields_that_are_none(tmp_path, fields, message):
    path = write_fields(tmp_path / "model.gguf", fields)
    assert refusal(path).startswith(f"{path}: {message}")


def test_gguf_of_another_architecture(gguf_file):
    gguf_file.write_bytes(gguf_file.read_bytes().replace(b"llama", b"mamba"))
    assert refusal(gguf_file) == (
        f"{gguf_file}: Field 'general.architecture' must be llama or qwen2, not 'mamba'"
    )


# Hugging Face folders. What is refused here is refused before the model is exported.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "Field 'model_type' must be 'llama' or 'qwen2', not 'gpt2'"),
        ({"hidden_size": "64"}, "Field 'hidden_size' must be an integer, not '64'"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"hidden_size": 1 << 60}, "Field 'hidden_size' must be positive and below 2**31, not "),
        ({"num_hidden_layers": -1}, "Field 'num_hidden_layers' must be positive and below 2**31"),
        ({"num_hidden_layers": 1 << 30}, "Field 'num_hidden_layers' must be at most 4096, not "),
        ({"num_attention_heads": 3}, "Number of heads must be a multiple of the number of "),
        ({"rms_norm_eps": True}, "Field 'rms_norm_eps' must be a number, not True"),
        ({"rms_norm_eps": math.nan}, "Norm epsilon must be positive and finite, not nan"),
        ({"hidden_act": "gelu"}, "Field 'hidden_act' must be 'silu', not 'gelu'"),
        ({"mlp_bias": True}, "Field 'mlp_bias' must be False, not True"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "Kind of the rotary embedding must be 'default', not 'llama3'",
        ),
        ({"eos_token_id": 4000}, "Token that ends a text must be below 272, not 4000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_folder_settings(folder, change, message, monkeypatch):
    from mxhw.models.loaders import huggingface

    monkeypatch.setattr(huggingface, "export_names", lambda *arguments: {})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null", "\udcff"])
def test_folder_settings_that_are_none(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refusal(folder).startswith(f"{folder}/config.json: ")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.norm.weight", None, "tensor 'model.norm.weight' is missing"),
        ("model.norm.weight", torch.zeros(63), "Shape of 'model.norm.weight' must be (64,), not"),
        (
            "model.norm.weight",
            torch.zeros(64, dtype=torch.int32),
            "Type of 'model.norm.weight' must be F32 or F16 or BF16, not I32",
        ),
        ("model.extra", torch.zeros(1), "tensor 'model.extra' is no part of the model"),
    ],
)
def test_folder_weights(folder, name, change, message):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop(name, None)
    if change is not None:
        weights[name] = change
    save_file(weights, path)
    assert message in refusal(folder)


def test_folder_weights_that_are_cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(folder).startswith(f"{path}: file is no valid safetensors: ")
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert refusal(folder).startswith(f"{path}: file is no valid safetensors: ")


def test_folder_of_pickles(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    assert refusal(folder) == (
        f"{folder}: model.safetensors is missing; pytorch_model.bin is a pickle, which can run "
        f"code and is never read"
    )


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "x.bin", "", "a\0.safetensors", "\ud800.safetensors"],
)
def test_folder_index_that_leads_out(folder, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "must be a .safetensors file of the folder, not " in refusal(folder)


def write_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor(shape, *, dtype="F32", offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"model.norm.weight": tensor([1 << 60], offsets=(0, 1 << 62))}, "no valid safetensors"),
        ({"model.norm.weight": tensor([1 << 31, 1 << 33])}, "no valid safetensors"),
        ({"model.norm.weight": tensor([-1])}, "no valid safetensors"),
        ({"model.norm.weight": tensor([1], offsets=(4, 0))}, "no valid safetensors"),
        ({"model.norm.weight": tensor([1], dtype="PICKLE")}, "no valid safetensors"),
        ({"model.norm.weight": tensor([1])}, "Shape of 'model.norm.weight' must be (64,), not (1,"),
        ({"model.norm.weight": tensor([])}, "Shape of 'model.norm.weight' must be (64,), not ()"),
        ({"x" * 5000 + "\n": tensor([1])}, "is no part of the model"),
        ({"__metadata__": {"a": 1}}, "no valid safetensors"),
        (b"[" * 100_000, "no valid safetensors"),
        (b"\xff{}", "no valid safetensors"),
        (b"", "no valid safetensors"),
    ],
    ids=lambda value: "" if isinstance(value, dict | bytes) else value[:20],
)
def test_safetensors_headers_that_lie(folder, header, reason):
    path = folder / "model.safetensors"
    write_safetensors(path, header, bytes(4))
    message = refusal(folder)
    assert message.startswith(f"{path}: ")
    assert reason in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "Content must be an object, not list"),
        ("{}", "Field 'weight_map' must be an object, not NoneType"),
        ('{"weight_map": [1]}', "Field 'weight_map' must be an object, not list"),
        ('{"weight_map": {"a": 3}}', "File of weights must be a .safetensors file of the folder, "),
        ('{"weight_map": {"a": {"b": [2]}}}', "File of weights must be a .safetensors file of "),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: file cannot be read"),
        ("[" * 100_000, "file is no JSON"),
    ],
)
def test_folder_index_that_is_none(folder, content, message):
    (folder / "model.safetensors.index.json").write_text(content)
    assert message in refusal(folder)


def test_folder_tensor_in_two_files(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "other.safetensors")
    names = {"a": "model.safetensors", "b": "other.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert " must be in one file, not in two" in refusal(folder)


@needs_transformers
@pytest.mark.parametrize(
    "fields",
    [
        # The base class of configurations makes a table of so many labels.
        {"num_labels": 1 << 40},
        {"attn_implementation": "someone/their-kernel"},
        {"_attn_implementation": "someone/their-kernel"},
        {"auto_map": {"AutoModelForCausalLM": "code.Model"}},
        {"per_layer_config": {"0": {"hidden_size": 1 << 40}}},
        {"to_dict": "x", "torch_dtype": "float1", "architectures": 3, "transformers_version": []},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_folder_settings_that_make_a_library_work(tmp_path, fields):
    """They are not the model's, and change nothing."""
    folder = files.write_huggingface(tmp_path / "model", tiny())
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    model, *_ = load_path(folder)
    assert model.config.layers == 1


HOSTILE_TOKENIZERS = {
    "padding": {
        "padding": {
            "strategy": {"Fixed": 1 << 60},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    },
    "multiple of nothing": {
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": 0,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    },
    "truncation": {
        "truncation": {
            "direction": "Right",
            "max_length": 1,
            "strategy": "LongestFirst",
            "stride": 9,
        }
    },
}


@pytest.mark.parametrize("name", HOSTILE_TOKENIZERS)
def test_tokenizers_that_make_a_library_work(tmp_path, name):
    path = tmp_path / "tokenizer.json"
    files.write_tokenizer_json(path, 272)
    path.write_text(json.dumps(json.loads(path.read_text()) | HOSTILE_TOKENIZERS[name]))
    tokenizer = load_tokenizer_json(path, 272, bos=None, eos=None)
    assert tokenizer.decode(tokenizer.encode("a")) == "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "tokenizer is invalid: "),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "tokenizer is invalid: "),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}, "tokenizer is invalid: "),
        (
            {"model": {"type": "WordLevel", "vocab": {"a": 4_000_000_000}, "unk_token": "a"}},
            "Tokens must be numbered below 272, the model's, not 4000000000",
        ),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}, ""),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
            "tokenizer is invalid: ",
        ),
        ({"pre_tokenizer": {"type": "Other"}}, "tokenizer is invalid: "),
        ({"added_tokens": [{"id": 1 << 40}]}, "tokenizer is invalid: "),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_tokenizer_json(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    files.write_tokenizer_json(path, 272)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as error:
        load_tokenizer_json(path, 272, bos=None, eos=None)
    assert check_message(str(error.value)).startswith(f"{path}: {message}")


def test_folder_without_a_tokenizer(folder, monkeypatch):
    from mxhw.models.loaders import huggingface

    monkeypatch.setattr(huggingface, "export_names", lambda *arguments: {})
    (folder / "tokenizer.json").write_text("{}")
    assert refusal(folder).startswith(f"{folder}/tokenizer.json: tokenizer is invalid: ")
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == f"{folder}: tokenizer.json is missing"


# Fuzzing: whatever the bytes, a model or one sentence, and no more memory than for good files. The
# files are small, so that their structure is hit often.

TINY = {"vocabulary_size": 260, "dim": 4, "hidden": 4, "layers": 1, "heads": 1, "kv_heads": 1}
#: What lies about its size asks for gigabytes; the peak of a process that has run many tests moves
#: by 200 MB from run to run.
_ALLOWANCE = 512 << 20


def mutate(data, edits):
    data = bytearray(data)
    for kind, place, value in edits:
        place %= max(1, len(data))
        if kind == "byte" and data:
            data[place] = value & 0xFF
        elif kind == "word":
            data[place : place + 4] = struct.pack("<I", value & 0xFFFFFFFF)
        elif kind == "long":
            data[place : place + 8] = struct.pack("<Q", value)
        elif kind == "cut":
            del data[place : place + value % 64]
        elif kind == "end":
            del data[place:]
        else:
            data[place:place] = bytes(value % 64)
    return bytes(data)


#: Places in the first bytes, where sizes are, and anywhere.
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["byte", "word", "long", "cut", "end", "insert"]),
        st.one_of(st.integers(0, 400), st.integers(0, 1 << 20)),
        st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, 1 << 31, 1 << 60])),
    ),
    min_size=1,
    max_size=4,
)
FUZZ = settings(
    max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def survive(path):
    """Load a file that may be anything."""
    message = str(path)
    try:
        model, *_ = load_path(path)
    except UserError as error:
        message = check_message(str(error))
    else:
        assert all(value.isfinite().all() for value in model.parameters())
    assert str(path) in message


@contextlib.contextmanager
def bounded_memory(path):
    """Refuse that the process grows by more than an allowance; files and models here are tiny."""
    # What is imported when it is first needed does not count.
    load_path(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < _ALLOWANCE


def tiny():
    import dataclasses

    return files.random_llama(dataclasses.replace(files.BASE, **TINY, head_size=4, context=8))


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 1])
def test_fuzzed_llama2c(tmp_path, version):
    files.write_tokenizer_bin(tmp_path / "tokenizer.bin", 260)
    path = files.write_llama2c(tmp_path / "model.bin", tiny(), version=version)
    good = path.read_bytes()

    @FUZZ
    @given(EDITS)
    def fuzz(edits):
        path.write_bytes(mutate(good, edits))
        survive(path)

    with bounded_memory(tmp_path / "model.bin"):
        fuzz()


@pytest.mark.slow
def test_fuzzed_tokenizer_bin(tmp_path):
    path = files.write_tokenizer_bin(tmp_path / "tokenizer.bin", 260)
    files.write_llama2c(tmp_path / "model.bin", tiny())
    good = path.read_bytes()

    @FUZZ
    @given(EDITS)
    def fuzz(edits):
        path.write_bytes(mutate(good, edits))
        message = str(path)
        try:
            load_path(tmp_path / "model.bin")
        except UserError as error:
            message = check_message(str(error))
        assert str(path) in message

    with bounded_memory(tmp_path / "model.bin"):
        fuzz()


@pytest.mark.slow
def test_fuzzed_gguf(tmp_path):
    path = files.write_gguf(tmp_path / "model.gguf", tiny())
    good = path.read_bytes()

    @FUZZ
    @given(EDITS)
    def fuzz(edits):
        path.write_bytes(mutate(good, edits))
        survive(path)

    with bounded_memory(path):
        fuzz()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"]
)
def test_fuzzed_folder(tmp_path, monkeypatch, name):
    from mxhw.models.loaders import huggingface

    # The export takes seconds, and what reaches it has passed all checks.
    monkeypatch.setattr(huggingface, "export_names", lambda *arguments: {})
    folder = files.write_huggingface(tmp_path / "model", tiny())
    path = folder / name
    if "index" in name:
        names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    good = path.read_bytes()

    @FUZZ
    @given(EDITS)
    def fuzz(edits):
        path.write_bytes(mutate(good, edits))
        survive(folder)

    with bounded_memory(folder):
        fuzz()


#: Values of JSON, and the numbers that sizes lie with.
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1, 3, 1 << 31, 1 << 40, 1 << 60, 1 << 64]),
        st.floats(),
        st.text(max_size=6),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)
GRAFTS = st.lists(
    st.tuples(st.lists(st.integers(0, 400), min_size=1, max_size=4), JSON), min_size=1, max_size=3
)


def graft(tree, way, value):
    """Put a value at a place of a tree; a way says which branch to take at every fork."""
    for depth, step in enumerate(way):
        if not isinstance(tree, dict | list) or not tree:
            return
        key = list(tree)[step % len(tree)] if isinstance(tree, dict) else step % len(tree)
        if depth == len(way) - 1:
            tree[key] = value
        else:
            tree = tree[key]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"]
)
def test_fuzzed_structure(tmp_path, monkeypatch, name):
    """Good JSON with wrong values: what random bytes seldom are."""
    from mxhw.models.loaders import huggingface

    monkeypatch.setattr(huggingface, "export_names", lambda *arguments: {})
    folder = files.write_huggingface(tmp_path / "model", tiny())
    path = folder / name
    data = b""
    if "index" in name:
        names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
        good = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
        path.write_text(good)
    elif name.endswith(".safetensors"):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        good, data = content[8 : 8 + length], content[8 + length :]
    else:
        good = path.read_text()

    @FUZZ
    @given(GRAFTS)
    def fuzz(grafts):
        tree = json.loads(good)
        for way, value in grafts:
            graft(tree, way, value)
        if data:
            write_safetensors(path, tree, data)
        else:
            path.write_text(json.dumps(tree))
        survive(folder)

    with bounded_memory(folder):
        fuzz()
