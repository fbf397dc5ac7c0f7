"""Packed weights: the one description of how matrices lie in a memory of block words.

A matrix ``[rows, blocks]`` of MX blocks is cut into groups of ``engine rows`` rows; word
``group * blocks + block`` holds block ``block`` of each row of the group, row 0 lowest. A block is
its elements, element 0 lowest, then its scale byte: the bits of
:class:`mxhw.arith.shapes.BlockWord`.
"""

import numpy as np
import torch

from mxhw.errors import UserError
from mxhw.formats import SCALE_BITS
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["interleave_blocks", "pack_matrix", "pack_words", "unpack_words"]


def interleave_blocks(first: MXTensor, second: MXTensor) -> MXTensor:
    """Rows of two matrices of equal shape, in turns of one output block of each."""
    size = first.format.block_size

    def merge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        turns = torch.stack([a.unflatten(0, (-1, size)), b.unflatten(0, (-1, size))], 1)
        return turns.flatten(0, 2)

    return MXTensor(
        merge(first.elements, second.elements), merge(first.scales, second.scales), first.format
    )


def pack_matrix(weight: MXTensor, rows: int) -> list[int]:
    """Words of one matrix, in the order an engine reads them.

    Raises
    ------
    UserError
        If the matrix has not whole groups of rows.
    """
    if weight.elements.shape[0] % rows:
        raise UserError(
            f"Rows of a matrix must be a multiple of the engine's rows ({rows}), "
            f"not {weight.elements.shape[0]}"
        )
    bits = weight.format.element.bits
    size = weight.format.block_size
    codes = (weight.elements & ((1 << bits) - 1)).numpy().astype(np.uint32)
    codes = codes.reshape(-1, rows, weight.blocks, size).transpose(0, 2, 1, 3)
    scales = weight.scales.numpy().astype(np.uint32)
    scales = scales.reshape(-1, rows, weight.blocks).transpose(0, 2, 1)
    positions = np.arange(bits, dtype=np.uint32)
    element_bits = (codes[..., None] >> positions) & 1
    scale_bits = (scales[..., None] >> np.arange(SCALE_BITS, dtype=np.uint32)) & 1
    block_bits = np.concatenate(
        [element_bits.reshape(*codes.shape[:3], size * bits), scale_bits], axis=-1
    )
    packed = np.packbits(
        block_bits.reshape(-1, rows * weight.format.block_bits).astype(np.uint8),
        axis=-1,
        bitorder="little",
    )
    return [int.from_bytes(word.tobytes(), "little") for word in packed]


def pack_words(words: list[int], word_bits: int) -> bytes:
    """Words as a file: little endian, each in whole bytes."""
    length = (word_bits + 7) // 8
    return b"".join(word.to_bytes(length, "little") for word in words)


def unpack_words(content: bytes, word_bits: int) -> list[int]:
    """Words of a file that :func:`pack_words` wrote."""
    length = (word_bits + 7) // 8
    return [
        int.from_bytes(content[start : start + length], "little")
        for start in range(0, len(content), length)
    ]
