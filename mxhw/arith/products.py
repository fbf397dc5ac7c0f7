"""Dot products of element codes: decoding, products and their exact sum, for any pair of formats.

Each class here is one way to build it, a pipeline that never stalls; :func:`choose_products` picks
the one that suits two formats and a multiplier.
"""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.utils import bits_for

from mxhw.arith.decode import MAX_SIGNIFICAND_BITS, decode
from mxhw.arith.multiply import DspMultiplier, LutMultiplier, PackedPairMultiplier
from mxhw.arith.pipeline import (
    PAIRS_A_CHAIN,
    add_pairs,
    adder_tree,
    carry_tree,
    delay_value,
    negate_if,
    register,
    signed_tree,
    tree_levels,
    wire,
)
from mxhw.formats import BlockFormat, ElementFormat

__all__ = [
    "BlockProducts",
    "FloatProducts",
    "IntegerProducts",
    "PairProducts",
    "SmallFloatProducts",
    "choose_products",
    "max_dot",
]

_GROUP_BITS = 2
_CLASS_BITS = 4


def max_dot(x_format: BlockFormat, w_format: BlockFormat, full_range: bool = False) -> int:
    """Largest magnitude of the dot product of two blocks, in units of both significands.

    It counts NaN codes of floats as the numbers that their fields spell, and with ``full_range``
    also the most negative integer, which no quantiser produces.
    """

    def largest(element: ElementFormat) -> int:
        if element.is_integer:
            return element.max_significand + full_range
        return int(abs(element.spelled_table()).max())

    return largest(x_format.element) * largest(w_format.element) * x_format.block_size


class BlockProducts:
    """Base class: the exact sum of the products of two blocks' elements.

    Without ``full_range`` the most negative integer code must not come.
    Special codes of float elements (NaN, infinities) count as the numbers that their fields spell
    (:meth:`mxhw.formats.ElementFormat.spelled_table`).

    Members
    -------
    x_format, w_format : BlockFormat
    max_product : int
        Largest magnitude of the sum.
    """

    def __init__(
        self,
        x_format: BlockFormat,
        w_format: BlockFormat,
        multiplier,
        pairs_a_chain: int = PAIRS_A_CHAIN,
        full_range: bool = False,
    ):
        self.max_product = max_dot(x_format, w_format, full_range)
        self.pairs_a_chain = pairs_a_chain
        self.x_format = x_format
        self.w_format = w_format
        self.multiplier = multiplier

    @property
    def product_bits(self) -> int:
        """Width of the signed sum."""
        return self.max_product.bit_length() + 1

    @property
    def size(self) -> int:
        """Elements of a block."""
        return self.x_format.block_size

    @property
    def latency(self) -> int:
        """Cycles from the codes to the product."""
        raise NotImplementedError

    def sum(self, m: Module, x: Sequence[Value], w: Sequence[Value]) -> Value:
        """Add the pipeline to a module.

        Takes element codes, a new pair of blocks every cycle, and returns the signed sum of the
        products of their significands, ``latency`` cycles later.
        """
        raise NotImplementedError

    @property
    def multipliers(self) -> int:
        """Hardware multipliers."""
        return self.multiplier.multipliers * self.size


class IntegerProducts(BlockProducts):
    """Codes are decoded to signed integers, which are multiplied.

    For integers, and for floats with few exponents. The sign of a product of two floats goes to
    one factor, so that the other is only a shifted significand.
    """

    @property
    def _decodes(self) -> bool:
        return not (self.x_format.element.is_integer and self.w_format.element.is_integer)

    @property
    def latency(self) -> int:
        """Cycles from the codes to the product."""
        return 1 + self._decodes + self.multiplier.latency + tree_levels(self.size)

    def sum(self, m: Module, x: Sequence[Value], w: Sequence[Value]) -> Value:
        """Add the pipeline to a module."""
        products = []
        limit = self.max_product // self.size
        bits = Shape.cast(range(-limit, limit + 1)).width
        for lane, (x_code, w_code) in enumerate(zip(x, w, strict=True)):
            a = register(m, x_code, f"x_code_{lane}")
            b = register(m, w_code, f"w_code_{lane}")
            if not (self.x_format.element.is_integer or self.w_format.element.is_integer):
                signed = wire(m, Cat(a[:-1], a[-1] ^ b[-1]), f"x_signed_{lane}")
                left = decode(self.x_format, signed)
                right = decode(self.w_format, Cat(b[:-1], Const(0, 1)))[:-1]
            else:
                left, right = decode(self.x_format, a), decode(self.w_format, b)
            if self._decodes:
                left = register(m, left, f"x_significand_{lane}")
                right = register(m, right, f"w_significand_{lane}")
            product = self.multiplier.product(m, left, right, f"product_{lane}")
            products.append(product[:bits].as_signed())
        return adder_tree(m, products, "sum", self.pairs_a_chain)


class PairProducts(BlockProducts):
    """Narrow integers: a multiplier gives the sum of two products (:class:`PackedPairMultiplier`).

    The full product is ``x0*w1 + (x0*w0 + x1*w1) * 2**k + x1*w0 * 2**2k``. What the lowest part
    borrows from the middle is known from its factors' signs, and what the highest part adds to the
    middle's two top bits from its factors' two low bits.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        elements = self.x_format.element, self.w_format.element
        self._shift = PackedPairMultiplier.width - elements[0].bits
        product = self.max_product // self.size
        if not (
            all(element.is_integer for element in elements)
            and elements[1].bits <= elements[0].bits
            and product < 1 << self._shift
        ):
            raise ValueError(
                f"Two products can share a multiplier if both formats have integer elements and "
                f"products stay below 2**{self._shift}, not {self.x_format.name} with "
                f"{self.w_format.name}"
            )

    @property
    def latency(self) -> int:
        """Cycles from the codes to the product."""
        return 3 + self.multiplier.latency + tree_levels(self.size // 2) + 1

    @property
    def multipliers(self) -> int:
        """Hardware multipliers."""
        return self.size // 2

    def sum(self, m: Module, x: Sequence[Value], w: Sequence[Value]) -> Value:
        """Add the pipeline to a module."""
        x = [register(m, code, f"x_code_{lane}").as_signed() for lane, code in enumerate(x)]
        w = [register(m, code, f"w_code_{lane}").as_signed() for lane, code in enumerate(w)]
        # The upper factor of each side lends one to the sign of the lower.
        borrows = [code[-1].replicate(2).as_signed() for code in x[0::2]]
        lent = add_pairs(m, x[1::2], borrows, "lent", pairs_a_chain=self.pairs_a_chain)
        terms, carries = [], []
        for pair, upper in enumerate(lent):
            x0, x1 = x[2 * pair : 2 * pair + 2]
            w0, w1 = w[2 * pair : 2 * pair + 2]
            left = Cat(self._extend(x0), upper[: len(x1)]).as_signed()
            right = Cat(self._extend(w1), _lend(w0, w1[-1])).as_signed()
            left, right = register(m, left, f"x_{pair}"), register(m, right, f"w_{pair}")
            high = Cat(x1[0] & w0[0], (x1[1] & w0[0]) ^ (x1[0] & w0[1]))
            cycles = 1 + self.multiplier.latency
            high = delay_value(m, high, cycles, f"high_{pair}")
            negative = delay_value(m, x0[-1] ^ w1[-1], cycles, f"negative_{pair}")
            product = self.multiplier.product(m, left, right, f"product_{pair}")
            low, middle = product[: self._shift], product[self._shift :]
            top = middle[self._shift : self._shift + 2]
            top = Cat(top[0] ^ high[0], top[1] ^ high[1] ^ (~top[0] & high[0]))
            term = Cat(middle[: self._shift], top).as_signed()
            terms.append(register(m, term, f"term_{pair}"))
            carries.append(register(m, negative & low.any(), f"carry_{pair}"))
        return carry_tree(m, terms, carries, "sum", self.pairs_a_chain)

    def _extend(self, value: Value) -> Value:
        """A signed value in the lower part of a factor."""
        return Cat(value, value[-1].replicate(self._shift - len(value)))


class FloatProducts(BlockProducts):
    """Floats with many exponents: the shift by both exponents is a factor of the product.

    With significands ``a`` and ``b`` and the sum ``t`` of the exponents, the multiplier takes
    ``+-a << (t mod 4)`` and ``b << (t mod 16 - t mod 4)``. What is left of ``t`` chooses one of a
    few sums, whose positions differ by 16 bits each. Choosing costs nothing: registers of the
    others are cleared.
    """

    @property
    def _floats(self) -> list[ElementFormat]:
        elements = self.x_format.element, self.w_format.element
        return [element for element in elements if not element.is_integer]

    @property
    def _max_shift(self) -> int:
        return sum((1 << element.exponent_bits) - 1 for element in self._floats)

    @property
    def _classes(self) -> int:
        return (self._max_shift >> _CLASS_BITS) + 1

    @property
    def latency(self) -> int:
        """Cycles from the codes to the product."""
        return 3 + self.multiplier.latency + tree_levels(self.size) + self._classes - 1

    def sum(self, m: Module, x: Sequence[Value], w: Sequence[Value]) -> Value:
        """Add the pipeline to a module."""
        classes: list[list[Value]] = [[] for _ in range(self._classes)]
        for lane, (x_code, w_code) in enumerate(zip(x, w, strict=True)):
            a = register(m, x_code, f"x_code_{lane}")
            b = register(m, w_code, f"w_code_{lane}")
            for index, value in enumerate(self._lane(m, lane, a, b)):
                classes[index].append(value)
        sums = [
            adder_tree(m, terms, f"sum_{index}", self.pairs_a_chain)
            for index, terms in enumerate(classes)
        ]
        # Float significands are doubled (see _halves): that many zeros lie below the units.
        doubled = len(self._floats)
        total = sums[0][doubled:].as_signed()
        for index in range(1, self._classes):
            late = delay_value(m, sums[index], index - 1, f"late_{index}")
            shift = (index << _CLASS_BITS) - doubled
            upper = wire(m, (total >> shift) + late, f"upper_{index}")
            low = total[:shift]
            total = register(m, Cat(low, upper).as_signed(), f"total_{index}")
        return total

    def _lane(self, m: Module, lane: int, x: Value, w: Value) -> list[Value]:
        """Products by class; all but one are 0."""
        x_element, w_element = self.x_format.element, self.w_format.element
        if w_element.is_integer:
            x, w, x_element, w_element = w, x, w_element, x_element
        b, shift = _halves(w_element, w)
        if x_element.is_integer:
            # One bit more, for the negative of the most negative code.
            a = wire(m, Cat(x, x[-1]).as_signed(), f"a_{lane}")
            a = Mux(w[-1], -a, a)[: len(a)].as_signed()
        else:
            a, exponent = _halves(x_element, x)
            a = negate_if(x[-1] ^ w[-1], wire(m, a, f"a_{lane}"))
            shift = _add_small(m, exponent, shift, f"t_{lane}")
        a = register(m, a, f"a_signed_{lane}")
        b = register(m, b, f"b_{lane}")
        shift = register(m, shift, f"shift_{lane}")

        for step in range(_GROUP_BITS):
            moved = a << (1 << step)
            a = wire(m, Mux(shift[step], moved, a), f"a_shifted_{lane}_{step}")
        a = register(m, a, f"a_factor_{lane}")
        groups = []
        group = shift[_GROUP_BITS:_CLASS_BITS]
        for index in range(1 << len(group)):
            part = Signal(len(b), name=f"b_factor_{lane}_{index}", reset_less=True)
            m.d.sync += part.eq(b)
            with m.If(group != index):
                m.d.sync += part.eq(0)
            groups.append(Cat(part, Const(0, (1 << _GROUP_BITS) - len(b))))
        factor = Cat(groups[:-1], groups[-1][: len(b)])
        chosen = register(m, shift[_CLASS_BITS:], f"class_{lane}") if self._classes > 1 else None
        return self.multiplier.choices(m, a, factor, chosen, self._classes, f"product_{lane}")


class SmallFloatProducts(BlockProducts):
    """Floats with one mantissa bit in lookup tables, products as magnitudes until their sum.

    With the sum ``t`` of both exponents, the product of two significands of two bits each has four
    possible ones: at ``t`` (unless both mantissas are set), at ``t - 1`` (if one is), at ``t - 2``
    and ``t + 1`` (if both are). Tables make the product from the mantissas and ``t mod 4``; a table
    more for three of the bits, and registers that are cleared for the others, move it by four.
    Signs are those of the adders' operands (:func:`signed_tree`).
    """

    @property
    def latency(self) -> int:
        """Cycles from the codes to the product."""
        return 4 + tree_levels(self.size) + 1

    @property
    def multipliers(self) -> int:
        """Hardware multipliers: none."""
        return 0

    def sum(self, m: Module, x: Sequence[Value], w: Sequence[Value]) -> Value:
        """Add the pipeline to a module."""
        magnitudes, signs = [], []
        for lane, (x_code, w_code) in enumerate(zip(x, w, strict=True)):
            a = register(m, x_code, f"x_code_{lane}")
            b = register(m, w_code, f"w_code_{lane}")
            magnitudes.append(self._magnitude(m, lane, a, b))
            signs.append(a[-1] ^ b[-1])
        return signed_tree(m, magnitudes, signs, 3, "sum", self.pairs_a_chain)

    def _magnitude(self, m: Module, lane: int, x: Value, w: Value) -> Value:
        """The product of two codes without their signs, three cycles later."""
        mantissas, zeros = [], []
        for name, code in (("x", x), ("w", w)):
            tiny = wire(m, ~code[1:-1].any(), f"{name}_tiny_{lane}")
            # One, the only number below the normal ones, is a power of two as well.
            mantissas.append(_cleared(m, code[0], tiny, f"{name}_mantissa_{lane}"))
            zeros.append(tiny & ~code[0])
        zero = register(m, zeros[0] | zeros[1], f"zero_{lane}")
        exponents = [_two_bits(code[1:-1]) for code in (x, w)]
        total = [sum(divmod(key, 4)) for key in range(16)]
        shift = _table(m, Cat(exponents), total, f"shift_{lane}")
        shift = register(m, shift, f"shift_2_{lane}")

        key = Cat(shift[:2], mantissas)
        low: list[Value] = []
        for place in range(4):
            bit = self._ones(m, lane, key, place)
            low.append(_cleared(m, bit, zero, f"low_{place}_{lane}"))
        below = register(m, self._ones(m, lane, key, -1), f"below_{lane}")
        # Both ends of the product of two set mantissas, of which one is used.
        ends = mantissas[0] & mantissas[1] & (shift[0] == shift[1])
        ends = register(m, ends, f"ends_{lane}")
        by_four = register(m, shift[2], f"by_four_{lane}")
        bits: list[Value] = [
            _cleared(m, low[0], by_four, f"product_0_{lane}"),
            _cleared(m, low[1], by_four, f"product_1_{lane}"),
            register(m, Mux(by_four, ends, low[2]), f"product_2_{lane}"),
            register(m, Mux(by_four, below, low[3]), f"product_3_{lane}"),
            register(m, Mux(by_four, low[0], ends), f"product_4_{lane}"),
            *(
                _cleared(m, low[place], ~by_four, f"product_{place + 4}_{lane}")
                for place in (1, 2, 3)
            ),
        ]
        return Cat(bits)[: bits_for(self.max_product // self.size)]

    def _ones(self, m: Module, lane: int, key: Value, place: int) -> Value:
        """Whether the product has a one there, by the key of :func:`_has_one`."""
        return _table(m, key, [_has_one(row, place) for row in range(16)], f"one_{place}_{lane}")


def choose_products(
    x_format: BlockFormat,
    w_format: BlockFormat,
    multiplier=None,
    pairs_a_chain: int = PAIRS_A_CHAIN,
    full_range: bool = False,
) -> BlockProducts:
    """The smallest of these ways for two formats and a multiplier.

    Without a multiplier, floats with one mantissa bit and few exponents take lookup tables, all
    others hardware multipliers.
    """
    elements = x_format.element, w_format.element
    if isinstance(multiplier, PackedPairMultiplier):
        return PairProducts(x_format, w_format, multiplier, pairs_a_chain, full_range)
    floats = [element for element in elements if not element.is_integer]
    small = len(floats) == 2 and all(
        element.mantissa_bits == 1 and element.exponent_bits <= 2 for element in elements
    )
    if small and (multiplier is None or isinstance(multiplier, LutMultiplier)):
        return SmallFloatProducts(x_format, w_format, LutMultiplier(), pairs_a_chain)
    multiplier = multiplier or DspMultiplier()
    wide = any(element.significand_bits > MAX_SIGNIFICAND_BITS for element in floats)
    many = len(floats) == 2 and min(element.exponent_bits for element in floats) > 2
    kind = FloatProducts if wide or many else IntegerProducts
    return kind(x_format, w_format, multiplier, pairs_a_chain, full_range)


def _halves(element: ElementFormat, code: Value) -> tuple[Value, Value]:
    """Significand of a float code in half units and the exponent field, which is its shift.

    A subnormal number has its significand doubled instead of an exponent of 1.
    """
    mantissa = code[: element.mantissa_bits]
    exponent = code[element.mantissa_bits : element.bits - 1]
    normal = Cat(mantissa, Const(1, 1))
    return Mux(exponent.any(), normal, Cat(Const(0, 1), mantissa)), exponent


def _lend(value: Value, borrow: Value) -> Value:
    """A short signed value less one bit, in one more bit, without a carry chain."""
    bits = [value[index] ^ (borrow & ~value[:index].any()) for index in range(len(value))]
    return Cat(bits, value[-1] | (borrow & ~value.any()))


def _add_small(m: Module, a: Value, b: Value, name: str) -> Value:
    """Sum of two small unsigned values without a carry chain, which is long to enter and leave."""
    carry: Value = Const(0, 1)
    bits = []
    for index in range(max(len(a), len(b))):
        left = a[index] if index < len(a) else Const(0, 1)
        right = b[index] if index < len(b) else Const(0, 1)
        bits.append(left ^ right ^ carry)
        both = (left & right) | (carry & (left | right))
        carry = wire(m, both, f"{name}_carry_{index}")
    return Cat(bits, carry)


def _cleared(m: Module, value: Value, clear: Value, name: str) -> Value:
    """A register that a synchronous reset clears: an AND that takes no lookup table."""
    result = Signal(len(value), name=name, reset_less=True)
    m.d.sync += result.eq(value)
    with m.If(clear):
        m.d.sync += result.eq(0)
    return result


def _two_bits(value: Value) -> Value:
    return Cat(value, Const(0, 2 - len(value)))


def _has_one(key: int, place: int) -> int:
    """Whether a product has a one at a place: of ``t mod 4`` and the two mantissas."""
    ones = ((0,), (0, -1), (1, -2))[(key >> 2).bit_count()]
    return int(place - (key & 3) in ones)


def _table(m: Module, key: Value, values: Sequence[int], name: str) -> Value:
    """Truth table."""
    result = Signal(bits_for(max(values)), name=name)
    with m.Switch(key):
        for index, value in enumerate(values):
            with m.Case(index):
                m.d.comb += result.eq(value)
    return result
