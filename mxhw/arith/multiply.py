"""Multipliers: strategies that give a registered product of two values."""

from amaranth.hdl import Module, Mux, Signal, Value

from mxhw.arith.pipeline import delay_value, register, wire

__all__ = ["DspMultiplier", "LutMultiplier", "Multiplier", "PackedPairMultiplier"]

_MAX_STAGES = 3


class Multiplier:
    """Base class of strategies: what makes a product.

    Parameters
    ----------
    stages : int
        Registers between the factors and what follows, 1 to 3: the first is behind the product,
        the second behind that, the third before the product. Each may raise the clock where the
        way to a hardware multiplier is long; none takes logic.

    Attributes
    ----------
    multipliers : int
        Hardware multipliers a product.

    Raises
    ------
    TypeError, ValueError
        If the number of stages is no integer from 1 to 3.
    """

    multipliers = 0

    def __init__(self, stages: int = 1):
        if not isinstance(stages, int):
            raise TypeError(f"Stages of a multiplier must be an integer, not {stages!r}")
        if not 1 <= stages <= _MAX_STAGES:
            raise ValueError(
                f"Stages of a multiplier must be between 1 and {_MAX_STAGES}, not {stages}"
            )
        self._stages = stages

    @property
    def latency(self) -> int:
        """Cycles from the factors to the product."""
        return self._stages

    def expression(self, m: Module, a: Value, b: Value, name: str) -> Value:
        """Exact product of two integers, signed or not, without a register."""
        raise NotImplementedError

    def product(self, m: Module, a: Value, b: Value, name: str) -> Signal:
        """Exact product of two integers, signed or not, in a register."""
        return register(m, self._exact(m, a, b, name), name)

    def _exact(self, m: Module, a: Value, b: Value, name: str) -> Value:
        """The product behind all registers but the last."""
        if self._stages == _MAX_STAGES:
            a = register(m, a, f"{name}_a")
            b = register(m, b, f"{name}_b")
        product = wire(m, self.expression(m, a, b, name), f"{name}_full")
        return product if self._stages == 1 else register(m, product, f"{name}_first")

    def choices(
        self, m: Module, a: Value, b: Value, chosen: Value | None, count: int, name: str
    ) -> list[Value]:
        """The product in one of ``count`` registers, zeros in the others."""
        product = self._exact(m, a, b, name)
        if chosen is None:
            return [register(m, product, name)]
        chosen = delay_value(m, chosen, self._stages - 1, f"{name}_chosen")
        registers: list[Value] = []
        for index in range(count):
            result = Signal.like(product, name=f"{name}_{index}", reset_less=True)
            m.d.sync += result.eq(product)
            with m.If(chosen != index):
                m.d.sync += result.eq(0)
            registers.append(result)
        return registers


class DspMultiplier(Multiplier):
    """A product that synthesis maps to a hardware multiplier, one for each product."""

    multipliers = 1

    def expression(self, m: Module, a: Value, b: Value, name: str) -> Value:
        """Exact product of two integers, signed or not, without a register."""
        return Value.cast(a) * Value.cast(b)


class PackedPairMultiplier(DspMultiplier):
    """A hardware multiplier of 18 bits that two products of narrow integers share.

    With ``k`` = 18 less the width of ``x``, the product of ``x0 + x1 * 2**k`` and
    ``w1 + w0 * 2**k`` has ``x0 * w0 + x1 * w1`` in its middle. A dot product takes it from there
    (:class:`mxhw.arith.products.PairProducts`), for factors whose products are below ``2**k``:
    activations of 8 bits with weights of 4, of 7 with 5, of 6 with 7.
    """

    width = 18


class LutMultiplier(Multiplier):
    """A product in lookup tables: a balanced tree of shifted copies of ``a``, one a bit of ``b``.

    For narrow factors. Make the narrower one ``b``: the tree has ``len(b)`` leaves.
    """

    def expression(self, m: Module, a: Value, b: Value, name: str) -> Value:
        """Exact product of two integers, signed or not, without a register."""
        a, b = Value.cast(a), Value.cast(b)
        width = (a * b).shape()
        terms = [(index, 1, Mux(b[index], a, 0)) for index in range(len(b))]
        if b.shape().signed:
            terms[-1] = (len(b) - 1, -1, terms[-1][2])
        _position, sign, total = _sum(m, terms, name)
        result = Signal(width, name=f"{name}_exact")
        m.d.comb += result.eq(total if sign > 0 else -total)
        return result


def _sum(m: Module, terms: list, name: str) -> tuple[int, int, Value]:
    """Sum of ``sign * value << position`` by halves, relative to the lowest term's position."""
    if len(terms) == 1:
        return terms[0]
    half = (len(terms) + 1) // 2
    position, _sign, low = _sum(m, terms[:half], f"{name}_l")
    upper, sign, high = _sum(m, terms[half:], f"{name}_h")
    shifted = high << (upper - position)
    total = low + shifted if sign > 0 else low - shifted
    # Named, so that synthesis keeps the tree and its widths.
    return position, 1, wire(m, total, f"{name}_sum")
