"""Multipliers: strategies that give a registered product of two values."""

from amaranth.hdl import Module, Mux, Signal, Value

from mxhw.arith.pipeline import register, wire

__all__ = ["DspMultiplier", "LutMultiplier"]


class DspMultiplier:
    """A product that synthesis maps to a hardware multiplier, one for each product.

    Attributes
    ----------
    latency : int
        Cycles from the factors to the product.
    multipliers : int
        Hardware multipliers a product.
    """

    latency = 1
    multipliers = 1

    def product(self, m: Module, a: Value, b: Value, name: str) -> Signal:
        """Exact product of two integers, signed or not, in a register."""
        return register(m, Value.cast(a) * Value.cast(b), name)


class LutMultiplier:
    """A product in lookup tables: a balanced tree of shifted copies of ``a``, one a bit of ``b``.

    For narrow factors. Make the narrower one ``b``: the tree has ``len(b)`` leaves.

    Attributes
    ----------
    latency : int
        Cycles from the factors to the product.
    multipliers : int
        Hardware multipliers a product: none.
    """

    latency = 1
    multipliers = 0

    def product(self, m: Module, a: Value, b: Value, name: str) -> Signal:
        """Exact product of two integers, signed or not, in a register."""
        a, b = Value.cast(a), Value.cast(b)
        width = (a * b).shape()
        terms = [(index, 1, Mux(b[index], a, 0)) for index in range(len(b))]
        if b.shape().signed:
            terms[-1] = (len(b) - 1, -1, terms[-1][2])
        _position, sign, total = _sum(m, terms, name)
        result = Signal(width, name=name, reset_less=True)
        m.d.sync += result.eq(total if sign > 0 else -total)
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
