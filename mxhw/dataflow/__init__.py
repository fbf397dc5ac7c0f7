"""Units of a design and what joins them: links, memories, engines, and the folded decoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mxhw.dataflow.link import link, payload_shape

if TYPE_CHECKING:
    from mxhw.dataflow.argmax import ArgMax
    from mxhw.dataflow.attention_output import AttentionOutput
    from mxhw.dataflow.decoder import DecoderParameters, FoldedDecoder
    from mxhw.dataflow.embedding import Embedding
    from mxhw.dataflow.engine import EngineCommand, MatrixEngine
    from mxhw.dataflow.fixed import FixedBeat, ToFixed
    from mxhw.dataflow.frames import FrameReceiver, FrameTransmitter
    from mxhw.dataflow.host import HostController
    from mxhw.dataflow.key_cache import CacheCommand, KeyCache
    from mxhw.dataflow.linear import Linear
    from mxhw.dataflow.logits import LogitsTap
    from mxhw.dataflow.program import (
        Destination,
        EmbeddingCommand,
        Operand,
        Position,
        Shape,
        Step,
        TokenStep,
        Weights,
    )
    from mxhw.dataflow.residual import Residual
    from mxhw.dataflow.rms_norm import RmsNorm
    from mxhw.dataflow.rope import Rope
    from mxhw.dataflow.routing import RouteCommand, StreamRoute, StreamSelect
    from mxhw.dataflow.sequencer import Sequencer
    from mxhw.dataflow.softmax import Softmax
    from mxhw.dataflow.swiglu import Silu, SwiGlu
    from mxhw.dataflow.uart import UartReceiver, UartTransmitter
    from mxhw.dataflow.value_cache import ValueCache
    from mxhw.dataflow.weight_memory import ReadCommand, WeightMemory, WordDecoder

# Some of the modules load PyTorch, which takes a second: each is imported when it is used. The
# function ``link`` has its module's name, so it is imported at once and stands for it.
_MODULES = {
    "argmax": ("ArgMax",),
    "attention_output": ("AttentionOutput",),
    "decoder": ("DecoderParameters", "FoldedDecoder"),
    "embedding": ("Embedding",),
    "engine": ("EngineCommand", "MatrixEngine"),
    "fixed": ("FixedBeat", "ToFixed"),
    "frames": ("FrameReceiver", "FrameTransmitter"),
    "host": ("HostController",),
    "key_cache": ("CacheCommand", "KeyCache"),
    "linear": ("Linear",),
    "logits": ("LogitsTap",),
    "program": (
        "Destination",
        "EmbeddingCommand",
        "Operand",
        "Position",
        "Shape",
        "Step",
        "TokenStep",
        "Weights",
    ),
    "residual": ("Residual",),
    "rms_norm": ("RmsNorm",),
    "rope": ("Rope",),
    "routing": ("RouteCommand", "StreamRoute", "StreamSelect"),
    "sequencer": ("Sequencer",),
    "softmax": ("Softmax",),
    "swiglu": ("Silu", "SwiGlu"),
    "uart": ("UartReceiver", "UartTransmitter"),
    "value_cache": ("ValueCache",),
    "weight_memory": ("ReadCommand", "WeightMemory", "WordDecoder"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ArgMax",
    "AttentionOutput",
    "CacheCommand",
    "DecoderParameters",
    "Destination",
    "Embedding",
    "EmbeddingCommand",
    "EngineCommand",
    "FixedBeat",
    "FoldedDecoder",
    "FrameReceiver",
    "FrameTransmitter",
    "HostController",
    "KeyCache",
    "Linear",
    "LogitsTap",
    "MatrixEngine",
    "Operand",
    "Position",
    "ReadCommand",
    "Residual",
    "RmsNorm",
    "Rope",
    "RouteCommand",
    "Sequencer",
    "Shape",
    "Silu",
    "Softmax",
    "Step",
    "StreamRoute",
    "StreamSelect",
    "SwiGlu",
    "ToFixed",
    "TokenStep",
    "UartReceiver",
    "UartTransmitter",
    "ValueCache",
    "WeightMemory",
    "Weights",
    "WordDecoder",
    "link",
    "payload_shape",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
