"""Element and block formats: the only place that knows a bit layout, a range or a rounding rule.

Every element format decodes to an integer *significand*, with
``value = significand * 2**-fraction_bits``.
A block is ``block_size`` elements and one E8M0 scale byte ``s``; an element's value is
``significand * 2**(s - 127 - fraction_bits)``. Source: OCP Microscaling Formats (MX) 1.0.
"""

import dataclasses
import functools
import re

import numpy as np

from mxhw.errors import UserError

__all__ = [
    "SCALE_BIAS",
    "SCALE_BITS",
    "SCALE_MAX",
    "SCALE_NAN",
    "BlockFormat",
    "ElementFormat",
    "list_formats",
    "parse_format",
]

SCALE_BITS = 8
SCALE_BIAS = 127
SCALE_MAX = 254
SCALE_NAN = 255


@dataclasses.dataclass(frozen=True)
class ElementFormat:
    """One element of a block: a two's complement integer or a small float.

    Integer elements have ``bits - 2`` fraction bits (MXINT8: 6) and saturate symmetrically at
    ``+-(2**(bits - 1) - 1)``; the most negative code decodes but is never produced.
    Float elements have subnormals, no infinity is ever produced, and finite overflow saturates.

    Parameters
    ----------
    name : str
        Name as in the specification, lower case, for example ``"int8"`` or ``"e2m1"``.
    bits : int
        Width of the code.
    exponent_bits, mantissa_bits : int
        Zero exponent bits make an integer format.
    max_significand : int
        Largest magnitude produced, in units of ``2**-fraction_bits``.
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    max_significand: int

    @property
    def is_integer(self) -> bool:
        """Whether codes are two's complement integers."""
        return self.exponent_bits == 0

    @property
    def exponent_bias(self) -> int:
        """Bias of a float element's exponent field."""
        return (1 << (self.exponent_bits - 1)) - 1 if self.exponent_bits else 0

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal float element; 0 for integers."""
        return 1 - self.exponent_bias if self.exponent_bits else 0

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest element: what the shared scale leaves to the element."""
        return self.max_significand.bit_length() - 1 - self.fraction_bits

    @property
    def fraction_bits(self) -> int:
        """Position of the binary point in the significand."""
        if self.is_integer:
            return self.bits - 2
        return self.mantissa_bits - self.min_exponent

    @property
    def significand_bits(self) -> int:
        """Width of the signed significand that decoding gives."""
        if self.is_integer:
            return self.bits
        return self.max_significand.bit_length() + 1

    def decode_table(self) -> np.ndarray:
        """Significand (int64) of every code, indexed by the unsigned code.

        Codes that mean NaN or infinity in the specification (E4M3 0x7F/0xFF, E5M2 exponent 31)
        are given the significand 0: the quantiser never produces them.
        """
        codes = np.arange(1 << self.bits, dtype=np.int64)
        if self.is_integer:
            return np.where(codes >> (self.bits - 1), codes - (1 << self.bits), codes)
        mantissa = codes & ((1 << self.mantissa_bits) - 1)
        exponent = (codes >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        normal = exponent > 0
        magnitude = np.where(
            normal,
            (mantissa + (1 << self.mantissa_bits)) << np.maximum(exponent - 1, 0),
            mantissa,
        )
        magnitude = np.where(magnitude > self.max_significand, 0, magnitude)
        return np.where(codes >> (self.bits - 1), -magnitude, magnitude)


def _integer(bits: int) -> ElementFormat:
    return ElementFormat(f"int{bits}", bits, 0, 0, (1 << (bits - 1)) - 1)


_FLOATS = {
    "e4m3": ElementFormat("e4m3", 8, 4, 3, 448 << 9),
    "e5m2": ElementFormat("e5m2", 8, 5, 2, 57344 << 16),
    "e2m3": ElementFormat("e2m3", 6, 2, 3, 60),
    "e3m2": ElementFormat("e3m2", 6, 3, 2, 28 << 4),
    "e2m1": ElementFormat("e2m1", 4, 2, 1, 12),
}


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """A microscaling block: elements that share one E8M0 scale.

    The scale is ``2**(floor(log2(max|x|)) - element.max_exponent)``, clamped to the byte's range
    (the specification's floor rule); elements round to nearest even and saturate; a block of
    zeros has scale byte 0.

    Parameters
    ----------
    element : ElementFormat
        Format of each element.
    block_size : int
        Elements of a block, a power of two between 8 and 128.

    Raises
    ------
    ValueError
        If the block size is not supported.
    """

    element: ElementFormat
    block_size: int = 32

    def __post_init__(self) -> None:
        size = self.block_size
        if not isinstance(size, int):
            raise TypeError(f"Block size must be an integer, not {size!r}")
        if size < 8 or size > 128 or size & (size - 1):
            raise ValueError(f"Block size must be a power of two between 8 and 128, not {size}")

    @property
    def name(self) -> str:
        """Name that :func:`parse_format` reads, for example ``"mxint8"`` or ``"mxfp4_e2m1"``."""
        element = self.element
        base = f"mx{element.name}" if element.is_integer else f"mxfp{element.bits}_{element.name}"
        return base if self.block_size == 32 else f"{base}_b{self.block_size}"

    @property
    def block_bits(self) -> int:
        """Bits of one packed block, scale included."""
        return self.element.bits * self.block_size + SCALE_BITS

    @property
    def bits_per_element(self) -> float:
        """Storage per element with the scale's share."""
        return self.block_bits / self.block_size

    @classmethod
    def mxint(cls, bits: int, block_size: int = 32) -> "BlockFormat":
        """Integer block format of 2 to 24 bits."""
        if not isinstance(bits, int):
            raise TypeError(f"Element width must be an integer, not {bits!r}")
        if not 2 <= bits <= 24:
            raise ValueError(f"Element width of MXINT must be between 2 and 24, not {bits}")
        return cls(_integer(bits), block_size)

    @classmethod
    def mxfp(cls, element: str, block_size: int = 32) -> "BlockFormat":
        """Float block format by its element's name: e4m3, e5m2, e2m3, e3m2 or e2m1."""
        if element not in _FLOATS:
            raise ValueError(f"Element format must be one of {', '.join(_FLOATS)}, not {element!r}")
        return cls(_FLOATS[element], block_size)


_PATTERN = re.compile(
    r"mx(?:int(?P<int>\d+)|fp(?P<bits>[468])(?:_(?P<float>e\dm\d))?)(?:_b(?P<block>\d+))?"
)
_DEFAULT_FLOAT = {"4": "e2m1", "6": "e2m3", "8": "e4m3"}


@functools.cache
def parse_format(text: str) -> BlockFormat:
    """Block format of a name such as ``mxint8``, ``mxfp4``, ``mxfp6_e3m2`` or ``mxint4_b16``.

    Raises
    ------
    UserError
        If the name is not a format; the message lists those that exist.
    """
    match = _PATTERN.fullmatch(text.strip().lower().replace("-", "_"))
    try:
        if match is None:
            raise ValueError
        block = int(match["block"]) if match["block"] else 32
        if match["int"]:
            return BlockFormat.mxint(int(match["int"]), block)
        result = BlockFormat.mxfp(match["float"] or _DEFAULT_FLOAT[match["bits"]], block)
        if result.element.bits != int(match["bits"]):
            raise ValueError
        return result
    except ValueError:
        names = ", ".join(list_formats())
        raise UserError(
            f"Format {text!r} does not exist; choose one of {names} (MXINT of 2 to 24 bits, "
            f"and _b8 to _b128 for another block size)"
        ) from None


def list_formats() -> list[str]:
    """Names of the standard formats, widest first."""
    integers = [BlockFormat.mxint(bits).name for bits in (8, 6, 5, 4)]
    return integers + [BlockFormat.mxfp(name).name for name in _FLOATS]
