"""The quantiser for float elements, and for scale rules that look at more than the highest bit.

It works on signs and magnitudes, and knows the place of every element's highest bit when it rounds:
a float element is rounded there, an integer one at the block's own place. The quantiser of integer
elements by the rule ``floor`` needs neither (:mod:`mxhw.arith.quantize`).
"""

from amaranth.hdl import Cat, Const, Module, Mux, Value
from amaranth.lib import data
from amaranth.utils import bits_for

from mxhw.arith.pipeline import RingStorage, bit_index, delay_value, register, wire
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.formats import BlockFormat

__all__ = ["DRAIN_CYCLES", "FIND_CYCLES", "AnyElements", "is_plain"]

FIND_CYCLES = 3
"""Cycles from a beat to its elements' scales."""
DRAIN_CYCLES = 4
"""Cycles from a stored beat to its codes."""
_TOP_BITS = EXPONENT_BITS + 1


def is_plain(format: BlockFormat) -> bool:
    """Whether a format has integer elements and a scale of the highest bit alone."""
    return format.element.is_integer and format.scale_rule == "floor"


class AnyElements:
    """Both halves of the quantiser: scales of elements, and codes of elements.

    Parameters
    ----------
    format : BlockFormat
        Format of the result.
    mantissa_bits : int
        Width of the signed mantissas.
    """

    def __init__(self, format: BlockFormat, mantissa_bits: int):
        self._format = format
        self._bits = mantissa_bits
        element = format.element
        self._precision = 0 if element.is_integer else element.mantissa_bits
        # The exponent of the elements' finest grid, above the scale's.
        self._grid = -element.fraction_bits
        self._left = element.fraction_bits if element.is_integer else element.mantissa_bits

    @property
    def stored(self) -> data.StructLayout:
        """What waits for the scale, of an element."""
        return data.StructLayout(
            {
                "magnitude": self._bits,
                "negative": 1,
                "index": bits_for(self._bits - 1),
                "zero": 1,
                "top": _TOP_BITS,
            }
        )

    def find(
        self, m: Module, lane: int, mantissa: Value, exponent: Value, storage: RingStorage
    ) -> tuple[Value, Value]:
        """Store an element; the exponent of its scale before limits, and whether it is zero.

        Both are ready two cycles after the mantissa.
        """
        negative = mantissa[-1]
        plain = mantissa.as_unsigned()
        opposite = wire(m, (-mantissa)[: self._bits], f"opposite_{lane}")
        magnitude = register(m, Mux(negative, opposite, plain), f"magnitude_{lane}")
        index, some = bit_index(m, magnitude, f"highest_{lane}")
        raised = register(m, self._is_raised(m, magnitude, lane), f"raised_{lane}")
        index = register(m, index, f"index_{lane}")
        zero = register(m, ~some, f"zero_{lane}")
        exponent = delay_value(m, exponent, 2, f"exponent_{lane}")
        top = wire(m, exponent.as_signed() + index, f"top_{lane}")
        entry = Cat(
            delay_value(m, magnitude, 1, f"magnitude_late_{lane}"),
            delay_value(m, negative, 2, f"negative_{lane}"),
            index,
            zero,
            top[:_TOP_BITS],
        )
        storage.add(m, f"element_{lane}", entry, cycles=2)
        scale = top + raised - self._format.element.max_exponent
        return wire(m, scale, f"scale_exponent_{lane}"), zero

    def _is_raised(self, m: Module, magnitude: Value, lane: int) -> Value:
        """Whether the scale rule takes the next power of two, as golden's ``_rule_exponent``.

        Both rules ask for a run of ones from the highest one on; ``rceil`` also for something
        below it.
        """
        element = self._format.element
        if self._format.scale_rule == "floor":
            return Const(0, 1)
        ceiling = self._format.scale_rule == "rceil"
        if ceiling:
            run = element.max_significand.bit_count()
        else:
            run = 2 + (element.fraction_bits if element.is_integer else element.mantissa_bits)
        found = []
        for place in range(run - 1, len(magnitude)):
            ones = magnitude[place - run + 1 : place + 1].all() & ~magnitude[place + 1 :].any()
            below = magnitude[: place - run + 1].any() if ceiling else Const(1, 1)
            found.append(wire(m, ones & below, f"run_{lane}_{place}"))
        return Cat(found).any() if found else Const(0, 1)

    def drain(self, m: Module, lane: int, element: Value, scale: Value, advance: Value) -> Value:
        """The code of a stored element, :data:`DRAIN_CYCLES` later."""
        format, precision = self._format.element, self._precision
        entry = data.View(self.stored, element)
        # How many steps of the finest grid's exponent the element's highest bit lies above.
        height = wire(
            m, entry.top.as_signed() - (scale + (self._grid + precision)), f"height_{lane}"
        )
        normal = ~height[-1] if not format.is_integer else Const(0, 1)
        place = entry.index + (self._left - precision)
        amount = wire(m, place - Mux(normal, 0, height), f"distance_{lane}")
        longest = self._bits + self._left + 1
        width = bits_for(longest)
        over = amount > longest
        amount = Mux(amount[-1], 0, Mux(over, longest, amount))[:width]
        largest = format.max_exponent + format.fraction_bits - precision
        overflow = (height > largest) & ~entry.zero
        # The exponent field less one, that a normal number adds to its significand.
        field_bits = max(bits_for(max(largest, 1)), 1)
        field = Mux(normal & ~entry.zero & ~overflow, height[:field_bits], 0)

        word = register(
            m, Cat(Const(0, self._left), entry.magnitude), f"word_{lane}", advance
        ).as_unsigned()
        amount = register(m, amount, f"amount_{lane}", advance)
        field = delay_value(m, field, 3, f"field_{lane}", advance)
        overflow = delay_value(m, overflow, 3, f"overflow_{lane}", advance)
        negative = delay_value(m, entry.negative, 4, f"sign_{lane}", advance)

        # One bit below the grid, and whether anything lies below that.
        word, sticky = Cat(Const(0, 1), word), Const(0, 1)
        split = len(amount) // 2
        word, sticky = _shift(m, word, sticky, amount, range(len(amount) - 1, split - 1, -1), lane)
        word = register(m, word, f"coarse_{lane}", advance)
        sticky = register(m, sticky, f"coarse_sticky_{lane}", advance)
        amount = register(m, amount[:split], f"fine_{lane}", advance)
        word, sticky = _shift(m, word, sticky, amount, range(split - 1, -1, -1), lane)
        bits = format.bits - 1
        keep = bits if format.is_integer else precision + 1
        steps, guard = word[1 : 1 + keep], word[0]
        rounded_up = register(m, guard & (sticky | steps[0]), f"up_{lane}", advance)
        steps = register(m, steps, f"steps_{lane}", advance)

        largest_code = self._largest_code()
        code = wire(m, steps + (field << precision) + rounded_up, f"sum_{lane}")
        saturated = overflow | (code > largest_code)
        code = register(m, Mux(saturated, largest_code, code[:bits]), f"code_{lane}", advance)
        if format.is_integer:
            return Mux(negative, -code, code)[: format.bits].as_signed()
        return Cat(code, negative)

    def _largest_code(self) -> int:
        """Code of the largest magnitude, without its sign."""
        format = self._format.element
        if format.is_integer:
            return format.max_significand
        return int((format.spelled_table() == format.max_significand).argmax())


def _shift(
    m: Module, word: Value, sticky: Value, amount: Value, steps: range, lane: int
) -> tuple[Value, Value]:
    """Right shift of an unsigned word, and whether a one left it."""
    for step in steps:
        distance = min(1 << step, len(word))
        chosen = amount[step]
        sticky = wire(m, sticky | (chosen & word[:distance].any()), f"sticky_{lane}_{step}")
        word = wire(m, Mux(chosen, word[distance:], word)[: len(word)], f"word_{lane}_{step}")
    return word, sticky
