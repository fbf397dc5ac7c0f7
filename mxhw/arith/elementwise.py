# amaranth: UnusedElaboratable=no
"""Elementwise units on MX blocks: another format, sum, product. All end in a quantiser."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.decode import MAX_SIGNIFICAND_BITS, check_decodable, decode, decode_parts
from mxhw.arith.multiply import DspMultiplier
from mxhw.arith.pipeline import delay, delay_value, register, wire
from mxhw.arith.quantize import MAX_MANTISSA_BITS, Quantizer
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat
from mxhw.arith.shift import limit_shift, shift_right
from mxhw.formats import SCALE_BIAS, BlockFormat

__all__ = ["ElementwiseAdd", "ElementwiseMultiply", "Requantizer"]

_GUARD_BITS = 8


class _Elementwise(wiring.Component):
    """Base: decoded operands, a few stages that stop with the quantiser, the quantiser."""

    _stages: int

    def __init__(
        self,
        operands: dict[str, BlockFormat],
        format: BlockFormat | Sequence[BlockFormat],
        lanes: int,
        mantissa_bits: int,
        *,
        lane_exponents: bool = False,
    ):
        sizes = {operand.block_size for operand in operands.values()}
        if len(sizes) > 1:
            raise ValueError(
                f"Operands must have one block size, not {' and '.join(map(str, sorted(sizes)))}"
            )
        self._operands = operands
        self._lanes = lanes
        shapes: dict[str, Any] = {
            name: BlockBeat(format=f, lanes=lanes) for name, f in operands.items()
        }
        # A larger output block has several input scales.
        largest = format.block_size if isinstance(format, BlockFormat) else format[0].block_size
        self._shared = largest <= sizes.pop() and not lane_exponents
        self._quantizer = Quantizer(
            mantissa_bits=mantissa_bits,
            lanes=lanes,
            formats=format,
            shared_exponent=self._shared,
        )
        self._choices = len(self._quantizer.formats)
        if self._choices > 1:
            shapes["select"] = range(self._choices)
        shape = data.StructLayout(shapes) if len(shapes) > 1 else next(iter(shapes.values()))
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(self._quantizer.o.signature),
            }
        )

    @property
    def format(self) -> BlockFormat:
        """Format of the result."""
        return self._quantizer.format

    @property
    def lanes(self) -> int:
        """Elements a beat."""
        return self._lanes

    @property
    def latency(self) -> int:
        """Cycles from the transfer of an output block's last beat to that of its first result."""
        return self._stages + self._quantizer.latency

    @property
    def interval(self) -> int:
        """Cycles from one output block to the next."""
        return self._quantizer.interval

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        return self._quantizer.cost()

    def elaborate(self, platform):
        m = Module()
        m.submodules.quantizer = quantizer = self._quantizer
        wiring.connect(m, quantizer.o, wiring.flipped(self.o))
        advance = Signal()
        valid = delay(m, self.i.valid, self._stages, "valid", advance)
        m.d.comb += [
            advance.eq(~valid | quantizer.i.ready),
            self.i.ready.eq(advance),
            quantizer.i.valid.eq(valid),
        ]
        mantissas, exponents = self._compute(m, advance)
        payload = quantizer.i.payload
        if self._choices > 1:
            select = delay_value(m, self.i.payload.select, self._stages, "select", advance)
            m.d.comb += payload.select.eq(select)
            payload = payload.beat
        for lane, mantissa in enumerate(mantissas):
            m.d.comb += payload.mantissas[lane].eq(mantissa)
            if not self._shared:
                m.d.comb += payload.exponents[lane].eq(exponents[lane])
        if self._shared:
            m.d.comb += payload.exponent.eq(exponents[0])
        return m

    def _compute(self, m: Module, advance: Value) -> tuple[list[Value], list[Value]]:
        """Mantissas of the lanes and their exponents, ``_stages`` cycles after the input."""
        raise NotImplementedError

    def _beat(self, name: str) -> Any:
        """Where an operand comes in."""
        single = len(self._operands) == self._choices == 1
        return self.i.payload if single else self.i.payload[name]

    def _decoded(self, m: Module, advance: Value, name: str) -> tuple[list[Value], Value]:
        """Significands of an operand and the exponent of their unit, in registers."""
        format, beat = self._operands[name], self._beat(name)
        significands: list[Value] = [
            register(
                m,
                decode(format, beat.elements[lane], MAX_MANTISSA_BITS),
                f"{name}_{lane}",
                advance,
            )
            for lane in range(self._lanes)
        ]
        unit = SCALE_BIAS + format.element.fraction_bits
        exponent = wire(m, (beat.scale - unit).as_signed(), f"{name}_unit")
        return significands, register(m, exponent, f"{name}_exponent", advance)


class Requantizer(_Elementwise):
    """The same values in another format, also of another block size.

    Contract (:func:`mxhw.sw.golden.elementwise.requantize`): the exact value of each element,
    rounded once, as :class:`Quantizer` rounds. NaN does not pass: the scale byte 255 counts as the
    power of two that follows 254, and codes that mean NaN or infinity must not come.

    Parameters
    ----------
    x_format : BlockFormat
        Format of the input.
    format : BlockFormat
        Format of the output.
    lanes : int
        Elements a beat; divides both block sizes.

    Members
    -------
    i : ``In(stream.Signature(BlockBeat))``
    o : ``Out(stream.Signature(BlockBeat))``

    Raises
    ------
    TypeError, ValueError
        If a format or the lanes are not supported.

    Timing: :attr:`latency` from an output block's last beat, a beat a cycle.

    Cost: a quantiser, with a shared exponent unless the output's blocks are larger.
    """

    _stages = 1

    def __init__(self, *, x_format: BlockFormat, format: BlockFormat, lanes: int):
        bits = check_decodable(x_format, MAX_MANTISSA_BITS).element.significand_bits
        super().__init__({"x": x_format}, format, lanes, bits)

    def _compute(self, m: Module, advance: Value) -> tuple[list[Value], list[Value]]:
        significands, exponent = self._decoded(m, advance, "x")
        return significands, [exponent] * self._lanes


class ElementwiseMultiply(_Elementwise):
    """Products of the elements of two vectors.

    Contract (:func:`mxhw.sw.golden.elementwise.multiply`): the exact product, rounded once.

    Parameters
    ----------
    x_format, y_format : BlockFormat
        Formats of one block size; integers of at most 18 bits.
    format : BlockFormat
        Format of the output.
    lanes : int
        Elements a beat; divides the block sizes.
    multiplier : strategy, optional
        What makes the products (:mod:`mxhw.arith.multiply`); hardware multipliers by default.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``x`` and ``y``: a :class:`BlockBeat` of each.
    o : ``Out(stream.Signature(BlockBeat))``

    Raises
    ------
    TypeError, ValueError
        If a format or the lanes are not supported, or the block sizes differ.

    Timing: :attr:`latency` from an output block's last beat, a beat a cycle.

    Cost: a multiplier a lane and a quantiser. With MXFP8 the quantiser has an exponent a lane: the
    multiplier takes the floats' own significands, of 4 or 5 bits, and their exponents are added.
    """

    _stages = 2

    def __init__(
        self,
        *,
        x_format: BlockFormat,
        y_format: BlockFormat,
        format: BlockFormat,
        lanes: int,
        multiplier=None,
    ):
        elements = [check_decodable(f, MAX_MANTISSA_BITS).element for f in (x_format, y_format)]
        for operand in (x_format, y_format):
            if operand.element.is_integer:
                check_decodable(operand)
        self._apart = any(e.significand_bits > MAX_SIGNIFICAND_BITS for e in elements)
        self._multiplier = multiplier or DspMultiplier()
        bits = sum(
            e.mantissa_bits + 2 if self._apart and not e.is_integer else e.significand_bits
            for e in elements
        )
        operands = {"x": x_format, "y": y_format}
        super().__init__(operands, format, lanes, bits, lane_exponents=self._apart)

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        return super().cost() | {"multipliers": self._multiplier.multipliers * self._lanes}

    def _parts(self, m: Module, advance: Value, name: str) -> tuple[list[Value], list[Value]]:
        """Factors of an operand's lanes and their exponents, in registers."""
        if not self._apart:
            factors, exponent = self._decoded(m, advance, name)
            return factors, [exponent] * self._lanes
        format, beat = self._operands[name], self._beat(name)
        unit = SCALE_BIAS + format.element.fraction_bits
        factors, exponents = [], []
        for lane in range(self._lanes):
            factor, shift = decode_parts(format.element, beat.elements[lane])
            exponent = (beat.scale - unit).as_signed()
            exponent = exponent if shift is None else exponent + shift
            factors.append(register(m, factor, f"{name}_{lane}", advance))
            exponents.append(register(m, exponent, f"{name}_exponent_{lane}", advance))
        return factors, exponents

    def _compute(self, m: Module, advance: Value) -> tuple[list[Value], list[Value]]:
        left, x_exponents = self._parts(m, advance, "x")
        right, y_exponents = self._parts(m, advance, "y")
        products: list[Value] = [
            register(
                m, self._multiplier.expression(m, a, b, f"raw_{lane}"), f"product_{lane}", advance
            )
            for lane, (a, b) in enumerate(zip(left, right, strict=True))
        ]
        pairs = list(zip(x_exponents, y_exponents, strict=True))
        if not self._apart:
            return products, [
                register(m, pairs[0][0] + pairs[0][1], "exponent", advance)
            ] * self._lanes
        return products, [
            register(m, a + b, f"exponent_{lane}", advance) for lane, (a, b) in enumerate(pairs)
        ]


class ElementwiseAdd(_Elementwise):
    """Sums of the elements of two vectors.

    Contract (:func:`mxhw.sw.golden.pointwise.add`): both are aligned to the larger exponent of the
    two blocks, with 8 guard bits and floor; the sum is rounded once.

    Parameters
    ----------
    x_format, y_format : BlockFormat
        Formats of one block size.
    format : BlockFormat or sequence of BlockFormat
        Format of the output; several as :class:`Quantizer` takes them.
    lanes : int
        Elements a beat; divides the block sizes.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``x`` and ``y``: a :class:`BlockBeat` of each; with several formats ``select`` too.
    o : ``Out(stream.Signature(BlockBeat))``

    Raises
    ------
    TypeError, ValueError
        If a format or the lanes are not supported, or the block sizes differ.

    Timing: :attr:`latency` from an output block's last beat, a beat a cycle.

    Cost: two shifters a lane and a quantiser; no multipliers.
    """

    _stages = 3

    def __init__(
        self,
        *,
        x_format: BlockFormat,
        y_format: BlockFormat,
        format: BlockFormat | Sequence[BlockFormat],
        lanes: int,
    ):
        limit = MAX_MANTISSA_BITS - _GUARD_BITS - 1
        checked = (check_decodable(operand, limit) for operand in (x_format, y_format))
        bits = max(operand.element.significand_bits for operand in checked)
        super().__init__({"x": x_format, "y": y_format}, format, lanes, bits + _GUARD_BITS + 1)

    def _compute(self, m: Module, advance: Value) -> tuple[list[Value], list[Value]]:
        left, x_exponent = self._decoded(m, advance, "x")
        right, y_exponent = self._decoded(m, advance, "y")
        distance = Signal(signed(EXPONENT_BITS))
        m.d.comb += distance.eq(x_exponent - y_exponent)
        larger = wire(m, ~distance[-1], "larger")
        exponent = register(m, Mux(larger, x_exponent, y_exponent), "larger_exponent", advance)
        aligned = []
        for name, values, amount, enable in (
            ("x", left, -distance, ~larger),
            ("y", right, distance, larger),
        ):
            width = self._operands[name].element.significand_bits + _GUARD_BITS
            amount = limit_shift(m, amount, enable, bits_for(width), name)
            steps = range(len(amount) - 1, -1, -1)
            moved = []
            for lane, value in enumerate(values):
                wide = wire(m, value << _GUARD_BITS, f"{name}_wide_{lane}")
                shifted = shift_right(m, wide, amount, steps)
                moved.append(register(m, shifted, f"{name}_moved_{lane}", advance))
            aligned.append(moved)
        sums: list[Value] = [
            register(m, a + b, f"sum_{lane}", advance)
            for lane, (a, b) in enumerate(zip(*aligned, strict=True))
        ]
        exponent = register(m, exponent - _GUARD_BITS, "exponent", advance)
        return sums, [exponent] * self._lanes
