"""The bundled model's tokenizer: byte-pair encoding of ASCII text.

Every printable ASCII character, the newline and the tab have a token of their own, so such text
survives encoding and decoding unchanged. Typographic quotes, dashes and ellipses become ASCII;
any other character becomes ``<unk>``. Tokens 0, 1 and 2 are ``<unk>``, ``<bos>`` (the start of
a text) and ``<eos>`` (its end); their names in a text are ordinary characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from mxhw.errors import UserError

__all__ = ["BOS", "EOS", "UNK", "TextTokenizer", "Tokenizer", "train_tokenizer"]

UNK = 0
BOS = 1
EOS = 2
SPECIAL = ("<unk>", "<bos>", "<eos>")

#: Stands for a space inside tokens.
_SPACE = "\u2581"
_ALPHABET = "\t\n" + "".join(map(chr, range(33, 127)))

# Longer ones first. The sequences that begin with U+00E2 are UTF-8 punctuation read as
# Windows-1252, which real TinyStories text contains; the last of them has lost its third byte.
_REPLACEMENTS = (
    ("\r\n", "\n"),
    ("\u00e2\u20ac\u0153", '"'),
    ("\u00e2\u20ac\u2122", "'"),
    ("\u00e2\u20ac\u02dc", "'"),
    ("\u00e2\u20ac\u201c", "-"),
    ("\u00e2\u20ac\u201d", "-"),
    ("\u00e2\u20ac\u00a6", "..."),
    ("\u00e2\u20ac", '"'),
    ("\u201c", '"'),
    ("\u201d", '"'),
    ("\u201e", '"'),
    ("\u2018", "'"),
    ("\u2019", "'"),
    ("\u2013", "-"),
    ("\u2014", "-"),
    ("\u2026", "..."),
    ("\u00a0", " "),
    ("\u200a", " "),
)


class TextTokenizer(Protocol):
    """What is asked of a model's tokenizer, bundled or from outside."""

    @property
    def bos(self) -> int | None:
        """Token that begins a text, if there is one."""

    @property
    def eos(self) -> int | None:
        """Token that ends a text, if there is one."""

    def __len__(self) -> int:
        """Return the number of tokens."""
        ...

    def normalize(self, text: str) -> str:
        """Return the text that :meth:`encode` represents."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the text's token numbers, behind the token that begins one."""
        ...

    def decode(self, ids: Iterable[int], /) -> str:
        """Return the text of token numbers."""
        ...


class Tokenizer:
    """Byte-pair encoding between text and token numbers.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Trained tokenizer, as :func:`train_tokenizer` makes it.

    Raises
    ------
    ValueError
        If tokens 0 to 2 are not ``<unk>``, ``<bos>`` and ``<eos>``.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        for number, name in enumerate(SPECIAL):
            if backend.id_to_token(number) != name:
                raise ValueError(
                    f"Token {number} must be {name!r}, not {backend.id_to_token(number)!r}"
                )
        self._backend = backend
        names = [backend.id_to_token(number) or "" for number in range(backend.get_vocab_size())]
        self._pieces = [
            "" if number in (BOS, EOS) else "\ufffd" if number == UNK else name.replace(_SPACE, " ")
            for number, name in enumerate(names)
        ]

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer from the JSON file that :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            File to read.

        Raises
        ------
        UserError
            If the file is missing, or is not such a tokenizer.
        """
        path = Path(path)
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text("utf-8")))
        except OSError as error:
            raise UserError(f"Tokenizer {path} cannot be read: {error.strerror}") from error
        # The library raises bare Exception for bad JSON.
        except Exception as error:
            raise UserError(f"Tokenizer {path} is invalid: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file."""
        Path(path).write_text(self._backend.to_str(pretty=False) + "\n", "utf-8")

    @property
    def bos(self) -> int:
        """Token that begins a text."""
        return BOS

    @property
    def eos(self) -> int:
        """Token that ends a text."""
        return EOS

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._pieces)

    def normalize(self, text: str) -> str:
        """Return the text that :meth:`encode` represents: typographic characters in ASCII."""
        return _normalize(text)

    def encode(self, text: str) -> list[int]:
        """Return the text's token numbers behind ``<bos>``.

        A space is put before the text, so that its first word has the tokens that it has
        elsewhere; :meth:`decode` takes it away.
        """
        return [BOS, *self._backend.encode(_marked(_normalize(text))).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers.

        ``<bos>`` and ``<eos>`` are empty, ``<unk>`` is U+FFFD; the space that :meth:`encode` put
        after a leading ``<bos>`` is taken away.

        Raises
        ------
        IndexError
            If a number is not a token's.
        """
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of each token number; joined, they are what :meth:`decode` returns."""
        start = False
        for count, number in enumerate(ids):
            piece = self.piece(number)
            if start and piece.startswith(" "):
                piece = piece[1:]
            start = count == 0 and number == BOS
            yield piece

    def piece(self, number: int) -> str:
        """Return the text of one token inside a text, for streaming.

        Raises
        ------
        IndexError
            If the number is not a token's.
        """
        if not 0 <= number < len(self._pieces):
            raise IndexError(f"Token must be between 0 and {len(self._pieces) - 1}, not {number}")
        return self._pieces[number]


def _normalize(text: str) -> str:
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    return text


def _marked(text: str) -> str:
    """Return the backend's form of a text: a space before it, and every space visible."""
    return _SPACE + text.replace(_SPACE, "\ufffd").replace(" ", _SPACE)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 512) -> Tokenizer:
    """Train a byte-pair encoding.

    Parameters
    ----------
    texts : iterable of str
        Texts to learn from.
    vocabulary_size : int
        Number of tokens, special ones included.

    Raises
    ------
    ValueError
        If the vocabulary cannot hold the alphabet, or the texts are too small to fill it.
    """
    smallest = len(SPECIAL) + len(_ALPHABET) + 1
    if vocabulary_size < smallest:
        raise ValueError(f"Vocabulary must have at least {smallest} tokens, not {vocabulary_size}")
    backend = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    alphabet = set(_ALPHABET) | {_SPACE}
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    lines = ("".join(c for c in _marked(_normalize(text)) if c in alphabet) for text in texts)
    backend.train_from_iterator(lines, trainer)
    if backend.get_vocab_size() != vocabulary_size:
        raise ValueError(
            f"Texts must be enough for {vocabulary_size} tokens, not {backend.get_vocab_size()}"
        )
    # As added tokens, their names would be recognised inside a text.
    description = json.loads(backend.to_str())
    description["added_tokens"] = []
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(description)))
