"""A systolic array of dot products: matrix times matrix, for prefill."""

from amaranth.hdl import Cat, Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.accumulate import AlignedSum, accumulator_bits, check_accumulator, sum_reach
from mxhw.arith.dot import queue_depth, unit_exponent
from mxhw.arith.dot_product import check_formats
from mxhw.arith.pipeline import OutputQueue, delay, delay_value, register, wire
from mxhw.arith.products import choose_products
from mxhw.arith.shapes import EXPONENT_BITS, BlockWord, WideBeat
from mxhw.formats import SCALE_BITS, BlockFormat

__all__ = ["SystolicArray"]

_LEAD = 2


class SystolicArray(wiring.Component):
    """Products of a tile of ``rows`` vectors and a tile of ``columns`` vectors.

    Every transfer brings a block of each vector. Blocks of the first matrix move along the rows, a
    cell a cycle, those of the second along the columns, so that no wire reaches more than one cell.
    Each cell multiplies what passes it and keeps its sum.

    Contract: cell ``(r, c)`` is :func:`mxhw.sw.golden.dot.dot_product` of row ``r`` and column
    ``c``. The most negative integer code and NaN codes and scales must not come
    (:class:`mxhw.arith.DotProduct`).

    Parameters
    ----------
    x_format, w_format : BlockFormat
        Formats of rows and columns, of one block size.
    rows, columns : int
        Cells.
    max_terms : int
        Largest number of blocks of a vector.
    guard_bits, align_bits, multiplier
        As in :class:`mxhw.arith.DotProduct`.

    Members
    -------
    i : ``In(stream.Signature(StructLayout))``
        ``x`` and ``w``: a :class:`BlockWord` of the rows and of the columns; ``first`` and
        ``last``: of the vectors.
    o : ``Out(stream.Signature(WideBeat))``
        The sums, ``rows * columns`` lanes, row by row.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not supported.

    Timing: :attr:`latency` from the last transfer of a tile, interval 1 a transfer: tiles follow
    one another without a gap.

    Cost: ``rows * columns`` dot products, without queues of their own.
    """

    def __init__(
        self,
        *,
        x_format: BlockFormat,
        w_format: BlockFormat,
        rows: int,
        columns: int,
        max_terms: int,
        guard_bits: int = 8,
        align_bits: int = 0,
        multiplier=None,
    ):
        check_formats(x_format, w_format)
        check_accumulator(2, max_terms, guard_bits, align_bits)
        for name, value in (("Rows", rows), ("Columns", columns)):
            if not isinstance(value, int):
                raise TypeError(f"{name} of an array must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} of an array must be at least 1, not {value}")
        self._products = choose_products(x_format, w_format, multiplier)
        self._rows = rows
        self._columns = columns
        self._max_terms = max_terms
        self._guard_bits = guard_bits
        self._align_bits = align_bits
        payload = {
            "x": BlockWord(format=x_format, rows=rows),
            "w": BlockWord(format=w_format, rows=columns),
            "first": 1,
            "last": 1,
        }
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout(payload))),
                "o": Out(
                    stream.Signature(
                        WideBeat(lanes=rows * columns, mantissa_bits=self.mantissa_bits)
                    )
                ),
            }
        )

    @property
    def mantissa_bits(self) -> int:
        """Width of the sums."""
        return accumulator_bits(
            self._products.product_bits, self._max_terms, self._guard_bits, self._align_bits
        )

    @property
    def latency(self) -> int:
        """Cycles from a tile's last transfer to that of its sums."""
        cell = self._products.latency - _LEAD + AlignedSum.latency
        return self._rows + self._columns - 2 + cell + 1

    @property
    def interval(self) -> int:
        """Cycles from one transfer to the next."""
        return 1

    def cost(self) -> dict[str, int]:
        """Multipliers and bits of distributed memory."""
        cells = self._rows * self._columns
        width = self.mantissa_bits + EXPONENT_BITS
        return {
            "multipliers": cells * self._products.multipliers,
            "memory_bits": cells * width * queue_depth(self.latency - 1),
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

        # What passes a cell goes on to its neighbour in the next cycle.
        lines = [payload.x[row] for row in range(self._rows)]
        for row in range(self._rows):
            lines[row] = delay_value(m, lines[row].as_value(), row, f"x_enter_{row}")
        columns = [
            delay_value(m, payload.w[column].as_value(), column, f"w_enter_{column}")
            for column in range(self._columns)
        ]
        for row in range(self._rows):
            line = lines[row]
            for column in range(self._columns):
                self._cell(m, row, column, line, columns[column], accept, out)
                line = register(m, line, f"x_{row}_{column}")
                columns[column] = register(m, columns[column], f"w_{row}_{column}")
        return m

    def _cell(self, m: Module, row, column, x_bits, w_bits, accept, out) -> None:
        products = self._products
        x_shape = BlockWord(format=products.x_format, rows=1)
        w_shape = BlockWord(format=products.w_format, rows=1)
        x, w = data.View(x_shape, x_bits)[0], data.View(w_shape, w_bits)[0]
        limit = products.max_product
        m.submodules[f"sum_{row}_{column}"] = total = AlignedSum(
            product_bits=products.product_bits,
            mantissa_bits=self.mantissa_bits,
            exponent_bits=SCALE_BITS + 2,
            guard_bits=self._guard_bits,
            align_bits=self._align_bits,
            max_product=limit,
            reach=sum_reach(limit, self._max_terms, self._guard_bits, self._align_bits),
        )
        lanes = range(products.size)
        product = products.sum(
            m, [x.elements[lane] for lane in lanes], [w.elements[lane] for lane in lanes]
        )
        wait = products.latency - _LEAD
        skew = row + column
        name = f"{row}_{column}"
        ends = Cat(self.i.payload.first, self.i.payload.last)
        ends = delay_value(m, ends, skew + wait, f"ends_{name}")
        scale = register(m, x.scale + w.scale, f"scale_{name}")
        m.d.comb += [
            total.i_valid.eq(delay(m, accept, skew + wait, f"accept_{name}")),
            total.i_first.eq(ends[0]),
            total.i_last.eq(ends[1]),
            total.i_exponent.eq(delay_value(m, scale, wait - 1, f"scale_{name}")),
            total.i_product.eq(product),
        ]
        # Sums wait for that of the last cell.
        rest = self._rows + self._columns - 2 - skew
        unit = unit_exponent(products.x_format, products.w_format) - self._guard_bits
        lane = row * self._columns + column
        exponent = wire(m, total.o_exponent + unit, f"exponent_{name}")
        late = delay_value(m, Cat(total.o_mantissa, exponent), rest, f"late_{name}")
        width = len(total.o_mantissa)
        m.d.comb += [
            out.i.payload.mantissas[lane].eq(late[:width].as_signed()),
            out.i.payload.exponents[lane].eq(late[width:].as_signed()),
        ]
        if not rest:
            m.d.comb += out.i.valid.eq(total.o_valid)
