"""Dot products in fixed point: what microscaling formats are compared with."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.dot import queue_depth
from mxhw.arith.multiply import DspMultiplier
from mxhw.arith.pipeline import (
    OutputQueue,
    adder_tree,
    delay,
    delay_value,
    register,
    tree_levels,
    wire,
)
from mxhw.formats import FixedFormat

__all__ = ["FixedDotProduct"]


class FixedDotProduct(wiring.Component):
    """Dot product of two vectors in fixed point, ``lanes`` elements a cycle.

    Contract: the exact sum of the products of codes. It cannot overflow. The most negative code
    must not come.

    Parameters
    ----------
    x_format, w_format : FixedFormat
        Widths of the codes.
    lanes : int
        Elements a transfer, a power of two.
    max_terms : int
        Largest number of transfers of a vector.
    multiplier : strategy, optional
        What makes the products (:mod:`mxhw.arith.multiply`); hardware multipliers by default.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``x`` and ``w``, arrays of signed codes; ``first`` and ``last``: of a vector.
    o : ``Out(stream.Signature(signed))``
        The sum.

    Raises
    ------
    TypeError, ValueError
        If a format is no fixed-point format, or lanes or terms are not supported.

    Timing: :attr:`latency` from a vector's last transfer, interval 1 a transfer.

    Cost: a multiplier a lane.
    """

    def __init__(
        self,
        *,
        x_format: FixedFormat,
        w_format: FixedFormat,
        lanes: int = 32,
        max_terms: int,
        multiplier=None,
    ):
        for format in (x_format, w_format):
            if not isinstance(format, FixedFormat):
                raise TypeError(f"Format of a fixed dot product must be fixed, not {format!r}")
        for name, value in (("Lanes", lanes), ("Number of terms", max_terms)):
            if not isinstance(value, int):
                raise TypeError(f"{name} of a dot product must be an integer, not {value!r}")
        if lanes < 2 or lanes & (lanes - 1):
            raise ValueError(f"Lanes of a dot product must be a power of two, not {lanes}")
        if max_terms < 1:
            raise ValueError(
                f"Number of terms of a dot product must be at least 1, not {max_terms}"
            )
        self._multiplier = multiplier or DspMultiplier()
        self._lanes = lanes
        self._product = x_format.max_code * w_format.max_code
        self._sum_bits = (self._product * lanes * max_terms).bit_length() + 1
        payload = data.StructLayout(
            {
                "x": data.ArrayLayout(signed(x_format.bits), lanes),
                "w": data.ArrayLayout(signed(w_format.bits), lanes),
                "first": 1,
                "last": 1,
            }
        )
        super().__init__(
            {"i": In(stream.Signature(payload)), "o": Out(stream.Signature(signed(self._sum_bits)))}
        )

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a vector's last elements to that of its sum."""
        return 1 + self._multiplier.latency + tree_levels(self._lanes) + 2

    @property
    def interval(self) -> int:
        """Cycles from one transfer to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        return {
            "multipliers": self._multiplier.multipliers * self._lanes,
            "memory_bits": self._sum_bits * queue_depth(self.latency - 1),
        }

    def elaborate(self, platform):
        m = Module()
        m.submodules.out = out = OutputQueue(
            shape=self.o.payload.shape(), depth=queue_depth(self.latency - 1)
        )
        wiring.connect(m, out.o, wiring.flipped(self.o))
        payload = self.i.payload
        accept = wire(m, self.i.valid & out.free, "accept")
        m.d.comb += [self.i.ready.eq(out.free), out.reserve.eq(accept & payload.last)]
        bits = self._product.bit_length() + 1
        products = []
        for lane in range(self._lanes):
            x = register(m, payload.x[lane], f"x_{lane}")
            w = register(m, payload.w[lane], f"w_{lane}")
            product = self._multiplier.product(m, x, w, f"product_{lane}")
            products.append(product[:bits].as_signed())
        term = adder_tree(m, products, "sum")
        wait = self.latency - 2
        total = Signal.like(self.o.payload, reset_less=True)
        first = delay_value(m, payload.first, wait, "first")
        with m.If(delay(m, accept, wait, "accept")):
            m.d.sync += total.eq(Mux(first, 0, total) + term)
        m.d.comb += [
            out.i.valid.eq(delay(m, accept & payload.last, wait + 1, "last")),
            out.i.payload.eq(total),
        ]
        return m
