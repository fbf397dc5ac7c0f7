"""A matrix operator with an engine and a weight memory of its own, for spatial designs."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat
from mxhw.dataflow.engine import MatrixEngine
from mxhw.dataflow.link import link
from mxhw.dataflow.weight_memory import WeightMemory, WordDecoder
from mxhw.formats import BlockFormat
from mxhw.sw.golden.tensor import MXTensor
from mxhw.sw.packing import pack_matrix

__all__ = ["Linear"]


class Linear(wiring.Component):
    """Product of each vector with a constant matrix, requantised.

    Contract: golden.linear.linear. Vectors of ``weight.blocks`` blocks come in, vectors of as many
    elements as the weight has rows go out.

    Parameters
    ----------
    weight : MXTensor
        ``[rows, length]``, the rows whole blocks.
    x_format, format : BlockFormat
        Integer formats of input and output.
    engine_format : BlockFormat
        Integer format that holds the weight's significands.
    rows : int
        Rows of the engine, and elements of a beat.

    Members
    -------
    i : In(stream of BlockBeat)
    o : Out(stream of BlockBeat)

    Raises
    ------
    ValueError
        If the rows of the weight are not whole blocks.

    Timing
    ------
    ``interval`` cycles a vector: its words, and the beats of the operand.

    Cost
    ----
    ``rows * block_size`` multipliers, a quantiser, and the weights in block RAM.
    """

    def __init__(
        self,
        *,
        weight: MXTensor,
        x_format: BlockFormat,
        format: BlockFormat,
        engine_format: BlockFormat,
        rows: int,
    ):
        outputs = weight.elements.shape[0]
        if outputs % format.block_size:
            raise ValueError(
                f"Rows of a weight must be whole blocks of {format.block_size}, not {outputs}"
            )
        self._weight = weight
        self._x_format = x_format
        self._format = format
        self._engine_format = engine_format
        self._rows = rows
        super().__init__(
            {
                "i": In(stream.Signature(BlockBeat(format=x_format, lanes=rows))),
                "o": Out(stream.Signature(BlockBeat(format=format, lanes=rows))),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from one vector to the next, without the few between commands."""
        blocks, outputs = self._weight.blocks, self._weight.elements.shape[0]
        beats = blocks * self._x_format.block_size // self._rows
        return blocks * outputs // self._rows + beats

    def elaborate(self, platform) -> Module:
        m = Module()
        weight, rows = self._weight, self._rows
        groups = weight.elements.shape[0] // rows
        words = pack_matrix(weight, rows)
        m.submodules.engine = engine = MatrixEngine(
            x_format=self._x_format,
            w_format=self._engine_format,
            rows=rows,
            slots=max(weight.blocks, 2),
            max_blocks=weight.blocks,
            groups_bits=bits_for(groups),
            x_lanes=rows,
        )
        m.submodules.weights = weights = WeightMemory(format=weight.format, rows=rows, words=words)
        m.submodules.decoder = decoder = WordDecoder(
            from_format=weight.format, to_format=self._engine_format, rows=rows
        )
        m.submodules.quantizer = quantizer = Quantizer(
            mantissa_bits=engine.mantissa_bits, lanes=rows, formats=self._format
        )
        link(m, wiring.flipped(self.i), engine.i_x)
        link(m, weights.o, decoder.i)
        link(m, decoder.o, engine.i_weights)
        link(m, engine.o, quantizer.i)
        link(m, quantizer.o, wiring.flipped(self.o))

        # The engine takes load and product in turns; the memory one run for each product.
        multiply = Signal()
        requested = Signal()
        run = weights.i_command
        m.d.comb += [
            engine.i_command.payload.load.eq(~multiply),
            engine.i_command.payload.blocks.eq(weight.blocks),
            engine.i_command.payload.groups.eq(groups),
            engine.i_command.valid.eq(~multiply | requested),
            run.payload.count.eq(len(words)),
            run.valid.eq(multiply & ~requested),
        ]
        with m.If(run.valid & run.ready):
            m.d.sync += requested.eq(1)
        with m.If(engine.i_command.valid & engine.i_command.ready):
            m.d.sync += [multiply.eq(~multiply), requested.eq(0)]
        return m
