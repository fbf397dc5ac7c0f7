"""Bits of a value as C++ on machine words: what a slice, a concatenation or a choice stands for."""

from dataclasses import dataclass

__all__ = [
    "WIDEST",
    "WORD",
    "Bits",
    "Bitwise",
    "Choice",
    "Concatenation",
    "Constant",
    "NoRule",
    "Repetition",
    "Scalar",
    "Slice",
    "Variable",
    "integer_type",
    "literal",
    "mask",
    "resized",
    "scalar_of_type",
]

#: Bits of the words in which the runtime keeps its values.
WORD = 32
#: Widest value that is computed as one integer.
WIDEST = 64
#: Literals of 0, which add nothing to a word.
_ZEROS = ("0x0u", "0x0ull")


class NoRule(Exception):
    """There is no rule for a part of the statement."""


def mask(width: int) -> int:
    return (1 << width) - 1


def literal(value: int, width: int) -> str:
    return f"0x{value:x}{'u' if width <= WORD else 'ull'}"


def integer_type(width: int) -> str:
    return "uint32_t" if width <= WORD else "uint64_t"


class Bits:
    """An expression of ``width`` bits, from which runs of bits can be read.

    The text of a run is a C++ expression of type ``uint32_t``, or ``uint64_t`` beyond 32 bits, with
    zeros above the run.
    """

    width: int

    def run(self, low: int, width: int) -> str:
        """Text for ``width`` bits, at most 64, from bit ``low`` on."""
        raise NotImplementedError

    def scalar(self) -> str:
        """Text for all bits."""
        if self.width > WIDEST:
            raise NoRule
        return self.run(0, self.width)

    def words(self) -> list[str]:
        """Text for each of the 32-bit words of the value."""
        return [self.run(low, min(WORD, self.width - low)) for low in range(0, self.width, WORD)]


@dataclass
class Constant(Bits):
    value: int
    width: int

    def run(self, low: int, width: int) -> str:
        return literal(self.value >> low & mask(width), width)


@dataclass
class Variable(Bits):
    """A ``value<width>``: 32-bit words of which the last has zeros above the value."""

    name: str
    width: int

    def run(self, low: int, width: int) -> str:
        parts = []
        at = low
        while at < low + width:
            word, bit = divmod(at, WORD)
            count = min(WORD - bit, low + width - at)
            text = f"{self.name}.data[{word}]"
            if bit:
                text = f"({text} >> {bit})"
            if bit + count < WORD and at + count < self.width:
                text = f"({text} & {literal(mask(count), count)})"
            parts.append((at - low, text))
            at += count
        return _join(parts, width)


@dataclass
class Scalar(Bits):
    """A computed integer: ``text`` has the type of its width and zeros above it."""

    text: str
    width: int

    def run(self, low: int, width: int) -> str:
        if width == self.width:
            return self.text
        text = f"({self.text} >> {low})" if low else self.text
        if low + width < self.width:
            text = f"({text} & {literal(mask(width), self.width)})"
        return f"uint32_t({text})" if width <= WORD < self.width else text


@dataclass
class Slice(Bits):
    base: Bits
    low: int
    width: int

    def run(self, low: int, width: int) -> str:
        return self.base.run(self.low + low, width)


@dataclass
class Concatenation(Bits):
    """``high`` above ``low``."""

    high: Bits
    low: Bits

    def __post_init__(self) -> None:
        self.width = self.high.width + self.low.width

    def run(self, low: int, width: int) -> str:
        parts: list[tuple[int, str]] = []
        here: Bits = self
        # Long concatenations lean to the left: a loop along their spine, from the lowest part up.
        stack: list[Bits] = []
        while isinstance(here, Concatenation):
            stack.append(here.low)
            here = here.high
        stack.append(here)
        start = 0
        for part in stack:
            first, last = max(low, start), min(low + width, start + part.width)
            if first < last:
                parts.append((first - low, part.run(first - start, last - first)))
            start += part.width
        return _join(parts, width)


@dataclass
class Repetition(Bits):
    """One bit, repeated."""

    bit: str
    width: int

    def run(self, low: int, width: int) -> str:
        ones = literal(mask(width), width)
        return f"((0 - {integer_type(width)}({self.bit})) & {ones})"


@dataclass
class Choice(Bits):
    condition: str
    yes: Bits
    no: Bits
    width: int

    def run(self, low: int, width: int) -> str:
        return f"({self.condition} ? {self.yes.run(low, width)} : {self.no.run(low, width)})"


@dataclass
class Bitwise(Bits):
    """``pattern`` applied to the same run of each operand; each is as wide as the result."""

    pattern: str
    operands: tuple[Bits, ...]
    width: int
    inverted: bool

    def run(self, low: int, width: int) -> str:
        text = self.pattern.format(*(operand.run(low, width) for operand in self.operands))
        if self.inverted:
            text = f"({text} ^ {literal(mask(width), width)})"
        return text


def _join(parts: list[tuple[int, str]], width: int) -> str:
    if len(parts) == 1 and parts[0][0] == 0:
        return parts[0][1] if width <= WORD else f"uint64_t({parts[0][1]})"
    texts = []
    for shift, text in [part for part in parts if part[1] not in _ZEROS] or parts[:1]:
        wide = text if width <= WORD else f"uint64_t({text})"
        texts.append(f"{wide} << {shift}" if shift else wide)
    return "(" + " | ".join(f"({text})" for text in texts) + ")"


def resized(bits: Bits, width: int) -> Bits:
    """Cut or zero-extend."""
    if width <= bits.width:
        return bits if width == bits.width else Slice(bits, 0, width)
    return Concatenation(Constant(0, width - bits.width), bits)


def scalar_of_type(bits: Bits, width: int) -> str:
    """Text of a value of at most ``width`` bits in the type of that width."""
    text = bits.scalar()
    return f"uint64_t({text})" if bits.width <= WORD < width else text
