"""How well a language model predicts text: bits per byte and perplexity.

Every byte of a text counts once. A text starts behind ``<bos>`` with an empty context. One that
is longer than the context is scored in windows that overlap by half: a window scores only the
tokens that the one before it did not, and each has at least half a context before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from mxhw.models.tokenizer import Tokenizer

__all__ = ["Score", "bits_per_byte", "perplexity", "score"]

#: Maps token numbers [B, T] to logits [B, T, vocabulary].
LogitsFunction = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Score:
    """Likelihood of some texts.

    Parameters
    ----------
    nats : float
        Total negative natural logarithm of the tokens' probabilities.
    tokens : int
        Number of tokens scored.
    bytes : int
        Number of UTF-8 bytes that they stand for.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Total negative base-2 logarithm of the probabilities over the bytes."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative logarithm of a token's probability."""
        return math.exp(self.nats / self.tokens)


@torch.no_grad()
def score(
    logits_function: LogitsFunction,
    tokenizer: Tokenizer,
    stories: Iterable[str],
    context: int,
) -> Score:
    """Score texts, each on its own.

    Parameters
    ----------
    logits_function : callable
        Maps token numbers, an integer tensor [1, T] with T <= context, to logits
        [1, T, vocabulary] of the token after each one; a :class:`~mxhw.models.llama.Llama` or
        any other model. Row t may depend on tokens 0 to t only.
    tokenizer : Tokenizer
        Makes the tokens. Bytes are those of the text as it normalises it.
    stories : iterable of str
        Texts; empty ones are skipped.
    context : int
        Most tokens that the function is given at once; at least 2.

    Raises
    ------
    ValueError
        If the context is below 2 or there is no text.
    """
    if context < 2:
        raise ValueError(f"Context must be at least 2 tokens, not {context}")
    nats = 0.0
    tokens = 0
    size = 0
    for story in stories:
        ids = tokenizer.encode(story)
        if len(ids) < 2:
            continue
        size += len(tokenizer.normalize(story).encode())
        tokens += len(ids) - 1
        for start, first, stop in _windows(len(ids), context):
            logits = logits_function(torch.tensor([ids[start : stop - 1]]))[0]
            logits = torch.as_tensor(logits)[first - start - 1 :].double()
            target = torch.tensor(ids[first:stop])
            nats += float(functional.cross_entropy(logits, target, reduction="sum"))
    if not size:
        raise ValueError("At least one story must not be empty")
    return Score(nats, tokens, size)


def _windows(length: int, context: int) -> Iterable[tuple[int, int, int]]:
    """Yield (start, first scored token, stop): the input is ``start .. stop - 2``."""
    start, first = 0, 1
    while True:
        stop = min(length, start + context + 1)
        yield start, first, stop
        if stop == length:
            return
        first = stop
        start += context - context // 2


def bits_per_byte(
    logits_function: LogitsFunction,
    tokenizer: Tokenizer,
    stories: Iterable[str],
    context: int,
) -> float:
    """Return the bits per byte of some texts; parameters and errors as for :func:`score`."""
    return score(logits_function, tokenizer, stories, context).bits_per_byte


def perplexity(
    logits_function: LogitsFunction,
    tokenizer: Tokenizer,
    stories: Iterable[str],
    context: int,
) -> float:
    """Return the perplexity of a token; parameters and errors as for :func:`score`."""
    return score(logits_function, tokenizer, stories, context).perplexity
