"""The tokenizer in a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from mxhw.models.loaders.checked import refuse
from mxhw.models.loaders.tokenizer import ModelTokenizer, scored_pieces

if TYPE_CHECKING:
    from mxhw.models.loaders.gguf import GgufFile

__all__ = ["make_tokenizer"]

_NORMAL = 1
_MARKS = (3, 4)
_LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """What cuts a text into words before their bytes are merged; None if unknown."""
    if name in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name == "qwen2":
        return _split(_LETTERS % "")
    if name == "llama-bpe":
        return _split(_LETTERS % "{1,3}")
    return None


def make_tokenizer(head: GgufFile, vocabulary: int) -> ModelTokenizer:
    """The tokenizer that a file's fields describe.

    Raises
    ------
    UserError
        If it is malformed, of an unknown kind, or not for so many tokens.
    """
    kind = head.field("tokenizer.ggml.model", str)
    pieces = head.field("tokenizer.ggml.tokens", list)
    if len(pieces) != vocabulary:
        raise refuse(head.path, "Number of tokens", f"{vocabulary}, the model's", len(pieces))
    if kind == "llama":
        backend = _scored(head, pieces)
    elif kind == "gpt2":
        backend = _merged(head, pieces)
    else:
        raise refuse(head.path, "Field 'tokenizer.ggml.model'", "'llama' or 'gpt2'", repr(kind))
    # Unknown is written as a number that no token has.
    bos, eos = (head.field(f"tokenizer.ggml.{name}_token_id", int, -1) for name in ("bos", "eos"))
    for name, number in (("bos", bos), ("eos", eos)):
        if number >= vocabulary:
            raise refuse(
                head.path, f"Field 'tokenizer.ggml.{name}_token_id'", f"below {vocabulary}", number
            )
    begins = head.field("tokenizer.ggml.add_bos_token", bool, kind == "llama")
    return ModelTokenizer(
        backend,
        size=vocabulary,
        bos=bos if begins and bos >= 0 else None,
        eos=eos if eos >= 0 else None,
    )


def _numbers(head: GgufFile, name: str, count: int) -> list[float]:
    values = head.fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise refuse(
            head.path,
            f"Field 'tokenizer.ggml.{name}'",
            f"a number for each of {count} tokens",
            "something else",
        )
    return values.tolist()


def _scored(head: GgufFile, pieces: list[str]) -> tokenizers.Tokenizer:
    if not pieces:
        raise refuse(head.path, "Number of tokens", "positive", 0)
    scores = _numbers(head, "scores", len(pieces))
    special = (
        number
        for number, kind in enumerate(_numbers(head, "token_type", len(pieces)))
        if kind != _NORMAL
    )
    return scored_pieces(pieces, scores, special=special)


def _merged(head: GgufFile, pieces: list[str]) -> tokenizers.Tokenizer:
    name = head.field("tokenizer.ggml.pre", str, "default")
    pre_tokenizer = _pre_tokenizer(name)
    if pre_tokenizer is None:
        raise refuse(
            head.path,
            "Field 'tokenizer.ggml.pre'",
            "default, gpt-2, smollm, qwen2 or llama-bpe",
            repr(name),
        )
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for merge in head.field("tokenizer.ggml.merges", list):
        left, space, right = merge.partition(" ")
        if not space or not {left, right, left + right} <= vocabulary.keys():
            raise refuse(
                head.path, "Merges of the tokenizer", "two tokens that make a third", repr(merge)
            )
        merges.append((left, right))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    # Marks of a chat, for example, are recognised inside a text, as their model was trained.
    kinds = _numbers(head, "token_type", len(pieces))
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(piece, normalized=False, special=True)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind in _MARKS
        ]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return backend
