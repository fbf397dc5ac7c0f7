"""Payload shapes that units exchange: every stream of the library carries one of these.

A block of ``format.block_size`` elements crosses a stream in beats of ``lanes`` elements, element
0 in lane 0 of the first beat; its scale stands beside every beat. A packed word carries whole
blocks of several rows at once.
"""

from amaranth import signed, unsigned
from amaranth.lib import data

from mxhw.formats import SCALE_BITS, BlockFormat

__all__ = [
    "EXPONENT_BITS",
    "BlockBeat",
    "BlockWord",
    "SharedBeat",
    "WideBeat",
    "element_shape",
]

EXPONENT_BITS = 12
"""Width of the signed exponent of an exact value: holds every sum of two block exponents."""


def element_shape(format: BlockFormat):
    """Shape of one element's code: signed for integer formats, unsigned for floats."""
    bits = format.element.bits
    return signed(bits) if format.element.is_integer else unsigned(bits)


class WideBeat(data.StructLayout):
    """Exact values with one exponent a lane: ``mantissas[l] * 2**exponents[l]``."""

    def __init__(self, *, lanes: int, mantissa_bits: int):
        self.lanes = lanes
        self.mantissa_bits = mantissa_bits
        super().__init__(
            {
                "mantissas": data.ArrayLayout(signed(mantissa_bits), lanes),
                "exponents": data.ArrayLayout(signed(EXPONENT_BITS), lanes),
            }
        )


class SharedBeat(data.StructLayout):
    """Exact values with one exponent for the whole block: ``mantissas[l] * 2**exponent``."""

    def __init__(self, *, lanes: int, mantissa_bits: int):
        self.lanes = lanes
        self.mantissa_bits = mantissa_bits
        super().__init__(
            {
                "mantissas": data.ArrayLayout(signed(mantissa_bits), lanes),
                "exponent": signed(EXPONENT_BITS),
            }
        )


class BlockBeat(data.StructLayout):
    """``lanes`` elements of an MX block and the block's scale byte."""

    def __init__(self, *, format: BlockFormat, lanes: int):
        if lanes < 1 or format.block_size % lanes:
            raise ValueError(
                f"Lanes of a beat must divide the block size ({format.block_size}), not {lanes}"
            )
        self.block_format = format
        self.lanes = lanes
        super().__init__(
            {
                "elements": data.ArrayLayout(element_shape(format), lanes),
                "scale": unsigned(SCALE_BITS),
            }
        )


class BlockWord(data.ArrayLayout):
    """One whole block of each of ``rows`` rows: what a matrix engine takes a cycle."""

    def __init__(self, *, format: BlockFormat, rows: int):
        self.block_format = format
        self.rows = rows
        super().__init__(BlockBeat(format=format, lanes=format.block_size), rows)
