import dataclasses
import hashlib
import itertools
import json
import lzma
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mxhw.errors import UserError
from mxhw.models import bundled, evaluate, train
from mxhw.models.bundled import MODELS, BundledModel, load, load_from
from mxhw.models.config import LlamaConfig
from mxhw.models.evaluate import bits_per_byte, read_stories
from mxhw.models.greedy import generate, generate_cached
from mxhw.models.llama import LlamaDecode
from mxhw.models.tokenizer import BOS, EOS, UNK, Tokenizer, train_tokenizer
from tests.data import data_file

WORDS = ["cat", "dog", "sun", "tree", "ran", "sat", "big", "red", "the", "a", "was", "happy", "Tom"]


def stories(count, seed):
    random = np.random.default_rng(seed)
    return [
        " ".join(random.choice(WORDS, int(random.integers(5, 40)))).capitalize() + "."
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def llama():
    return load("llama")


# Tokenizer


@given(st.text(st.sampled_from("\n\t" + "".join(map(chr, range(32, 127))))))
def test_ascii_round_trip(text):
    tokenizer = Tokenizer.load(MODELS["llama"].tokenizer)
    ids = tokenizer.encode(text)
    assert ids[0] == BOS
    assert not {UNK, EOS} & set(ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["<bos>", "<unk> <eos>", "  ", " two  spaces ", "\n\n", ""])
def test_awkward_texts_round_trip(llama, text):
    ids = llama[1].encode(text)
    assert ids.count(BOS) == 1
    assert llama[1].decode(ids) == text


def test_typographic_characters_become_ascii(llama):
    tokenizer = llama[1]
    text = (
        "\u201cHi,\u201d it\u2019s \u2018me\u2019 \u2014 yes\u2026\r\n"
        "\u00e2\u20ac\u0153No\u00e2\u20ac\u2122"
    )
    assert tokenizer.decode(tokenizer.encode(text)) == "\"Hi,\" it's 'me' - yes...\n\"No'"
    assert tokenizer.normalize(text) == tokenizer.decode(tokenizer.encode(text))


def test_unknown_characters(llama):
    tokenizer = llama[1]
    for text in ("caf\u00e9", "a\u2581b", "\x00", "\U0001f600"):
        assert UNK in tokenizer.encode(text)
        assert "\ufffd" in tokenizer.decode(tokenizer.encode(text))


def test_pieces_join_to_the_text(llama):
    tokenizer = llama[1]
    ids = tokenizer.encode('Once upon a time, Lily said "hi".')
    assert "".join(tokenizer.pieces(iter(ids))) == tokenizer.decode(ids)
    assert "".join(map(tokenizer.piece, ids)) == " " + tokenizer.decode(ids)
    assert tokenizer.decode(ids[3:]) == "".join(map(tokenizer.piece, ids[3:]))
    for number in (-1, 512):
        with pytest.raises(IndexError, match=f"between 0 and 511, not {number}"):
            tokenizer.piece(number)


def test_tokenizer_vocabulary(llama):
    tokenizer = llama[1]
    assert len(tokenizer) == 512
    assert len({tokenizer.piece(number) for number in range(3, 512)}) == 509


@pytest.mark.parametrize("text", ["", "{}", "not JSON"])
def test_invalid_tokenizer(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is invalid"):
        Tokenizer.load(path)


def test_missing_tokenizer(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_tokenizer_training_limits():
    with pytest.raises(ValueError, match="at least 100 tokens, not 99"):
        train_tokenizer(["text"], 99)
    with pytest.raises(ValueError, match="Texts must be enough for 512 tokens, not"):
        train_tokenizer(["some text"])


# Loading


def test_bundled_model(llama):
    model, tokenizer, config = llama
    assert config == LlamaConfig()
    assert len(tokenizer) == config.vocabulary_size
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())
    assert sum(value.numel() for value in model.parameters()) == 248_512
    size = sum(path.stat().st_size for path in MODELS["llama"].directory.iterdir())
    assert MODELS["llama"].weights.stat().st_size < 1_200_000
    assert size < 2_000_000


def test_weights_suit_shared_scales(llama):
    # One outlier would take the bits of the 31 weights that share its scale.
    for name, value in llama[0].named_parameters():
        if value.ndim == 2:
            rows = value.unflatten(1, (-1, 32))
            ratio = rows.abs().amax(-1) / rows.square().mean(-1).sqrt()
            assert ratio.max() < 4.5, name  # at most sqrt(32)
            assert ratio.median() < 3, name
            assert value.abs().max() < 20 * value.std(), name


def copy(folder):
    original = MODELS["llama"]
    for path in (original.weights, original.tokenizer, original.config):
        shutil.copy(path, folder)
    return BundledModel("llama", "copy", folder)


def resign(model, path):
    description = json.loads(model.config.read_text())
    description["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    model.config.write_text(json.dumps(description))


def test_unknown_model():
    with pytest.raises(UserError, match="Model must be one of llama, not 'gpt'"):
        load("gpt")


def test_corrupt_weights(tmp_path, monkeypatch):
    model = copy(tmp_path)
    load_from(model)
    data = bytearray(model.weights.read_bytes())
    data[-100] ^= 1
    model.weights.write_bytes(data)
    good = json.loads(model.config.read_text())["sha256"]["llama.safetensors"]
    bad = hashlib.sha256(data).hexdigest()
    monkeypatch.setitem(bundled.MODELS, "llama", model)
    message = f"Weights of 'llama' are corrupt: SHA-256 of llama.safetensors is {bad}, not {good}"
    with pytest.raises(UserError) as caught:
        load("llama")
    assert str(caught.value) == message


def test_corrupt_tokenizer(tmp_path):
    model = copy(tmp_path)
    with model.tokenizer.open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="Tokenizer of 'llama' is corrupt: SHA-256 of tokenizer"):
        load_from(model)


@pytest.mark.parametrize("part", ["weights", "tokenizer", "config"])
def test_missing_file(tmp_path, part):
    model = copy(tmp_path)
    path = getattr(model, part)
    path.unlink()
    with pytest.raises(UserError, match=f"cannot be read: .*{path.name}: No such file"):
        load_from(model)


def drop(weights):
    del weights["norm.weight"]


def add(weights):
    weights["extra"] = torch.zeros(2)


def transpose(weights):
    weights["blocks.0.attention.wk.weight"] = torch.zeros(64, 32)


def halve(weights):
    weights["norm.weight"] = weights["norm.weight"].half()


def poison(weights):
    weights["norm.weight"][3] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "tensor 'norm.weight' is missing"),
        (add, "tensor 'extra' is not part of the model"),
        (transpose, r"shape of 'blocks.0.attention.wk.weight' must be \(32, 64\), not \(64, 32\)"),
        (halve, "type of 'norm.weight' must be torch.float32, not torch.float16"),
        (poison, "tensor 'norm.weight' must be finite"),
    ],
)
def test_wrong_tensors(tmp_path, change, message):
    model = copy(tmp_path)
    weights = load_file(model.weights)
    change(weights)
    save_file(weights, model.weights)
    resign(model, model.weights)
    with pytest.raises(UserError, match=f"Weights of 'llama' are corrupt: {message}"):
        load_from(model)


def test_weights_that_are_no_safetensors(tmp_path):
    model = copy(tmp_path)
    model.weights.write_bytes(b"\x80\x04N.")
    resign(model, model.weights)
    with pytest.raises(UserError, match="Weights of 'llama' are corrupt"):
        load_from(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Configuration of 'llama' is corrupt"),
        ("[]", "Configuration of 'llama' is corrupt: it is not an object"),
        ("{}", "Configuration of 'llama' is corrupt: it has no SHA-256 values"),
        (
            '{"sha256": {}, "architecture": {"heads": 3, "kv_heads": 2}}',
            "Configuration of 'llama' is corrupt: Number of heads must be a multiple",
        ),
        (
            '{"sha256": {}, "architecture": 3}',
            "Configuration of 'llama' is corrupt: its architecture is not an object",
        ),
    ],
)
def test_invalid_configuration(tmp_path, text, message):
    model = copy(tmp_path)
    model.config.write_text(text)
    with pytest.raises(UserError, match=message):
        load_from(model)


# Quality


def test_text_is_a_story(llama):
    model, tokenizer, _ = llama
    ids = tokenizer.encode("Once upon a time")
    ids += generate_cached(LlamaDecode(model), ids, 100)
    text = tokenizer.decode(ids)
    words = text.replace(",", " ").replace(".", " ").split()
    assert text.startswith("Once upon a time")
    common = ["there", "was", "a", "little", "to", "the", "and", "her", "his", "named", "day"]
    assert len(set(words)) > 25
    assert sum(word in common for word in words) > len(words) / 5


def test_decode_tells_the_same_text(llama):
    model, tokenizer, _ = llama
    ids = tokenizer.encode("One day, a boy")
    assert generate_cached(LlamaDecode(model), ids, 30) == generate(model, ids, 30)


def test_validation_bits_per_byte(llama):
    path = data_file("tinystories_valid.txt")
    model, tokenizer, config = llama
    measured = bits_per_byte(model, tokenizer, read_stories(path)[:120], config.context)
    assert measured <= 0.97
    described = json.loads(MODELS["llama"].config.read_text())["validation"]["bits_per_byte"]
    assert measured == pytest.approx(described, abs=2e-4)


def test_evaluate_command(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time.<|endoftext|>xxxxxxx")
    assert evaluate.main([f"{path}:1"]) == 0
    assert "17 bytes" in capsys.readouterr().out
    assert evaluate.main([str(path)]) == 0
    assert "24 bytes" in capsys.readouterr().out
    assert evaluate.main([str(path), "--model", "gpt"]) == 1
    assert "Model must be one of llama, not 'gpt'" in capsys.readouterr().err


# Training

SMALL = [
    "--vocabulary-size", "128", "--dim", "32", "--hidden", "32", "--layers", "2",
    "--context", "32", "--steps", "8", "--batch", "4", "--warmup", "2", "--report-every", "4",
]  # fmt: skip


def run(tmp_path, out, *more):
    text = tmp_path / "text.txt"
    packed = tmp_path / "more.txt.xz"
    text.write_text("\n<|endoftext|>\n".join(stories(60, 0)))
    packed.write_bytes(lzma.compress("<|endoftext|>".join(stories(60, 1)).encode()))
    out = tmp_path / out
    status = train.main(
        ["--text", f"{text}:2", "--text", str(packed), "--held-out", f"{text}:5"]
        + ["--out", str(out), *SMALL, *more]
    )
    assert status == 0
    return out


def test_training_is_reproducible(tmp_path, capsys):
    first, second, other = (
        run(tmp_path, name, "--seed", seed) for name, seed in (("a", "3"), ("b", "3"), ("c", "4"))
    )
    for name in ("llama.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "llama.safetensors").read_bytes() != (other / "llama.safetensors").read_bytes()
    model, tokenizer, config = load_from(BundledModel("llama", "test", first))
    assert (config.dim, config.layers, len(tokenizer)) == (32, 2, 128)
    assert json.loads((first / "config.json").read_text())["validation"]["stories"] == 5
    assert "bits/byte" in capsys.readouterr().err


def test_training_continues(tmp_path):
    first = run(tmp_path, "first")
    second = run(tmp_path, "second", "--start", str(first), "--matrix-rate", "1e-9",
                 "--vector-rate", "1e-9")  # fmt: skip
    ours, theirs = (load_file(folder / "llama.safetensors") for folder in (first, second))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-6)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


def test_training_learns():
    config = LlamaConfig(vocabulary_size=16, dim=32, hidden=32, layers=1, context=16)
    losses = []
    recipe = train.Recipe(steps=60, batch=4, warmup=5)
    text = [np.array([1, *range(3, 14), 2], dtype=np.uint16)] * 20
    model, used = train.train(config, recipe, text, lambda step, loss, *_: losses.append(loss))
    assert used == recipe
    assert losses[0] > 2.5
    assert losses[-1] < 0.5
    assert generate(model, [1, 3], 5) == [4, 5, 6, 7, 8]


def test_fused_attention_is_the_same():
    exact = train.CausalAttention(4, 2, 8)
    fused = train._FusedAttention(4, 2, 8)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 9, 4, 8, generator=generator)
    k, v = torch.randn(2, 3, 9, 2, 8, generator=generator)
    position = torch.arange(9)
    torch.testing.assert_close(fused(q, k, v, position), exact(q, k, v, position))


def test_muon_agrees_with_pytorch():
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 6), (8, 4), (4, 8), (4, 8)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    results = []
    for make in (
        lambda p: train.Muon(p, 0.02, 0.95, 0.1),
        lambda p: torch.optim.Muon(p, 0.02, 0.1, momentum=0.95),
    ):
        matrices = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = make(matrices)
        random = torch.Generator().manual_seed(1)
        for _ in range(4):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=random)
            optimizer.step()
        results.append(matrices)
    # PyTorch's iterates in bfloat16.
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_rate():
    recipe = train.Recipe(steps=100, warmup=10, decay=0.4)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:61] == [1.0] * 52
    assert rates[80] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 40)


@pytest.mark.parametrize("step", [1, 17, 40, 59, 60, 99])
def test_shortened_run_is_the_start_of_a_shorter_one(step):
    recipe = train.Recipe(steps=100, warmup=10, decay=0.4)
    short = recipe.shortened(step)
    assert short.steps <= 100
    assert step <= short.steps
    for before in range(min(step, 60)):
        assert short.rate(before) == recipe.rate(before)


def test_time_limit_ends_training():
    config = LlamaConfig(vocabulary_size=16, dim=32, hidden=32, layers=1, context=16)
    text = [np.arange(3, 16, dtype=np.uint16)] * 20
    recipe = train.Recipe(steps=10_000_000, batch=2, warmup=2)
    model, used = train.train(config, recipe, text, seconds=0.2)
    again, _ = train.train(config, used, text)
    assert 1 <= used.steps < 100_000
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_pack_uses_every_story():
    texts = [np.full(7, number, dtype=np.uint16) for number in range(30)]
    rows = list(itertools.islice(train.pack(texts, 4, 5, np.random.default_rng(0)), 10))
    assert all(row.shape == (4, 5) for row in rows)
    counts = torch.bincount(torch.cat(rows).flatten(), minlength=30)
    assert counts.sum() == 200
    assert counts.max() <= 7
    with pytest.raises(UserError, match="Texts must have at least 400 tokens, not 210"):
        next(train.pack(texts, 4, 100, np.random.default_rng(0)))


def test_read_stories(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" One.\n<|endoftext|>\n\n<|endoftext|>Two.\n")
    assert read_stories(path) == ["One.", "Two."]
    with pytest.raises(UserError, match="none.txt cannot be read: No such file"):
        read_stories(tmp_path / "none.txt")
    path.write_text("  ")
    with pytest.raises(UserError, match="must hold at least one story, not 0"):
        read_stories(path)
    (tmp_path / "bad.xz").write_bytes(b"not xz")
    with pytest.raises(UserError, match=r"bad\.xz is invalid"):
        read_stories(tmp_path / "bad.xz")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff\xff")
    with pytest.raises(UserError, match=r"bad\.txt must be UTF-8, but byte 2 is not$"):
        read_stories(tmp_path / "bad.txt")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heads", "3", "--kv-heads", "2"], "Number of heads must be a multiple"),
        (["--minutes", "0"], "Minutes must be positive, not 0.0"),
        (["--steps", "0"], "Steps must be positive, not 0"),
        (["--decay", "1.5"], "Decay must be at least 0 and below 1, not 1.5"),
        (["--text", "nowhere.txt"], "Text nowhere.txt cannot be read"),
    ],
)
def test_training_errors(tmp_path, capsys, more, message):
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(stories(60, 0)))
    arguments = ["--text", str(text), "--out", str(tmp_path / "out"), *SMALL, *more]
    assert train.main(arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_held_out_stories_are_never_packed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        train,
        "train",
        lambda config, recipe, texts, *_: (
            seen.extend(texts),
            (train.Llama(config), recipe),
        )[1],
    )
    out = run(tmp_path, "out")
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    held_out = stories(60, 0)[:5]
    learnt = [tokenizer.decode(text.tolist()) for text in seen]
    assert len(learnt) == 55 * 2 + 60
    assert not set(held_out) & set(learnt)
    assert (
        dataclasses.asdict(train.Recipe(steps=8, batch=4, warmup=2))
        == (json.loads((out / "config.json").read_text())["recipe"])
    )
