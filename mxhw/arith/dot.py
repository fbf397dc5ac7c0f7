"""The exact dot product of two blocks."""

from collections.abc import Sequence

from amaranth.hdl import Elaboratable, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.decode import check_decodable, decode
from mxhw.arith.multiply import DspMultiplier
from mxhw.arith.pipeline import OutputQueue, adder_tree, delay, delay_value, register, tree_levels
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat
from mxhw.formats import SCALE_BIAS, BlockFormat

__all__ = [
    "BlockDot",
    "DotTree",
    "check_pair",
    "connect_blocks",
    "product_bits",
    "queue_depth",
    "unit_exponent",
]


def check_pair(x_format: BlockFormat, w_format: BlockFormat) -> None:
    """Check that blocks of two formats can be multiplied.

    Raises
    ------
    TypeError, ValueError
        If a format cannot be decoded or the block sizes differ.
    """
    check_decodable(x_format)
    check_decodable(w_format)
    if x_format.block_size != w_format.block_size:
        raise ValueError(
            f"Formats of a dot product must have one block size, not {x_format.block_size} and "
            f"{w_format.block_size}"
        )


def product_bits(x_format: BlockFormat, w_format: BlockFormat) -> int:
    """Width of the signed dot product of two blocks."""
    return (
        x_format.element.significand_bits
        + w_format.element.significand_bits
        + tree_levels(x_format.block_size)
    )


def unit_exponent(x_format: BlockFormat, w_format: BlockFormat) -> int:
    """What the sum of two scale bytes lacks to the exponent of the product's unit."""
    return -(2 * SCALE_BIAS + x_format.element.fraction_bits + w_format.element.fraction_bits)


def queue_depth(latency: int) -> int:
    """Places behind a pipeline for one payload a cycle, in whole cells of distributed memory."""
    return -(-(latency + 3) // 16) * 16


class DotTree(Elaboratable):
    """Products and their sum, a pipeline that never stalls.

    Members
    -------
    x, w : lists of Signal
        Signed significands, a new pair of blocks every cycle.
    product : Signal
        Exact sum, ``latency`` cycles later.
    """

    def __init__(self, *, x_bits: int, w_bits: int, lanes: int, multiplier=None):
        self._multiplier = multiplier or DspMultiplier()
        self._lanes = lanes
        self.x = [Signal(signed(x_bits), name=f"x_{lane}") for lane in range(lanes)]
        self.w = [Signal(signed(w_bits), name=f"w_{lane}") for lane in range(lanes)]
        self.product = Signal(signed(x_bits + w_bits + tree_levels(lanes)))

    @property
    def latency(self) -> int:
        """Cycles from significands to product."""
        return self._multiplier.latency + tree_levels(self._lanes)

    def elaborate(self, platform):
        m = Module()
        products = [
            self._multiplier.product(m, x, w, f"product_{lane}")
            for lane, (x, w) in enumerate(zip(self.x, self.w, strict=True))
        ]
        m.d.comb += self.product.eq(adder_tree(m, products, "sum"))
        return m


class BlockDot(wiring.Component):
    """Dot product of two blocks.

    Contract: the exact sum of the products of the significands, at the exponent
    ``x scale + w scale - 254 - fraction bits of both formats``.

    Parameters
    ----------
    x_format, w_format : BlockFormat
        Formats of one block size, significands of at most 18 bits.
    multiplier : strategy, optional
        What makes the products (:mod:`mxhw.arith.multiply`); hardware multipliers by default.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``x`` and ``w``: a whole block of each as :class:`BlockBeat`.
    o : ``Out(stream.Signature(StructLayout))``
        ``product`` (signed) and ``exponent`` (signed, 12 bits).

    Raises
    ------
    TypeError, ValueError
        If a format is not supported or the block sizes differ.

    Timing: latency 3 + log2(block size), interval 1.

    Cost: one multiplier a lane, block size - 1 adders.
    """

    def __init__(self, *, x_format: BlockFormat, w_format: BlockFormat, multiplier=None):
        check_pair(x_format, w_format)
        self._x_format = x_format
        self._w_format = w_format
        self._multiplier = multiplier or DspMultiplier()
        size = x_format.block_size
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "x": BlockBeat(format=x_format, lanes=size),
                                "w": BlockBeat(format=w_format, lanes=size),
                            }
                        )
                    )
                ),
                "o": Out(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "product": signed(product_bits(x_format, w_format)),
                                "exponent": signed(EXPONENT_BITS),
                            }
                        )
                    )
                ),
            }
        )

    @property
    def x_format(self) -> BlockFormat:
        """Format of the first factor."""
        return self._x_format

    @property
    def w_format(self) -> BlockFormat:
        """Format of the second factor."""
        return self._w_format

    @property
    def product_bits(self) -> int:
        """Width of the product."""
        return product_bits(self._x_format, self._w_format)

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a pair to that of its product."""
        return self._tree_latency + 2

    @property
    def interval(self) -> int:
        """Cycles from one pair to the next."""
        return 1

    @property
    def _tree_latency(self) -> int:
        return self._multiplier.latency + tree_levels(self._x_format.block_size)

    def cost(self) -> dict[str, int]:
        """Multipliers, adders and bits of distributed memory."""
        size = self._x_format.block_size
        return {
            "multipliers": self._multiplier.multipliers * size,
            "adders": size - 1,
            "memory_bits": (self.product_bits + EXPONENT_BITS) * queue_depth(self.latency),
        }

    def elaborate(self, platform):
        m = Module()
        m.submodules.tree = tree = DotTree(
            x_bits=self._x_format.element.significand_bits,
            w_bits=self._w_format.element.significand_bits,
            lanes=self._x_format.block_size,
            multiplier=self._multiplier,
        )
        m.submodules.out = out = OutputQueue(
            shape=self.o.payload.shape(), depth=queue_depth(self.latency)
        )
        wiring.connect(m, out.o, wiring.flipped(self.o))
        accept = Signal()
        m.d.comb += [
            accept.eq(self.i.valid & out.free),
            self.i.ready.eq(out.free),
            out.reserve.eq(accept),
        ]
        x, w = self.i.payload.x, self.i.payload.w
        connect_blocks(m, self._x_format, x.elements, tree.x, "x")
        connect_blocks(m, self._w_format, w.elements, tree.w, "w")
        exponent = register(m, x.scale + w.scale, "scales")
        exponent = register(m, exponent + unit_exponent(self._x_format, self._w_format), "exponent")
        m.d.comb += [
            out.i.valid.eq(delay(m, accept, 1 + tree.latency, "valid")),
            out.i.payload.product.eq(tree.product),
            out.i.payload.exponent.eq(delay_value(m, exponent, tree.latency - 1, "exponent")),
        ]
        return m


def connect_blocks(
    m: Module, format: BlockFormat, codes, significands: Sequence[Signal], name: str
) -> None:
    """Drive significands with the decoded codes, through a register."""
    for lane, significand in enumerate(significands):
        code = register(m, codes[lane], f"{name}_{lane}")
        m.d.comb += significand.eq(decode(format, code))
