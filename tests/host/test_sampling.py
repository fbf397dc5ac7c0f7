import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxhw.errors import UserError
from mxhw.sw.host.sampling import Sampler

LOGITS = [0.0, 2.0, 1.0, -1.0]


def test_probabilities_follow_the_logits():
    weights = np.exp(np.array(LOGITS) / 0.5)
    found = Sampler(temperature=0.5).probabilities(LOGITS)
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-12)


def test_temperature_zero_takes_the_first_of_the_likeliest():
    sampler = Sampler(temperature=0)
    assert sampler.probabilities([1.0, 3.0, 3.0]).tolist() == [0, 1, 0]
    assert sampler.choose([1.0, 3.0, 3.0]) == 1


@pytest.mark.parametrize(
    ("top_p", "left"), [(1.0, {0, 1, 2, 3}), (0.85, {1, 2}), (0.5, {1}), (1e-9, {1})]
)
def test_top_p_keeps_as_few_tokens_as_have_it(top_p, left):
    # The shares are 0.087, 0.644, 0.237 and 0.032.
    found = Sampler(top_p=top_p).probabilities(LOGITS)
    assert {int(index) for index in found.nonzero()[0]} == left
    assert found.sum() == pytest.approx(1)


def test_seed_repeats_the_draws():
    draws = [[Sampler(seed=7).choose(LOGITS) for _ in range(3)] for _ in range(2)]
    assert draws[0] == draws[1]
    first, second = Sampler(seed=7), Sampler(seed=7)
    assert [first.choose(LOGITS) for _ in range(50)] == [second.choose(LOGITS) for _ in range(50)]


def test_shares_of_the_draws():
    sampler = Sampler(seed=1)
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(4000)], minlength=4)
    # Four standard deviations of the largest share are 0.03.
    np.testing.assert_allclose(counts / 4000, sampler.probabilities(LOGITS), atol=0.03)


@given(
    st.lists(st.integers(-(1 << 23), (1 << 23) - 1), min_size=1, max_size=40),
    st.floats(1e-3, 1e3),
    st.floats(1e-6, 1),
)
def test_any_logits_of_the_hardware(raw, temperature, top_p):
    logits = [value / 4096 for value in raw]
    sampler = Sampler(temperature=temperature, top_p=top_p, seed=0)
    found = sampler.probabilities(logits)
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)
    assert found[sampler.choose(logits)] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, r"Temperature must be a number from 0 up, not -1"),
        ({"temperature": float("nan")}, r"Temperature must be a number from 0 up, not nan"),
        ({"top_p": 0}, r"Top-p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.5}, r"Top-p must be above 0 and at most 1, not 1.5"),
        ({"seed": -1}, r"Seed must not be negative, not -1"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        Sampler(**options)
