# amaranth: UnusedElaboratable=no
"""A small instance of every unit of the library, for checks that all of them must pass."""

from mxhw.arith import (
    Accumulator,
    BlockDot,
    DotProduct,
    ElementwiseAdd,
    ElementwiseMultiply,
    FixedDotProduct,
    PackedPairMultiplier,
    Quantizer,
    Requantizer,
    StreamFifo,
    SystolicArray,
)
from mxhw.formats import FixedFormat, parse_format

SMALL = parse_format("mxint4_b8")
FLOAT = parse_format("mxfp8_b8")

UNITS = {
    "fifo": lambda: StreamFifo(shape=5, depth=3),
    "accumulator": lambda: Accumulator(product_bits=9, max_terms=5, align_bits=2),
    "block dot": lambda: BlockDot(x_format=SMALL, w_format=SMALL),
    "dot mxint4": lambda: DotProduct(x_format=SMALL, w_format=SMALL, max_terms=3, nan=True),
    "dot mxint4, pairs": lambda: DotProduct(
        x_format=SMALL, w_format=SMALL, max_terms=3, multiplier=PackedPairMultiplier()
    ),
    "dot mxfp4": lambda: DotProduct(
        x_format=parse_format("mxfp4_b8"), w_format=parse_format("mxfp4_b8"), max_terms=3
    ),
    "dot mxfp8": lambda: DotProduct(x_format=FLOAT, w_format=FLOAT, max_terms=3),
    "fixed dot": lambda: FixedDotProduct(
        x_format=FixedFormat(4), w_format=FixedFormat(4), lanes=4, max_terms=3
    ),
    "systolic array": lambda: SystolicArray(
        x_format=SMALL, w_format=SMALL, rows=2, columns=1, max_terms=2
    ),
    "quantizer": lambda: Quantizer(mantissa_bits=8, lanes=4, formats=SMALL),
    "quantizer mxfp8": lambda: Quantizer(mantissa_bits=8, lanes=4, formats=FLOAT),
    "requantizer": lambda: Requantizer(x_format=parse_format("mxint6_b8"), format=SMALL, lanes=4),
    "add": lambda: ElementwiseAdd(x_format=SMALL, y_format=SMALL, format=SMALL, lanes=4),
    "multiply": lambda: ElementwiseMultiply(x_format=SMALL, y_format=SMALL, format=SMALL, lanes=4),
    "multiply mxfp8": lambda: ElementwiseMultiply(
        x_format=FLOAT, y_format=FLOAT, format=FLOAT, lanes=4
    ),
}
