"""What the hardware's numerics cost: float, ideal and golden models scored on the same tokens.

The texts and windows are those of :mod:`mxhw.models.evaluate`: every story on its own behind
``<bos>``, in windows of the model's context. The three models see the same windows, so their
differences are paired token by token.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

import torch
from torch import Tensor, fx
from torch.nn import functional

from mxhw.compiler.ideal import IdealModel
from mxhw.models import evaluate
from mxhw.models.llama import Llama
from mxhw.models.tokenizer import TextTokenizer
from mxhw.sw.golden.linear import FIXED_FRACTION_BITS

__all__ = [
    "Accuracy",
    "Difference",
    "golden_logits",
    "measure",
    "model_readings",
    "split_stories",
    "validation_stories",
]

_NORMAL_95 = 1.959964

SEPARATOR = "<|endoftext|>"
"""What stands between two stories of a text file."""

LogitsFunction = Callable[[Tensor], Tensor]
"""Maps token numbers ``[1, T]`` to logits ``[1, T, vocabulary]``."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Paired difference of two models' loss on the same tokens.

    Members
    -------
    nats : float
        Mean of the first model's loss minus the second's, per token.
    standard_error : float
        Of that mean.
    """

    nats: float
    standard_error: float

    @property
    def ratio(self) -> float:
        """The first model's perplexity over the second's."""
        return math.exp(self.nats)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Losses of several models on the same tokens.

    Members
    -------
    nats : dict of str to float64 tensor
        By the model's name, the negative natural logarithm of each token's probability.
    bytes : int
        UTF-8 bytes that the tokens stand for.
    windows : int64 tensor or None
        Number of the window that each token was scored in.
    """

    nats: dict[str, Tensor]
    bytes: int
    windows: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return len(next(iter(self.nats.values())))

    def perplexity(self, name: str) -> float:
        """Exponential of a model's mean loss of a token."""
        return math.exp(float(self.nats[name].mean()))

    def bits_per_byte(self, name: str) -> float:
        """A model's total loss in bits over the bytes of the text."""
        return float(self.nats[name].sum()) / math.log(2) / self.bytes

    def perplexity_interval(self, name: str) -> tuple[float, float]:
        """95 % confidence interval of a model's perplexity on texts like these."""
        return self._interval(self.nats[name])

    def ratio_interval(self, name: str, reference: str) -> tuple[float, float]:
        """95 % confidence interval of one perplexity over another, paired by token."""
        return self._interval(self.nats[name] - self.nats[reference])

    def _interval(self, values: Tensor) -> tuple[float, float]:
        """Interval of the exponential of a mean.

        The tokens of one window depend on each other, so windows are what is counted as drawn; with
        fewer than two of them the interval is unknown.
        """
        if self.windows is None or not len(values) or int(self.windows.max()) < 1:
            return 0.0, math.inf
        mean = float(values.mean())
        count = int(self.windows.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64).index_add(
            0, self.windows, values.double() - mean
        )
        variance = float(sums.square().sum()) * count / (count - 1) / len(values) ** 2
        half = _NORMAL_95 * math.sqrt(variance)
        return math.exp(mean - half), math.exp(mean + half)

    def difference(self, name: str, reference: str) -> Difference:
        """Mean loss of ``name`` minus that of ``reference``, paired by token."""
        pairs = self.nats[name] - self.nats[reference]
        error = float(pairs.std()) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.inf
        return Difference(float(pairs.mean()), error)


def split_stories(text: str) -> list[str]:
    """Stories of a text in which :data:`SEPARATOR` stands between them; empty ones are dropped."""
    return [story for part in text.split(SEPARATOR) if (story := part.strip())]


def validation_stories() -> list[str]:
    """The bundled stories, which no bundled model was trained on."""
    path = resources.files("mxhw.models") / "data" / "validation.txt"
    return split_stories(path.read_text("utf-8"))


def golden_logits(prefill: fx.GraphModule) -> LogitsFunction:
    """Logits of a lowered prefill graph as floats: its fixed point is exact in float64."""

    def logits(tokens: Tensor) -> Tensor:
        _, fixed = prefill(tokens[0])
        return fixed.to(torch.float64).unsqueeze(0) / (1 << FIXED_FRACTION_BITS)

    return logits


def model_readings(
    model: Llama, ideal: IdealModel, prefill: fx.GraphModule
) -> dict[str, LogitsFunction]:
    """The three models to compare, by the names that reports use."""
    return {"float": model, "ideal": ideal, "golden": golden_logits(prefill)}


@torch.no_grad()
def measure(
    models: Mapping[str, LogitsFunction],
    tokenizer: TextTokenizer,
    stories: Sequence[str],
    context: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Score the same texts with several models.

    Parameters
    ----------
    models : mapping of str to callable
        Logits ``[1, T, vocabulary]`` of token numbers ``[1, T]``; row t depends on tokens 0 to t.
    tokenizer : TextTokenizer
    stories : sequence of str
        Texts; empty ones are skipped.
    context : int
        Most tokens that a model is given at once; at least 2.
    on_progress : callable, optional
        Called with the windows done and their number.

    Raises
    ------
    ValueError
        If the context is below 2 or there is no text.
    """
    if context < 2:
        raise ValueError(f"Context must be at least 2 tokens, not {context}")
    texts = [ids for story in stories if len(ids := tokenizer.encode(story)) > 1]
    size = sum(len(tokenizer.normalize(story).encode()) for story in stories)
    if not texts or not size:
        raise ValueError("At least one story must not be empty")
    jobs = [(ids, window) for ids in texts for window in evaluate._windows(len(ids), context)]
    losses: dict[str, list[Tensor]] = {name: [] for name in models}
    windows: list[Tensor] = []
    for number, (ids, (start, first, stop)) in enumerate(jobs):
        tokens = torch.tensor([ids[start : stop - 1]])
        target = torch.tensor(ids[first:stop])
        for name, logits_function in models.items():
            logits = logits_function(tokens)[0, first - start - 1 :].double()
            losses[name].append(functional.cross_entropy(logits, target, reduction="none"))
        windows.append(torch.full((len(target),), number))
        if on_progress is not None:
            on_progress(number + 1, len(jobs))
    nats = {name: torch.cat(parts) for name, parts in losses.items()}
    return Accuracy(nats, size, torch.cat(windows))
