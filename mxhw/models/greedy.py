"""Greedy text of a float model: the references that golden and hardware are compared with."""

from __future__ import annotations

import torch

from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode

__all__ = ["generate", "generate_cached"]


@torch.no_grad()
def generate(model: Llama, ids: list[int], n: int) -> list[int]:
    """Continue a text greedily, from the whole sequence each time: the slow reference.

    Parameters
    ----------
    model : Llama
        Model to ask.
    ids : list[int]
        Token numbers of the prompt, at least one.
    n : int
        Number of tokens to add; prompt and continuation together must fit in the context.

    Returns
    -------
    list[int]
        The ``n`` new tokens.

    Raises
    ------
    ValueError
        If the prompt is empty, ``n`` is negative or the context is too short.
    """
    _check_room(model.config, ids, n)
    sequence = list(ids)
    for _ in range(n):
        sequence.append(int(model(torch.tensor([sequence]))[0, -1].argmax()))
    return sequence[len(ids) :]


@torch.no_grad()
def generate_cached(decode: LlamaDecode, ids: list[int], n: int) -> list[int]:
    """Continue a text greedily with the decode step; parameters as for :func:`generate`.

    Parameters
    ----------
    decode : LlamaDecode
        Decode step to use; its caches are cleared first.
    ids : list[int]
        Token numbers of the prompt, at least one.
    n : int
        Number of tokens to add.

    Raises
    ------
    ValueError
        If the prompt is empty, ``n`` is negative or the context is too short.
    """
    _check_room(decode.config, ids, n)
    decode.reset()
    sequence = list(ids)
    for position in range(len(ids) + n - 1):
        logits = decode(torch.tensor([sequence[position]]), torch.tensor([position]))
        if position + 1 == len(sequence):
            sequence.append(int(logits.argmax()))
    return sequence[len(ids) :]


def _check_room(config: LlamaConfig, ids: list[int], n: int) -> None:
    if not ids:
        raise ValueError("Prompt must have at least one token, not 0")
    if n < 0:
        raise ValueError(f"Number of new tokens must not be negative, not {n}")
    if len(ids) + n > config.context:
        raise ValueError(
            f"Prompt and continuation must fit in the context ({config.context} tokens), "
            f"not take {len(ids) + n}"
        )
