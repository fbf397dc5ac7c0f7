"""Text from a design: prompt in, pieces of the continuation out as their tokens arrive."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable

from mxhw.errors import MxhwError
from mxhw.models.tokenizer import TextTokenizer
from mxhw.sw.host.client import MxhwClient
from mxhw.sw.host.protocol import Status
from mxhw.sw.host.sampling import Sampler

__all__ = ["Speed", "TextGenerator", "TextStream"]

_UNFINISHED = "\ufffd"
_BITS_A_BYTE = 10


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long a generation took.

    Members
    -------
    tokens : int
        Tokens generated.
    seconds : float
        Wall time from the first request to the last answer, the prompt included.
    cycles : int
        Clock cycles of the design between request and last answer, without the prompt's.
    line_bytes : int
        Bytes that passed the line in both directions meanwhile.
    status : Status
        Why the generation ended.
    """

    tokens: int
    seconds: float
    cycles: int
    line_bytes: int
    status: Status

    @property
    def tokens_per_second(self) -> float:
        """Tokens in a second of wall time."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def design_tokens_per_second(self, clock_hz: float) -> float:
        """Tokens that the design makes in a second of its clock."""
        return self.tokens * clock_hz / self.cycles if self.cycles else 0.0

    def line_tokens_per_second(self, baud: int) -> float:
        """Tokens that a line carries in a second, with ten bits a byte."""
        bits = self.line_bytes * _BITS_A_BYTE
        return self.tokens * baud / bits if bits else 0.0


class TextStream:
    """Turns tokens into text as they come.

    A character that is spread over several tokens is given when it is complete.

    Parameters
    ----------
    tokenizer : TextTokenizer
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, tokens: Iterable[int], *, last: bool = False) -> str:
        """Take tokens and return the text that is complete with them.

        Parameters
        ----------
        tokens : iterable of int
        last : bool
            No token follows: what is incomplete stays so.
        """
        self._ids += tokens
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_UNFINISHED) and not last:
            return ""
        new = text[self._shown :]
        self._shown = len(text)
        return new


class TextGenerator:
    """Lets a design continue texts, token by token.

    Without a sampler the design chooses the likeliest token itself. With one, it sends the logits
    of each token and the host chooses.

    Parameters
    ----------
    client : MxhwClient
    tokenizer : TextTokenizer
    sampler : Sampler, optional
    """

    def __init__(
        self, client: MxhwClient, tokenizer: TextTokenizer, sampler: Sampler | None = None
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._sampler = sampler

    def generate(self, prompt: str, tokens: int, on_text: Callable[[str], None]) -> Speed:
        """Start a new text with a prompt and continue it.

        It ends after ``tokens`` tokens, with the token that ends a text, or when the context is
        full.

        Parameters
        ----------
        prompt : str
        tokens : int
            Most tokens to generate, at least one.
        on_text : callable
            Called with the prompt and then with each piece of the continuation, as it arrives.

        Raises
        ------
        UserError
            If the prompt is longer than the context.
        LinkError
            If the design does not answer as it should.
        """
        client = self._client
        ids = self._tokenizer.encode(prompt)
        stream = TextStream(self._tokenizer)
        start, passed = time.monotonic(), client.line_bytes
        client.reset()
        produced: list[int] = []

        def take(token: int) -> None:
            produced.append(token)
            on_text(stream.push([token]))

        on_text(stream.push(ids))
        try:
            if self._sampler is None:
                status, cycles = self._greedy(ids, tokens, take)
            else:
                status, cycles = self._sampled(ids, tokens, take)
        except KeyboardInterrupt:
            # Whatever was interrupted, the design is left idle; a dead link changes nothing.
            with contextlib.suppress(MxhwError):
                client.stop()
            raise
        on_text(stream.push([], last=True))
        seconds = time.monotonic() - start
        return Speed(len(produced), seconds, cycles, client.line_bytes - passed, status)

    def _greedy(
        self, ids: list[int], tokens: int, take: Callable[[int], None]
    ) -> tuple[Status, int]:
        self._client.prompt(ids)
        result = self._client.generate(
            tokens, stop_token=self._tokenizer.eos, on_token=lambda item: take(item.token)
        )
        return result.status, result.cycles

    def _sampled(
        self, ids: list[int], tokens: int, take: Callable[[int], None]
    ) -> tuple[Status, int]:
        client = self._client
        if len(ids) > 1:
            client.prompt(ids[:-1])
        token, position, cycles = ids[-1], len(ids) - 1, 0
        for _ in range(tokens):
            if position == client.identity.context:
                return Status.CONTEXT_FULL, cycles
            logits = client.step(token)
            cycles += client.cycles
            token = self._sampler.choose(logits) if self._sampler else 0
            position += 1
            take(token)
            if token == self._tokenizer.eos:
                return Status.STOP_TOKEN, cycles
        return Status.COMPLETE, cycles
