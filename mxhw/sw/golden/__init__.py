"""Golden model: exact integer arithmetic of every operator, the truth of all other readings."""

from mxhw.sw.golden.tensor import MXTensor, Wide, quantize, quantize_wide, widen

__all__ = ["MXTensor", "Wide", "quantize", "quantize_wide", "widen"]
