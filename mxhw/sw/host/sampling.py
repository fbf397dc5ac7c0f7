"""The choice of a token from logits, on the host."""

from collections.abc import Sequence

import numpy as np

from mxhw.errors import UserError

__all__ = ["Sampler"]


class Sampler:
    """Draws tokens from the distribution of their logits.

    With temperature *t*, token *i* has a probability proportional to ``exp(logit[i] / t)``; at
    temperature 0 the likeliest token is taken, the first of equals, as the hardware does. With
    ``top_p`` below 1 only the likeliest tokens remain: as few as have that much probability
    together (nucleus sampling; Holtzman et al., "The Curious Case of Neural Text Degeneration",
    2020). Everything is computed in float64, and one number is drawn for each token, so the same
    seed and logits give the same tokens.

    Parameters
    ----------
    temperature : float
        0 or more.
    top_p : float
        Above 0, at most 1.
    seed : int, optional
        Of the draws; without it they differ each time.

    Raises
    ------
    UserError
        If a parameter is out of range.
    """

    def __init__(
        self, *, temperature: float = 1.0, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise UserError(f"Temperature must be a number from 0 up, not {temperature:g}")
        if not 0 < top_p <= 1:
            raise UserError(f"Top-p must be above 0 and at most 1, not {top_p:g}")
        if seed is not None and seed < 0:
            raise UserError(f"Seed must not be negative, not {seed}")
        self._temperature = temperature
        self._top_p = top_p
        self._generator = np.random.default_rng(seed)

    def probabilities(self, logits: Sequence[float]) -> np.ndarray:
        """Return the probability that each token is drawn with."""
        values = np.asarray(logits, dtype=np.float64)
        if self._temperature == 0:
            result = np.zeros(len(values))
            result[int(values.argmax())] = 1.0
            return result
        # The difference first: a tiny temperature must not overflow.
        with np.errstate(over="ignore"):
            weights = np.exp((values - values.max()) / self._temperature)
        weights /= weights.sum()
        if self._top_p < 1:
            order = np.argsort(-weights, kind="stable")
            # A token remains if those before it do not have enough together.
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= self._top_p]] = 0.0
            weights /= weights.sum()
        return weights

    def choose(self, logits: Sequence[float]) -> int:
        """Draw a token."""
        cumulative = np.cumsum(self.probabilities(logits))
        drawn = self._generator.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, drawn, side="right"))
