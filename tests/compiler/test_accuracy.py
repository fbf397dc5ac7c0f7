import math

import pytest
import torch

from mxhw.compiler.accuracy import (
    Accuracy,
    golden_logits,
    measure,
    model_readings,
    split_stories,
    validation_stories,
)
from mxhw.compiler.ideal import IdealModel
from mxhw.compiler.lower import lower
from mxhw.models.bundled import load
from mxhw.models.evaluate import score


@pytest.fixture(scope="module")
def bundled():
    torch.set_num_threads(1)
    return load("llama")


def test_bundled_stories():
    stories = validation_stories()
    assert len(stories) == 24
    assert sum(len(story.encode()) for story in stories) <= 12 * 1024
    assert all(story == story.strip() for story in stories)


def test_stories_are_split_and_empty_ones_dropped():
    assert split_stories("<|endoftext|>\n one\n<|endoftext|> \n<|endoftext|>two") == ["one", "two"]


def test_float_model_scores_as_in_the_evaluation_of_models(bundled):
    model, tokenizer, config = bundled
    stories = validation_stories()[:3]
    found = measure({"float": model}, tokenizer, stories, config.context)
    expected = score(model, tokenizer, stories, config.context)
    assert found.tokens == expected.tokens
    assert found.bytes == expected.bytes
    assert found.perplexity("float") == pytest.approx(expected.perplexity, rel=1e-9)
    assert found.bits_per_byte("float") == pytest.approx(expected.bits_per_byte, rel=1e-9)


def test_long_stories_are_scored_in_windows(bundled):
    model, tokenizer, _ = bundled
    story = validation_stories()[1]
    found = measure({"float": model}, tokenizer, [story], 64)
    assert found.tokens == len(tokenizer.encode(story)) - 1
    assert found.perplexity("float") == pytest.approx(
        score(model, tokenizer, [story], 64).perplexity, rel=1e-9
    )


def test_hardware_numerics_cost_less_than_half_a_percent(bundled):
    model, tokenizer, config = bundled
    seen = []
    found = measure(
        model_readings(model, IdealModel(model), lower(model)),
        tokenizer,
        validation_stories()[:8],
        config.context,
        lambda done, total: seen.append((done, total)),
    )
    assert list(found.nats) == ["float", "ideal", "golden"]
    assert found.difference("golden", "ideal").ratio < 1.005
    assert found.difference("ideal", "float").ratio < 1.02
    # Stories longer than the context take several windows.
    assert seen == [(count, 12) for count in range(1, 13)]
    assert int(found.windows.max()) == 11


def test_golden_logits_are_its_integers_scaled(bundled):
    model, tokenizer, _ = bundled
    prefill = lower(model)
    tokens = torch.tensor(tokenizer.encode("One day"))
    found = golden_logits(prefill)(tokens.unsqueeze(0))
    assert found.dtype == torch.float64
    assert torch.equal((found[0] * 4096).long(), prefill(tokens)[1])


def test_paired_difference():
    first = torch.tensor([1.0, 2.0, 4.0, 1.0], dtype=torch.float64)
    second = torch.tensor([1.5, 1.5, 3.5, 0.5], dtype=torch.float64)
    accuracy = Accuracy({"a": first, "b": second}, bytes=8)
    assert accuracy.tokens == 4
    assert accuracy.perplexity("a") == math.exp(2.0)
    assert accuracy.bits_per_byte("a") == pytest.approx(1 / math.log(2))
    difference = accuracy.difference("a", "b")
    assert difference.nats == 0.25
    assert difference.standard_error == 0.25
    assert difference.ratio == math.exp(0.25)


def test_intervals():
    # Four windows of two tokens, whose means are 1, 2, 2 and 3.
    nats = torch.tensor([0.0, 2, 2, 2, 1, 3, 3, 3], dtype=torch.float64)
    windows = torch.arange(8) // 2
    accuracy = Accuracy({"a": nats, "b": nats - 1}, bytes=8, windows=windows)
    error = 1.959964 * math.sqrt(2 / 3 / 4)
    found = accuracy.perplexity_interval("a")
    assert found == pytest.approx((math.exp(2 - error), math.exp(2 + error)))
    # A constant difference is known exactly.
    assert accuracy.ratio_interval("a", "b") == pytest.approx((math.e, math.e))


def test_interval_of_one_window_is_unknown():
    accuracy = Accuracy({"a": torch.ones(3)}, bytes=3, windows=torch.zeros(3, dtype=torch.int64))
    assert accuracy.perplexity_interval("a") == (0.0, math.inf)


def test_interval_holds_the_mean_of_many_draws():
    """Of 400 intervals from dependent tokens about 95 in a hundred hold the truth."""
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(400):
        window = torch.randn(40, 1, generator=generator, dtype=torch.float64)
        nats = (2 + window + torch.randn(40, 5, generator=generator, dtype=torch.float64)).flatten()
        windows = torch.arange(200) // 5
        low, high = Accuracy({"a": nats}, 1, windows).perplexity_interval("a")
        inside += low < math.exp(2) < high
    assert 360 <= inside <= 394


def test_uniform_logits_have_the_vocabularys_perplexity(bundled):
    _, tokenizer, config = bundled
    size = config.vocabulary_size
    found = measure(
        {"uniform": lambda tokens: torch.zeros(1, tokens.shape[1], size)}, tokenizer, ["A cat."], 32
    )
    assert found.perplexity("uniform") == pytest.approx(size)


def test_contexts_and_texts_are_checked(bundled):
    model, tokenizer, _ = bundled
    with pytest.raises(ValueError, match="^Context must be at least 2 tokens, not 1$"):
        measure({"float": model}, tokenizer, ["A cat."], 1)
    with pytest.raises(ValueError, match="^At least one story must not be empty$"):
        measure({"float": model}, tokenizer, [""], 32)
