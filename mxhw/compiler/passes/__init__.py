"""The lowering pipeline: a list of small named passes, with a check after each."""

from mxhw.compiler.passes.base import GraphPass, LoweringOptions, VerificationError
from mxhw.compiler.passes.lower import AppendArgmax, AssignFormats, LowerOperators
from mxhw.compiler.passes.pad import PadToBlocks
from mxhw.compiler.passes.simplify import FoldAttentionScale, FuseGatedSilu, RemoveReshapes
from mxhw.compiler.passes.tables import ChooseTables
from mxhw.compiler.passes.verify import verify, verify_lowered

__all__ = [
    "LOWERING",
    "GraphPass",
    "LoweringOptions",
    "VerificationError",
    "verify",
    "verify_lowered",
]

LOWERING: list[GraphPass] = [
    RemoveReshapes(),
    FuseGatedSilu(),
    FoldAttentionScale(),
    PadToBlocks(),
    AssignFormats(),
    LowerOperators(),
    ChooseTables(),
    AppendArgmax(),
]
