"""The C++ that Yosys wrote for a design, on machine words instead of expression templates.

CXXRTL writes each assignment with the templates of its runtime: a slice of a concatenation of sums
is a chain of class instances, one for each width and position, which a compiler instantiates,
inlines and unrolls one after the other. :func:`rewrite` replaces them by integer arithmetic on the
32-bit words in which the runtime keeps its values. The variables, and with them waveforms, resets
and access by name, stay as they are. A statement that has an operator without a rule here is left
untouched.
"""

import re
from collections.abc import Callable
from typing import TypeVar

from mxhw.cosim._bits import (
    WIDEST,
    WORD,
    Bits,
    Bitwise,
    Choice,
    Concatenation,
    Constant,
    NoRule,
    Repetition,
    Scalar,
    Slice,
    Variable,
    integer_type,
    literal,
    mask,
    resized,
    scalar_of_type,
)

__all__ = ["rewrite"]

_T = TypeVar("_T")

_DECLARATION = re.compile(r"\b(?:value|wire)<(\d+)> (\w+)\b")
_COMMIT = re.compile(r"(\t+)if \((\w+)\.commit\(observer\)\) changed = true;")
_STATEMENT = re.compile(r"(\t+)((?:[pi]_|tmp_)\w+[^ ]*) = (.*);")
_RESET = re.compile(r"(\t+)(\w+) = wire<(\d+)>(\{[^{}]*\});")
_UPDATE = re.compile(r"(\t+)(memory_\w+)\.update\((tmp_\d+\.index), (.*), (-?\d+)\);")
_TARGET = re.compile(r"(\w+(?:\.next|\.curr)?)(?:\.slice<(\d+)(?:,(\d+))?>\(\))?")
_TOKEN = re.compile(r"0x[0-9a-f]+u|\d+u?|\w+|[.<>(){}?:,]")
_NUMBER = re.compile(r"(0x[0-9a-f]+|\d+)u?")

#: The line of the design's namespace, and what the statements of memories call: there are hundreds
#: of memories of one width, and the runtime's code for a list of writes would be compiled for each.
_OPENING = "namespace cxxrtl_design {\n"
_HELPERS = """
template<size_t Bits>
__attribute__((noinline)) void update_memory(memory<Bits> &memory, size_t index,
    const value<Bits> &data, const value<Bits> &enable, int priority) {
\tmemory.update(index, data, enable, priority);
}

template<size_t Bits>
__attribute__((noinline)) bool commit_memory(memory<Bits> &memory) {
\tobserver ignored;
\treturn memory.commit(ignored);
}
"""


class _Reader:
    """Reads one expression of the form that Yosys writes.

    Parameters
    ----------
    text : str
    widths : dict
        Width of each variable, by name.
    name : callable
        Gives a computed integer a name, so that its text is not repeated: takes text and width,
        returns the name.
    """

    def __init__(self, text: str, widths: dict[str, int], name: Callable[[str, int], str]) -> None:
        self._tokens = _TOKEN.findall(text)
        # Whatever the pattern passes over is no part of this language.
        if sum(map(len, self._tokens)) != len(text.replace(" ", "")):
            raise NoRule
        self._at = 0
        self._widths = widths
        self._name = name

    def read_all(self) -> list[Bits]:
        """The expressions, which commas separate."""
        result = self._separated(self._expression)
        if self._at != len(self._tokens):
            raise NoRule
        return result

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str | None = None) -> str:
        token = self._peek()
        if not token or (wanted is not None and token != wanted):
            raise NoRule
        self._at += 1
        return token

    def _number(self) -> int:
        match = _NUMBER.fullmatch(self._take())
        if match is None:
            raise NoRule
        return int(match[1], 0)

    def _separated(self, read: Callable[[], _T]) -> list[_T]:
        """One or more of what is read, which commas separate."""
        result = [read()]
        while self._peek() == ",":
            self._take(",")
            result.append(read())
        return result

    def _parameters(self) -> list[int]:
        self._take("<")
        result = self._separated(self._number)
        self._take(">")
        return result

    def _expression(self) -> Bits:
        token = self._take()
        if token == "(":
            bits = self._choice()
        elif token == "value":
            bits = self._constant()
        elif self._peek() == "<":
            bits = self._call(token)
        elif self._widths.get(token):
            bits = self._variable(token)
        else:
            raise NoRule
        while self._peek() == ".":
            self._take(".")
            bits = self._member(bits)
        return bits

    def _variable(self, name: str) -> Bits:
        width = self._widths[name]
        if self._peek() == "." and self._tokens[self._at + 1] in ("curr", "next"):
            self._take(".")
            name += f".{self._take()}"
        return Variable(name, width)

    def _constant(self) -> Bits:
        (width,) = self._parameters()
        close = {"{": "}", "(": ")"}.get(self._take())
        words = self._separated(self._number)
        self._take(close)
        return Constant(sum(word << WORD * index for index, word in enumerate(words)), width)

    def _choice(self) -> Bits:
        condition = self._truth(self._expression())
        if self._peek() == ")":
            raise NoRule
        self._take("?")
        yes = self._expression()
        self._take(":")
        no = self._expression()
        self._take(")")
        if yes.width != no.width:
            raise NoRule
        if yes.width <= WIDEST:
            return Scalar(f"({condition} ? {yes.scalar()} : {no.scalar()})", yes.width)
        return Choice(self._name(condition, 1), yes, no, yes.width)

    def _member(self, bits: Bits) -> Bits:
        member = self._take()
        if member == "slice":
            high, *rest = self._parameters()
            low = rest[0] if rest else high
            bits = Slice(self._named(bits, low, high), low, high - low + 1)
        elif member == "repeat":
            (count,) = self._parameters()
            bits = Repetition(self._name(bits.scalar(), 1), count)
        elif member == "concat":
            self._take("(")
            low = self._expression()
            if bits.width + low.width > WORD:
                # A part may lie across two words, and is then read twice.
                bits, low = self._shared(bits), self._shared(low)
            bits = Concatenation(bits, low)
        elif member != "val":
            raise NoRule
        if member != "concat":
            self._take("(")
        self._take(")")
        return bits

    def _named(self, bits: Bits, low: int, high: int) -> Bits:
        """A computed integer of which a part is read has its name, for another part."""
        if isinstance(bits, Scalar) and (low, high) != (0, bits.width - 1):
            return Scalar(self._name(bits.text, bits.width), bits.width)
        return bits

    def _truth(self, bits: Bits) -> str:
        if bits.width <= WIDEST:
            return f"({bits.scalar()} != 0)"
        return "((" + " | ".join(bits.words()) + ") != 0)"

    def _call(self, name: str) -> Bits:
        (width,) = self._parameters()
        self._take("(")
        operands = self._separated(self._expression)
        self._take(")")
        kind, _, signs = name.rpartition("_")
        if name in _TESTS:
            text = _TESTS[name](self, *operands)
            return resized(Scalar(f"uint32_t({text})", 1), width)
        if kind in _COMPARISONS:
            text = self._compare(_COMPARISONS[kind], signs, *operands)
            return resized(Scalar(f"uint32_t({text})", 1), width)
        signed = signs in ("s", "ss", "su")
        if kind in _BITWISE:
            pattern, inverted = _BITWISE[kind]
            cast = tuple(self._cast(operand, width, signed) for operand in operands)
            return Bitwise(pattern, cast, width, inverted)
        if kind in _SHIFTS and signs[1:] == "u":
            return self._shift(_SHIFTS[kind], signed, width, *operands)
        if kind in _SUMS:
            if width > WIDEST:
                return self._wide_sum(kind, [self._cast(each, width, signed) for each in operands])
            cast = [scalar_of_type(self._cast(each, width, signed), width) for each in operands]
            text = f"{_SUMS[kind].format(*cast)} & {literal(mask(width), width)}"
            return Scalar(f"({text})", width)
        raise NoRule

    def _wide_sum(self, kind: str, operands: list[Bits]) -> Bits:
        """Sum or difference word by word, with the carry between them."""
        if kind not in ("add", "sub"):
            raise NoRule
        a, b = operands
        carry, flip = ("1", " ^ 0xffffffffu") if kind == "sub" else ("0", "")
        result: list[Bits] = []
        for left, right in zip(a.words(), b.words(), strict=True):
            text = f"uint64_t({left}) + uint32_t({right}{flip}) + {carry}"
            total = self._name(text, WIDEST)
            carry = f"({total} >> {WORD})"
            result.append(Slice(Scalar(total, WIDEST), 0, WORD))
        bits = Slice(result[-1], 0, a.width - WORD * (len(result) - 1))
        for word in reversed(result[:-1]):
            bits = Concatenation(bits, word)
        return bits

    def _cast(self, bits: Bits, width: int, signed: bool) -> Bits:
        if not signed or width <= bits.width:
            return resized(bits, width)
        if width <= WIDEST:
            sign = literal(1 << (bits.width - 1), width)
            text = f"((({scalar_of_type(bits, width)} ^ {sign}) - {sign})"
            return Scalar(f"{text} & {literal(mask(width), width)})", width)
        bits = self._shared(bits)
        sign = self._name(bits.run(bits.width - 1, 1), 1)
        return Concatenation(Repetition(sign, width - bits.width), bits)

    def _shared(self, bits: Bits) -> Bits:
        if isinstance(bits, Scalar):
            return Scalar(self._name(bits.text, bits.width), bits.width)
        return bits

    def _compare(self, operator: str, signs: str, a: Bits, b: Bits) -> str:
        signed = signs == "ss"
        width = max(a.width, b.width)
        left, right = self._cast(a, width, signed), self._cast(b, width, signed)
        if width > WIDEST:
            if operator not in ("==", "!="):
                raise NoRule
            pairs = zip(left.words(), right.words(), strict=True)
            return f"({' | '.join(f'({x} ^ {y})' for x, y in pairs)}) {operator} 0"
        texts = [scalar_of_type(side, width) for side in (left, right)]
        if signed and operator not in ("==", "!="):
            # Turning the sign over orders two's complement as unsigned integers.
            texts = [f"({text} ^ {literal(1 << (width - 1), width)})" for text in texts]
        return f"{texts[0]} {operator} {texts[1]}"

    def _shift(self, direction: str, signed: bool, width: int, a: Bits, b: Bits) -> Bits:
        if max(a.width, b.width, width) > WIDEST:
            raise NoRule
        amount = self._name(b.scalar(), b.width)
        if direction == ">>>" and signed:
            text = self._name(self._cast(a, WIDEST, True).scalar(), WIDEST)
            last = f"({amount} < 63 ? {amount} : 63)"
            shifted = Scalar(f"uint64_t(int64_t({text}) >> {last})", WIDEST)
            return self._shared(resized(self._shared(shifted), width))
        if direction == "<<" or signed:
            a = self._cast(a, width, signed)
        value = a.scalar()
        shift = "<<" if direction == "<<" else ">>"
        zero = literal(0, a.width)
        text = f"({amount} < {a.width} ? {value} {shift} {amount} : {zero})"
        text = f"({text} & {literal(mask(a.width), a.width)})"
        return self._shared(resized(self._shared(Scalar(text, a.width)), width))

    def _words_of(self, bits: Bits) -> list[tuple[str, int]]:
        words = bits.words()
        last = bits.width - WORD * (len(words) - 1)
        return [(word, WORD) for word in words[:-1]] + [(words[-1], last)]

    def _all_ones(self, bits: Bits) -> str:
        if bits.width <= WIDEST:
            return f"{bits.scalar()} == {literal(mask(bits.width), bits.width)}"
        words = self._words_of(bits)
        return " && ".join(f"{word} == {literal(mask(width), width)}" for word, width in words)

    def _parity(self, bits: Bits) -> str:
        if bits.width <= WIDEST:
            return f"__builtin_parityll({bits.scalar()})"
        return f"__builtin_parityll({' ^ '.join(bits.words())})"


_TESTS: dict[str, Callable[..., str]] = {
    "reduce_or": lambda reader, a: reader._truth(a),
    "reduce_bool": lambda reader, a: reader._truth(a),
    "logic_not": lambda reader, a: f"!{reader._truth(a)}",
    "reduce_and": lambda reader, a: reader._all_ones(a),
    "reduce_xor": lambda reader, a: reader._parity(a),
    "reduce_xnor": lambda reader, a: f"!{reader._parity(a)}",
    "logic_and": lambda reader, a, b: f"{reader._truth(a)} && {reader._truth(b)}",
    "logic_or": lambda reader, a, b: f"{reader._truth(a)} || {reader._truth(b)}",
}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_COMPARISONS |= {"eqx": "==", "nex": "!="}
_BITWISE = {
    "pos": ("{0}", False),
    "not": ("{0}", True),
    "and": ("({0} & {1})", False),
    "or": ("({0} | {1})", False),
    "xor": ("({0} ^ {1})", False),
    "xnor": ("({0} ^ {1})", True),
}
_SUMS = {"add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "neg": "(0 - {0})"}
_SHIFTS = {"shl": "<<", "sshl": "<<", "shr": ">>", "sshr": ">>>", "shift": ">>", "shiftx": ">>"}


class _Names:
    """Names for computed integers of one statement, and their declarations."""

    def __init__(self) -> None:
        self.declarations: list[str] = []

    def __call__(self, text: str, width: int) -> str:
        if re.fullmatch(r"\w+", text):
            return text
        name = f"w_{len(self.declarations)}"
        self.declarations.append(f"const {integer_type(width)} {name} = {text};")
        return name


def rewrite(design: str) -> str:
    """Return the C++ of a design with its statements on machine words, line for line."""
    widths: dict[str, int] = {}
    for match in _DECLARATION.finditer(design):
        width = int(match[1])
        # A name that means several things has no width here, and its statements stay.
        widths[match[2]] = width if widths.get(match[2], width) == width else 0
    lines = [_line(line, widths) for line in design.splitlines(keepends=True)]
    return "".join(lines).replace(_OPENING, _OPENING + _HELPERS, 1)


def _line(line: str, widths: dict[str, int]) -> str:
    text = line.rstrip("\n")
    try:
        if match := _RESET.fullmatch(text):
            return match[1] + _reset(match[2], f"value<{match[3]}>{match[4]}", widths) + "\n"
        if match := _STATEMENT.fullmatch(text):
            return match[1] + _assignment(match[2], match[3], widths) + "\n"
        if match := _UPDATE.fullmatch(text):
            return match[1] + _update(match, widths) + "\n"
        if match := _COMMIT.fullmatch(text):
            return match[1] + _commit(match[2], widths.get(match[2], 0)) + "\n"
    except NoRule:
        pass
    return line


def _assignment(target: str, source: str, widths: dict[str, int]) -> str:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise NoRule
    name = match[1]
    width = widths.get(name.partition(".")[0], 0)
    if width == 0:
        raise NoRule
    names = _Names()
    (bits,) = _Reader(source, widths, names).read_all()
    low, count = 0, width
    if match[2] is not None:
        low = int(match[3] or match[2])
        count = int(match[2]) - low + 1
    if bits.width != count:
        raise NoRule
    stores = _stores(name, bits, low, width, names)
    parts = [*names.declarations, *stores]
    return parts[0] if len(parts) == 1 else "{ " + " ".join(parts) + " }"


def _reset(name: str, source: str, widths: dict[str, int]) -> str:
    (bits,) = _Reader(source, widths, _Names()).read_all()
    return " ".join(
        f"{name}.curr.data[{index}] = {name}.next.data[{index}] = {word};"
        for index, word in enumerate(bits.words())
    )


def _stores(name: str, bits: Bits, low: int, width: int, names: _Names) -> list[str]:
    """Statements that write the bits into the variable's words, read before any is written."""
    if isinstance(bits, Scalar) and bits.width > WORD:
        bits = Scalar(names(bits.text, bits.width), bits.width)
    runs = []
    at = low
    while at < low + bits.width:
        word, bit = divmod(at, WORD)
        count = min(WORD - bit, low + bits.width - at)
        runs.append((word, bit, count, bits.run(at - low, count)))
        at += count
    if len(runs) > 1:
        runs = [(word, bit, count, names(text, count)) for word, bit, count, text in runs]
    stores = []
    for word, bit, count, text in runs:
        place = f"{name}.data[{word}]"
        if bit == 0 and count == min(WORD, width - WORD * word):
            stores.append(f"{place} = {text};")
        else:
            keep = literal(mask(WORD) & ~(mask(count) << bit), WORD)
            moved = f"({text} << {bit})" if bit else text
            stores.append(f"{place} = ({place} & {keep}) | {moved};")
    return stores


def _update(match: re.Match[str], widths: dict[str, int]) -> str:
    _, memory, index, arguments, priority = match.groups()
    names = _Names()
    data, enable = _Reader(arguments, widths, names).read_all()
    values = [f"value<{bits.width}>{{{', '.join(bits.words())}}}" for bits in (data, enable)]
    call = f"update_memory({memory}, {index}, {values[0]}, {values[1]}, {priority});"
    return "{ " + " ".join([*names.declarations, call]) + " }"


def _commit(name: str, width: int) -> str:
    if name.startswith("memory_"):
        return f"if (!{name}.write_queue.empty() && commit_memory({name})) changed = true;"
    if width == 0:
        raise NoRule
    words = range((width + WORD - 1) // WORD)
    curr, after = f"{name}.curr.data", f"{name}.next.data"
    differ = " | ".join(f"({curr}[{word}] ^ {after}[{word}])" for word in words)
    copy = " ".join(f"{curr}[{word}] = {after}[{word}];" for word in words)
    return f"changed |= ({differ}) != 0; {copy}"
