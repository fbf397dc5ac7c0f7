"""The factor of a layer normalisation: exact variance from two sums, inverse root by table."""

import math

from amaranth.hdl import Const, Module, Mux, Value, signed, unsigned
from amaranth.lib import data
from amaranth.utils import bits_for

from mxhw.arith.multiply import DspMultiplier
from mxhw.arith.pipeline import delay_value, register, wire
from mxhw.arith.shapes import EXPONENT_BITS
from mxhw.lut.pwl import FunctionUnit, check_index_bits
from mxhw.lut.reciprocal import Scaled
from mxhw.lut.rsqrt import rsqrt_latency, rsqrt_value
from mxhw.sw.golden.layer_norm import variance_bits
from mxhw.sw.golden.norm import NormConstants

__all__ = ["LayerNormFactor", "Moments"]

_UNIT_BITS = 9
_MOST_BITS = 62
_STAGES = 4


class Moments(data.StructLayout):
    """Sum of a vector's codes, sum of their squares, and the exponent of the codes' unit."""

    def __init__(self, *, code_bits: int, dim: int):
        grown = (dim - 1).bit_length()
        super().__init__(
            {
                "total": signed(code_bits + grown),
                "squares": unsigned(2 * code_bits - 1 + grown),
                "exponent": signed(_UNIT_BITS),
            }
        )


class LayerNormFactor(FunctionUnit):
    """``1 / sqrt(variance + epsilon)``: bit for bit ``golden.layer_norm.layer_norm_factor``.

    The variance is exact, so that a vector needs one pass: ``dim * squares - total**2`` does not
    cancel as it would in floating point. The relative error is that of :class:`Rsqrt`.

    Parameters
    ----------
    code_bits : int
        Width of the codes, 2 to 24.
    dim : int
        Elements of a vector, 2 to 65,536.
    epsilon : float
        Above 0.
    index_bits : int
        3, 4 or 5: logarithm of the table's entries.

    Members
    -------
    i : ``In(stream.Signature(Moments(code_bits=code_bits, dim=dim)))``
    o : ``Out(stream.Signature(Scaled()))``

    Raises
    ------
    TypeError, ValueError
        If a parameter is wrong, or the variance needs more than 62 bits.

    Timing: latency 10, or 12 for a dimension that is no power of two; interval 1.

    Cost: the square of the sum, a product with the dimension if it is no power of two, and a
    :class:`Rsqrt`.
    """

    def __init__(self, *, code_bits: int, dim: int, epsilon: float, index_bits: int = 5):
        for value, name, low, high in (
            (code_bits, "Code width", 2, 24),
            (dim, "Dimension", 2, 1 << 16),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} of a layer norm must be an integer, not {value!r}")
            if not low <= value <= high:
                raise ValueError(
                    f"{name} of a layer norm must be between {low} and {high}, not {value}"
                )
        if not isinstance(epsilon, (int, float)) or not 0 < epsilon < math.inf:
            raise ValueError(f"Epsilon of a layer norm must be above 0, not {epsilon!r}")
        bits = variance_bits(code_bits, dim)
        if bits > _MOST_BITS:
            raise ValueError(
                f"Variance of a layer norm must have at most {_MOST_BITS} bits, not {bits}"
            )
        self._code_bits = code_bits
        self._dim = dim
        self._constants = NormConstants.of(dim * dim, epsilon)
        self._bits = bits
        self._index_bits = check_index_bits(index_bits, "a layer norm")
        super().__init__(
            i_shape=Moments(code_bits=code_bits, dim=dim),
            o_shape=Scaled(),
            stages=_STAGES + rsqrt_latency(self._constants.inverse_mantissa),
        )

    @property
    def code_bits(self) -> int:
        """Width of the codes."""
        return self._code_bits

    @property
    def dim(self) -> int:
        """Elements of a vector."""
        return self._dim

    @property
    def index_bits(self) -> int:
        """Logarithm of the table's entries."""
        return self._index_bits

    @property
    def multipliers(self) -> int:
        """Products: each takes one DSP slice for every 18 x 18 bits."""
        power = self._dim & (self._dim - 1) == 0
        return 2 if power else 4

    def _epsilon(self, m: Module, exponent: Value) -> tuple[Value, Value, Value]:
        """The epsilon, and by how many places the variance moves to it: limited, and in full."""
        mantissa = self._constants.epsilon_mantissa
        width = mantissa.bit_length()
        reach = self._bits - 1 - width
        places = wire(m, self._constants.epsilon_exponent - (exponent << 1), "places")
        over = wire(m, places - reach, "over")
        # The mantissa starts below everything, so that one shift to the left serves both ways.
        left = wire(m, Mux(over > 0, reach, places) + width, "left")
        near = Mux(left < 0, 0, left)[: bits_for(self._bits)]
        moved = wire(m, (Const(mantissa, width) << near)[width:][: self._bits - 1], "moved")
        epsilon = register(m, Mux(moved.any(), moved, 1), "epsilon")
        far = over > self._bits
        amount = Mux(over[-1], 0, Mux(far, self._bits, over))[: bits_for(self._bits)]
        return epsilon, register(m, amount, "amount"), register(m, Mux(over[-1], 0, over), "moves")

    def compute(self, m: Module, payload) -> dict[str, Value]:
        """Mantissa and exponent."""
        total = register(m, payload.total, "total")
        squares = register(m, payload.squares, "squares")
        exponent = register(m, payload.exponent, "exponent")
        multiplier = DspMultiplier()
        squared = multiplier.product(m, total, total, "squared")
        many = multiplier.product(m, squares, Const(self._dim), "many")
        epsilon, amount, moves = self._epsilon(m, exponent)
        variance = register(m, (many - squared)[: self._bits], "variance")
        epsilon = register(m, epsilon, "epsilon_1")
        amount = register(m, amount, "amount_1")
        result = register(m, ((variance >> amount) + epsilon)[: self._bits], "moved_variance")
        doubled = delay_value(m, exponent << 1, 1, "doubled")
        doubled = register(m, (doubled + moves)[:EXPONENT_BITS].as_signed(), "unit")
        mantissa, scale = rsqrt_value(
            m,
            result,
            register(m, doubled, "unit_1"),
            self._constants.inverse_mantissa,
            self._constants.inverse_exponent,
            "variance",
            self._index_bits,
        )
        return {"mantissa": mantissa, "exponent": scale}
