"""Arithmetic on MX blocks: products, aligned sums, rounding, and the shapes of payloads."""

from mxhw.arith.accumulate import Accumulator, AlignedSum, accumulator_bits
from mxhw.arith.decode import MAX_SIGNIFICAND_BITS, check_decodable, decode
from mxhw.arith.dot import BlockDot, DotTree, product_bits, unit_exponent
from mxhw.arith.dot_product import DotProduct
from mxhw.arith.elementwise import ElementwiseAdd, ElementwiseMultiply, Requantizer
from mxhw.arith.fixed_dot import FixedDotProduct
from mxhw.arith.multiply import DspMultiplier, LutMultiplier, PackedPairMultiplier
from mxhw.arith.pipeline import OutputQueue, StreamFifo
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import EXPONENT_BITS, BlockBeat, BlockWord, SharedBeat, WideBeat
from mxhw.arith.systolic import SystolicArray

__all__ = [
    "EXPONENT_BITS",
    "MAX_SIGNIFICAND_BITS",
    "Accumulator",
    "AlignedSum",
    "BlockBeat",
    "BlockDot",
    "BlockWord",
    "DotProduct",
    "DotTree",
    "DspMultiplier",
    "ElementwiseAdd",
    "ElementwiseMultiply",
    "FixedDotProduct",
    "LutMultiplier",
    "OutputQueue",
    "PackedPairMultiplier",
    "Quantizer",
    "Requantizer",
    "SharedBeat",
    "StreamFifo",
    "SystolicArray",
    "WideBeat",
    "accumulator_bits",
    "check_decodable",
    "decode",
    "product_bits",
    "unit_exponent",
]
