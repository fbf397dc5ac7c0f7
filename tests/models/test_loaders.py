"""Models from outside: the same weights from every kind of file."""

import dataclasses
import importlib
import warnings

import pytest
import torch

from mxhw.compiler.lower import lower
from mxhw.models.config import LlamaConfig
from mxhw.models.greedy import generate
from mxhw.models.llama import LlamaDecode
from mxhw.models.loaders import fingerprint, is_model_path, load_path, model_name
from mxhw.models.loaders.checked import DEFAULT_CONTEXT, rows_to_pairs
from mxhw.sw.golden.tensor import MXTensor
from tests.data import data_file

gguf = pytest.importorskip("gguf", reason="package gguf is not installed")
files = importlib.import_module("tests.models.model_files")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="package transformers is missing"
)

CONFIGS = {
    "grouped": {},
    "full attention": {"heads": 2, "kv_heads": 2, "head_size": 32},
    "one key head": {"heads": 4, "kv_heads": 1},
    "heads of 8": {"heads": 8, "kv_heads": 4, "head_size": 8},
    "own head": {"tied": False},
    "odd widths": {"dim": 40, "heads": 5, "kv_heads": 5, "head_size": 8, "hidden": 52},
}
MORE_CONFIGS = {
    **CONFIGS,
    "biases": {"qkv_bias": True},
    "theta": {"rope_theta": 500000.0, "norm_epsilon": 1e-6},
    "wide heads": {"heads": 2, "kv_heads": 1, "head_size": 64},
    "heads of 128": {"heads": 1, "kv_heads": 1, "head_size": 128},
}


def model_of(changes):
    return files.random_llama(dataclasses.replace(files.BASE, **changes))


def assert_same(found, expected):
    """Both lower to one graph with the same constants."""
    assert found.config == expected.config
    for make in (lambda model: model, LlamaDecode):
        left, right = lower(make(found)), lower(make(expected))
        assert str(left.graph) == str(right.graph)
        for node in left.graph.nodes:
            if node.op == "get_attr":
                one, other = (getattr(graph, node.target) for graph in (left, right))
                if isinstance(one, MXTensor):
                    assert torch.equal(one.elements, other.elements)
                    assert torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_llama2c(tmp_path, changes, version):
    model = model_of(changes)
    path = files.write_llama2c(tmp_path / "model.bin", model, version=version)
    files.write_tokenizer_bin(tmp_path / "tokenizer.bin", 272)
    found, tokenizer, config = load_path(path)
    assert config == model.config
    assert_same(found, model)
    assert len(tokenizer) == 272


@pytest.mark.parametrize("changes", MORE_CONFIGS.values(), ids=MORE_CONFIGS)
def test_gguf(tmp_path, changes):
    model = model_of(changes)
    found, tokenizer, config = load_path(files.write_gguf(tmp_path / "model.gguf", model))
    assert config == model.config
    assert_same(found, model)
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)


#: Each export takes seconds: the rest is left to the slow tests.
EXPORTED = [
    pytest.param(
        changes,
        id=name,
        marks=[] if name in ("grouped", "biases") else pytest.mark.slow,
    )
    for name, changes in MORE_CONFIGS.items()
]


@needs_transformers
@pytest.mark.parametrize("changes", EXPORTED)
def test_huggingface(tmp_path, changes):
    model = model_of(changes)
    folder = files.write_huggingface(tmp_path / "model", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, tokenizer, config = load_path(folder)
    assert config == model.config
    assert_same(found, model)
    assert tokenizer.eos == 2


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("changes", MORE_CONFIGS.values(), ids=MORE_CONFIGS)
def test_huggingface_computes_the_same(tmp_path, changes):
    """The folder is one that transformers itself reads, and the logits agree."""
    import transformers

    model = model_of(changes)
    folder = files.write_huggingface(tmp_path / "model", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(272, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(load_path(folder)[0](tokens), expected, rtol=1e-3, atol=1e-4)


@needs_transformers
def test_folder_in_parts(tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    model = model_of({})
    folder = files.write_huggingface(tmp_path / "model", model)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate((list(weights)[:5], list(weights)[5:])):
        file = f"model-{number}.safetensors"
        save_file({name: weights[name].half() for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = load_path(folder)[0]
    wanted = model.blocks[1].attention.wq.weight.half().float()
    assert torch.equal(found.blocks[1].attention.wq.weight, wanted)


def test_gguf_blocks(tmp_path):
    model = model_of({"hidden": 64})
    kind = gguf.GGMLQuantizationType.Q8_0
    found, *_ = load_path(files.write_gguf(tmp_path / "model.gguf", model, kind=kind))
    for name, value in model.weights().items():
        loaded = found.weights()[name]
        if value.dim() == 1:
            assert torch.equal(loaded, value)
        else:
            assert 0 < (loaded - value).abs().max() < value.abs().max() / 100


def test_pairs_and_halves():
    rows = torch.arange(16).reshape(16, 1)
    assert torch.equal(rows_to_pairs(files.split_halves(rows, 2), 2), rows)
    # Rows 0 and 4 of a head of 8 are its first pair.
    assert rows_to_pairs(rows, 2).flatten().tolist() == [
        *(0, 4, 1, 5, 2, 6, 3, 7),
        *(8, 12, 9, 13, 10, 14, 11, 15),
    ]


def test_context(tmp_path):
    long = dataclasses.replace(files.BASE, context=2 * DEFAULT_CONTEXT, layers=1)
    model = files.random_llama(long)
    path = files.write_gguf(tmp_path / "model.gguf", model)
    assert load_path(path)[2].context == DEFAULT_CONTEXT
    assert load_path(path, context=96)[2].context == 96
    tokens = torch.arange(20).unsqueeze(0)
    torch.testing.assert_close(load_path(path, context=96)[0](tokens), model(tokens))


def test_tokenizers_agree(tmp_path):
    model = model_of({})
    path = files.write_llama2c(tmp_path / "model.bin", model)
    files.write_tokenizer_bin(tmp_path / "tok272.bin", 272)
    one = load_path(path)[1]
    other = load_path(files.write_gguf(tmp_path / "model.gguf", model))[1]
    for text in ("abab ab a", "", "caf\u00e9 \u4f60", "a  b\n"):
        assert one.encode(text) == other.encode(text)
        assert one.decode(one.encode(text)) == text
    names = files.pieces(272)
    assert [names[i] for i in one.encode("ab ab")] == ["<s>", "\u2581ab", "\u2581ab"]


def test_names_and_fingerprints(tmp_path):
    model = model_of({})
    path = files.write_gguf(tmp_path / "my.model.gguf", model)
    assert model_name(str(path)) == "my.model"
    assert model_name(str(tmp_path)) == tmp_path.name
    assert is_model_path(str(path))
    assert is_model_path("model.bin")
    assert not is_model_path("llama")
    before = fingerprint(path)
    assert before == fingerprint(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fingerprint(path) != before


def test_stories260k():
    model, tokenizer, config = load_path(data_file("stories260K.bin"))
    assert config == LlamaConfig(
        hidden=172, heads=8, kv_heads=4, head_size=8, context=512, vocabulary_size=512
    )
    text = tokenizer.decode(generate(model, [1], 40))
    start = "Once upon a time, there was a little girl named Lily. She loved to play outside in"
    assert text.startswith(start)
