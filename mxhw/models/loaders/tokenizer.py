"""Tokenizers that come with models from outside, on the ``tokenizers`` library."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers

from mxhw.errors import UserError
from mxhw.models.loaders.checked import FileReader, read_small, refuse, shorten

__all__ = ["ModelTokenizer", "load_tokenizer_json", "read_tokenizer_bin", "scored_pieces"]

_SPACE = "\u2581"
_LONGEST_PIECE = 1 << 16


class ModelTokenizer:
    """A tokenizer of a model.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    size : int
        Tokens of the model; its file may have rows that no token uses.
    bos, eos : int or None
        Tokens that begin and end a text.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, size: int, bos: int | None, eos: int | None
    ) -> None:
        self._backend = backend
        self._size = size
        self.bos = bos
        self.eos = eos

    def __len__(self) -> int:
        """Return the number of tokens of the model."""
        return self._size

    def begins_texts(self) -> bool:
        """Whether the tokenizer itself puts ``bos`` before a text."""
        ids = self._backend.encode("a", add_special_tokens=True).ids
        return bool(ids) and ids[0] == self.bos

    def normalize(self, text: str) -> str:
        """Return the text that :meth:`encode` represents: all of it."""
        return text

    def encode(self, text: str) -> list[int]:
        """Return the text's token numbers, behind the one that begins a text if there is one.

        Raises
        ------
        UserError
            If the tokenizer has no tokens for the text.
        """
        try:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        # The library raises bare Exception for what a model lacks.
        except Exception as error:
            raise UserError(f"Text cannot be encoded by the model's tokenizer: {error}") from error
        return ids if self.bos is None else [self.bos, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers; those that begin and end a text are empty.

        Raises
        ------
        IndexError
            If a number is not a token's.
        """
        ids = list(ids)
        for number in ids:
            if not 0 <= number < self._size:
                raise IndexError(f"Token must be between 0 and {self._size - 1}, not {number}")
        return self._backend.decode(
            [number for number in ids if number not in (self.bos, self.eos)],
            skip_special_tokens=False,
        )


def scored_pieces(
    pieces: Sequence[str], scores: Sequence[float], *, special: Iterable[int] = (0, 1, 2)
) -> tokenizers.Tokenizer:
    """Byte-pair encoding of pieces with scores, as SentencePiece and llama2.c have it.

    The pair whose union has the best score is merged first. A space is put before a text, spaces
    are ``U+2581`` in pieces, and characters without a piece become bytes.

    Parameters
    ----------
    pieces : sequence of str
        By token number.
    scores : sequence of float
    special : iterable of int
        Tokens that no text becomes.
    """
    special = set(special)
    vocabulary: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        # The first of two equal pieces is the one that texts become.
        name = piece if piece not in vocabulary else f"<{number}: {piece}>"
        vocabulary[name] = number
    merges = []
    for number, piece in enumerate(pieces):
        if number in special or vocabulary.get(piece) != number or len(piece) > 64:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[number], number, cut, left, right))
    merges.sort()
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in merges],
            unk_token=pieces[0],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    backend.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def read_tokenizer_bin(path: Path, vocabulary: int) -> ModelTokenizer:
    """Read a tokenizer of llama2.c: a score, a length and bytes for each token.

    Raises
    ------
    UserError
        If the file is no such tokenizer for so many tokens.
    """
    pieces: list[str] = []
    scores: list[float] = []
    with FileReader(path) as file:
        file.read(4, "longest token")
        for number in range(vocabulary):
            (score,) = file.floats([1], f"score of token {number}").tolist()
            length = int.from_bytes(file.read(4, f"length of token {number}"), "little")
            if not length <= _LONGEST_PIECE:
                raise refuse(path, f"Length of token {number}", f"at most {_LONGEST_PIECE}", length)
            if not math.isfinite(score):
                raise refuse(path, f"Score of token {number}", "finite", score)
            data = file.read(length, f"token {number}")
            try:
                pieces.append(data.decode().replace(" ", _SPACE))
            except UnicodeDecodeError:
                raise refuse(path, f"Token {number}", "UTF-8", repr(data)) from None
            scores.append(score)
        if file.left:
            raise refuse(
                path, "Number of tokens", f"{vocabulary}, the model's", f"more ({file.left} bytes)"
            )
    if vocabulary < 3:
        raise refuse(path, "Number of tokens", "at least 3", vocabulary)
    return ModelTokenizer(scored_pieces(pieces, scores), size=vocabulary, bos=1, eos=2)


def load_tokenizer_json(
    path: Path, vocabulary: int, *, bos: int | None, eos: int | None
) -> ModelTokenizer:
    """Read the JSON file of a tokenizer of the ``tokenizers`` library.

    Raises
    ------
    UserError
        If it is no such file, or has tokens that the model has not.
    """
    data = read_small(path, "tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_str(data.decode())
        # Before anything is encoded: a file may ask to fill texts up to any length.
        backend.no_padding()
        backend.no_truncation()
        backend.encode("a")
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises bare Exception for bad JSON, and a BaseException where it gives up.
    except BaseException as error:
        raise UserError(f"{path}: tokenizer is invalid: {shorten(error)}") from error
    size = backend.get_vocab_size()
    highest = max(backend.get_vocab().values(), default=-1)
    if not size or highest >= vocabulary:
        raise refuse(path, "Tokens", f"numbered below {vocabulary}, the model's", highest)
    for name, number in (("begins", bos), ("ends", eos)):
        if number is not None and not 0 <= number < vocabulary:
            raise refuse(path, f"Token that {name} a text", f"below {vocabulary}", number)
    return ModelTokenizer(backend, size=vocabulary, bos=bos, eos=eos)
