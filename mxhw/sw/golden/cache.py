"""Key and value caches of the golden model."""

import torch

from mxhw.formats import BlockFormat
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["KeyStore", "ValueStore"]


class _Store:
    """Rows of MX blocks by position; rows that were never written are zero blocks.

    Parameters
    ----------
    context : int
        Number of positions.
    width : int
        Elements of a row, whole blocks.
    format : BlockFormat
    """

    def __init__(self, context: int, width: int, format: BlockFormat) -> None:
        self._context = context
        self._width = width
        self._format = format
        self.reset()

    def reset(self) -> None:
        """Forget every position."""
        blocks = self._width // self._format.block_size
        self._elements = torch.zeros(self._context, self._width, dtype=torch.int64)
        self._scales = torch.zeros(self._context, blocks, dtype=torch.uint8)

    def write(self, rows: MXTensor, position: torch.Tensor) -> MXTensor:
        """Store ``rows[tokens, width]`` at ``position[tokens]``; return rows 0 to the largest."""
        self._elements[position] = rows.elements
        self._scales[position] = rows.scales
        length = int(position.max()) + 1
        return MXTensor(self._elements[:length], self._scales[:length], self._format)


class KeyStore(_Store):
    """Keys by position."""


class ValueStore(_Store):
    """Values by position."""
