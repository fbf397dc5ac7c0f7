"""How well a language model predicts text: bits per byte and perplexity.

Every byte of a text counts once. A text starts behind ``<bos>`` with an empty context. One that
is longer than the context is scored in windows that overlap by half: a window scores only the
tokens that the one before it did not, and each has at least half a context before it.

``python -m mxhw.models.evaluate FILE:COUNT`` scores a bundled model on the first stories of a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import lzma
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from mxhw.errors import MxhwError, UserError
from mxhw.models.tokenizer import Tokenizer

__all__ = ["Score", "bits_per_byte", "main", "perplexity", "read_stories", "score", "split_count"]

SEPARATOR = "<|endoftext|>"

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


def read_stories(path: Path) -> list[str]:
    """Return the stories of a text file, without the white space around each.

    Parameters
    ----------
    path : Path
        UTF-8 text, xz-compressed if its name ends in ``.xz``.

    Raises
    ------
    UserError
        If the file cannot be read, or holds no story.
    """
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    except OSError as error:
        raise UserError(f"Text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Text {path} must be UTF-8, but byte {error.start} is not") from error
    except lzma.LZMAError as error:
        raise UserError(f"Text {path} is invalid: {error}") from error
    stories = [story.strip() for story in text.split(SEPARATOR)]
    stories = [story for story in stories if story]
    if not stories:
        raise UserError(f"Text {path} must hold at least one story, not 0")
    return stories


def split_count(argument: str, default: int = 1) -> tuple[Path, int]:
    """Return the file and the number of ``FILE:NUMBER``, or of ``FILE`` with the default."""
    file, colon, count = argument.rpartition(":")
    if not (colon and count.isdecimal()):
        return Path(argument), default
    return Path(file), int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a bundled model in single precision; see ``--help``.

    Returns
    -------
    int
        Exit status: 0, or that of the error after a message on standard error.
    """
    # The registry is needed here only: other models can be scored without it.
    from mxhw.models.bundled import load

    parser = argparse.ArgumentParser(
        prog="python -m mxhw.models.evaluate", description="Score a bundled model."
    )
    parser.add_argument("text", metavar="FILE[:COUNT]", help="stories, or the first ones of them")
    parser.add_argument("--model", default="llama", help="name of the model")
    options = parser.parse_args(arguments)
    try:
        model, tokenizer, config = load(options.model)
        path, count = split_count(options.text, sys.maxsize)
        result = score(model, tokenizer, read_stories(path)[:count], config.context)
    except MxhwError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        return error.exit_status
    Console().print(
        f"{result.bits_per_byte:.4f} bits/byte, perplexity {result.perplexity:.4f} "
        f"({result.tokens} tokens, {result.bytes} bytes)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
