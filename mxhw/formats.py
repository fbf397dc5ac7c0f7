"""Element and block formats: the only place that knows a bit layout, a range or a rounding rule.

Every element format decodes to an integer *significand*, with
``value = significand * 2**-fraction_bits``.
A block is ``block_size`` elements and one E8M0 scale byte ``s``; an element's value is
``significand * 2**(s - 127 - fraction_bits)``. Source: OCP Microscaling Formats (MX) 1.0.

Three baselines stand beside the MX blocks, for comparison: fixed point with one float scale
(:class:`FixedFormat`), minifloats without a scale (:class:`ElementFormat` alone), and block
minifloats, which are MX blocks of any float element (:meth:`BlockFormat.minifloat`).
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
    "SCALE_RULES",
    "BlockFormat",
    "ElementFormat",
    "FixedFormat",
    "list_formats",
    "parse_format",
]

SCALE_BITS = 8
SCALE_BIAS = 127
SCALE_MAX = 254
SCALE_NAN = 255

SCALE_RULES = ("floor", "even", "rceil")
"""How a block's scale follows from its largest magnitude; see :class:`BlockFormat`."""


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
        Largest magnitude produced, in units of ``2**-fraction_bits``. Codes of a float element
        above it are special: the lowest is an infinity if the format has one
        (``has_infinity``), all others are NaN.
    has_infinity : bool
        Whether the format has infinities (E5M2).
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    max_significand: int
    has_infinity: bool = False

    @classmethod
    def minifloat(cls, exponent_bits: int, mantissa_bits: int) -> "ElementFormat":
        """Float element of any split, with subnormals and without NaN or infinities.

        Raises
        ------
        TypeError, ValueError
            If a width is no integer, or not 1 to 5 exponent bits and 0 to 10 mantissa bits.
        """
        for name, value, least, most in (
            ("Exponent", exponent_bits, 1, 5),
            ("Mantissa", mantissa_bits, 0, 10),
        ):
            if not isinstance(value, int):
                raise TypeError(f"{name} width of a minifloat must be an integer, not {value!r}")
            if not least <= value <= most:
                raise ValueError(
                    f"{name} width of a minifloat must be between {least} and {most}, not {value}"
                )
        largest = ((2 << mantissa_bits) - 1) << max((1 << exponent_bits) - 2, 0)
        name = f"e{exponent_bits}m{mantissa_bits}"
        return cls(name, 1 + exponent_bits + mantissa_bits, exponent_bits, mantissa_bits, largest)

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

    @property
    def has_nan(self) -> bool:
        """Whether some codes mean NaN (E4M3, E5M2)."""
        return not self.is_integer and bool(np.isnan(self.value_table()).any())

    def code_of(self, value: float) -> int:
        """Code of a special value: NaN (the positive one), or an infinity.

        Raises
        ------
        ValueError
            If the format does not have it.
        """
        table = self.value_table()
        found = np.flatnonzero(np.isnan(table) if np.isnan(value) else table == value)
        if not len(found) or np.isfinite(value):
            raise ValueError(f"Element format {self.name} does not have the special value {value}")
        # Of several NaNs the one with all bits set: a quiet one, wherever the distinction exists.
        half = 1 << (self.bits - 1)
        return int(found[found < half][-1] if np.isnan(value) else found[-1])

    def value_table(self) -> np.ndarray:
        """Value (float64) of every code, indexed by the unsigned code, NaN and infinities too."""
        if self.is_integer:
            return self.decode_table() * 2.0**-self.fraction_bits
        magnitude = self._magnitudes()
        value = magnitude * 2.0**-self.fraction_bits
        special = magnitude > self.max_significand
        value[special] = np.nan
        if self.has_infinity:
            value[special & (magnitude == magnitude[special].min())] = np.inf
        sign = np.arange(1 << self.bits) >> (self.bits - 1)
        return np.where(sign, -value, value)

    def _magnitudes(self) -> np.ndarray:
        """Magnitude that the fields of every float code spell, special codes included."""
        codes = np.arange(1 << self.bits, dtype=np.int64)
        mantissa = codes & ((1 << self.mantissa_bits) - 1)
        exponent = (codes >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        normal = (mantissa + (1 << self.mantissa_bits)) << np.maximum(exponent - 1, 0)
        return np.where(exponent > 0, normal, mantissa)

    def spelled_table(self) -> np.ndarray:
        """As :meth:`decode_table`, with special codes as the numbers that their fields spell."""
        if self.is_integer:
            return self.decode_table()
        sign = np.arange(1 << self.bits) >> (self.bits - 1)
        return np.where(sign, -self._magnitudes(), self._magnitudes())

    def decode_table(self) -> np.ndarray:
        """Significand (int64) of every code, indexed by the unsigned code.

        Codes that mean NaN or infinity in the specification (E4M3 0x7F/0xFF, E5M2 exponent 31)
        are given the significand 0: the quantiser never produces them unless it is told to.
        """
        codes = np.arange(1 << self.bits, dtype=np.int64)
        if self.is_integer:
            return np.where(codes >> (self.bits - 1), codes - (1 << self.bits), codes)
        magnitude = self._magnitudes()
        magnitude = np.where(magnitude > self.max_significand, 0, magnitude)
        return np.where(codes >> (self.bits - 1), -magnitude, magnitude)


def _integer(bits: int) -> ElementFormat:
    return ElementFormat(f"int{bits}", bits, 0, 0, (1 << (bits - 1)) - 1)


_FLOATS = {
    "e4m3": ElementFormat("e4m3", 8, 4, 3, 448 << 9),
    "e5m2": ElementFormat("e5m2", 8, 5, 2, 57344 << 16, has_infinity=True),
    "e2m3": ElementFormat("e2m3", 6, 2, 3, 60),
    "e3m2": ElementFormat("e3m2", 6, 3, 2, 28 << 4),
    "e2m1": ElementFormat("e2m1", 4, 2, 1, 12),
}


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """A microscaling block: elements that share one E8M0 scale.

    The scale is a power of two that follows from ``max|x|`` by the scale rule, clamped to the
    byte's range; elements round to nearest even and saturate; a block of zeros has scale byte 0.

    * ``floor`` (the specification's own): ``2**(floor(log2(max|x|)) - element.max_exponent)``. The
      largest element may saturate.
    * ``even``: as ``floor``, of the largest magnitude rounded to the element's precision (half
      away from zero).
    * ``rceil``: the least power of two with which no element saturates.

    Parameters
    ----------
    element : ElementFormat
        Format of each element.
    block_size : int
        Elements of a block, a power of two between 8 and 128.
    scale_rule : str
        ``"floor"``, ``"even"`` or ``"rceil"``.

    Raises
    ------
    TypeError, ValueError
        If the block size or the scale rule is not supported.
    """

    element: ElementFormat
    block_size: int = 32
    scale_rule: str = "floor"

    def __post_init__(self) -> None:
        size = self.block_size
        if not isinstance(size, int):
            raise TypeError(f"Block size must be an integer, not {size!r}")
        if size < 8 or size > 128 or size & (size - 1):
            raise ValueError(f"Block size must be a power of two between 8 and 128, not {size}")
        if self.scale_rule not in SCALE_RULES:
            raise ValueError(
                f"Scale rule must be one of {', '.join(SCALE_RULES)}, not {self.scale_rule!r}"
            )

    @property
    def name(self) -> str:
        """Name that :func:`parse_format` reads, for example ``"mxint8"`` or ``"mxfp4_e2m1"``."""
        element = self.element
        if element.is_integer:
            base = f"mx{element.name}"
        elif element == _FLOATS.get(element.name):
            base = f"mxfp{element.bits}_{element.name}"
        else:
            base = f"block_{element.name}"
        base = base if self.block_size == 32 else f"{base}_b{self.block_size}"
        return base if self.scale_rule == "floor" else f"{base}_{self.scale_rule}"

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

    @classmethod
    def minifloat(
        cls, exponent_bits: int, mantissa_bits: int, block_size: int = 32
    ) -> "BlockFormat":
        """Block minifloat: blocks of float elements without special codes, of any split."""
        return cls(ElementFormat.minifloat(exponent_bits, mantissa_bits), block_size)


@dataclasses.dataclass(frozen=True)
class FixedFormat:
    """Fixed point with one float32 scale, the baseline of integer quantisation.

    ``scale = max|x| / (2**(bits - 1) - 1)`` in float32; codes are ``x / scale`` rounded to nearest
    even, symmetric around 0. A scale of 0 (all zeros) gives zero codes.

    Parameters
    ----------
    bits : int
        Width of the codes, 2 to 16.
    granularity : str
        ``"tensor"``: one scale; ``"row"``: one for each row along the quantised axis.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.
    """

    bits: int
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int):
            raise TypeError(f"Width of fixed point must be an integer, not {self.bits!r}")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"Width of fixed point must be between 2 and 16, not {self.bits}")
        if self.granularity not in ("tensor", "row"):
            raise ValueError(
                f"Granularity of fixed point must be tensor or row, not {self.granularity!r}"
            )

    @property
    def name(self) -> str:
        """For example ``"int8_row"``."""
        return f"int{self.bits}_{self.granularity}"

    @property
    def max_code(self) -> int:
        """Largest code; the smallest is its negative."""
        return (1 << (self.bits - 1)) - 1


_PATTERN = re.compile(
    r"(?:mxint(?P<int>\d+)|mxfp(?P<bits>[468])(?:_(?P<float>e\dm\d))?"
    r"|block_e(?P<exponent>\d)m(?P<mantissa>\d+))"
    r"(?:_b(?P<block>\d+))?(?:_(?P<rule>floor|even|rceil))?"
)
_DEFAULT_FLOAT = {"4": "e2m1", "6": "e2m3", "8": "e4m3"}


@functools.cache
def parse_format(text: str) -> BlockFormat:
    """Block format of a name such as ``mxint8``, ``mxfp4``, ``mxfp6_e3m2`` or ``mxint4_b16``.

    Suffixes set the block size (``_b16``) and the scale rule (``_rceil``), in this order.
    ``block_e3m4`` is a block minifloat.

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
            result = BlockFormat.mxint(int(match["int"]), block)
        elif match["exponent"]:
            result = BlockFormat.minifloat(int(match["exponent"]), int(match["mantissa"]), block)
        else:
            result = BlockFormat.mxfp(match["float"] or _DEFAULT_FLOAT[match["bits"]], block)
            if result.element.bits != int(match["bits"]):
                raise ValueError
        return dataclasses.replace(result, scale_rule=match["rule"] or "floor")
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
