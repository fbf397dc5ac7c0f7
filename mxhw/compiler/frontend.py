"""From a PyTorch module to a traced graph, and the check of what it holds."""

import dataclasses
import operator
import re
from typing import Any, TypeAlias

from torch import fx, nn
from torch.nn import functional

from mxhw.errors import UserError
from mxhw.models.llama import CausalAttention, KeyValueCache, LlamaTracer, Positions, RMSNorm, Rope

__all__ = [
    "Node",
    "SUPPORTED_FUNCTIONS",
    "SUPPORTED_MODULES",
    "capture",
    "check_supported",
    "source_code",
    "source_line",
]

Node: TypeAlias = Any
"""A torch.fx node, whose arguments have no useful static types."""

SUPPORTED_MODULES: dict[type[nn.Module], str] = {
    nn.Embedding: "torch.nn.Embedding",
    nn.Linear: "torch.nn.Linear",
    nn.SiLU: "torch.nn.SiLU",
    RMSNorm: "mxhw.models.llama.RMSNorm",
    Rope: "mxhw.models.llama.Rope",
    Positions: "mxhw.models.llama.Positions",
    CausalAttention: "mxhw.models.llama.CausalAttention",
    KeyValueCache: "mxhw.models.llama.KeyValueCache",
}

SUPPORTED_FUNCTIONS: dict[Any, str] = {
    functional.silu: "torch.nn.functional.silu",
    operator.add: "+",
    operator.mul: "silu(a) * b",
    operator.getitem: "indexing of a cache's result",
}

_SUPPORTED_METHODS = ("flatten", "unflatten")

_ADVICE = {
    "gelu": "use SiLU (torch.nn.functional.silu)",
    "relu": "use SiLU (torch.nn.functional.silu)",
    "layer_norm": "use RMSNorm (mxhw.models.llama.RMSNorm)",
    "LayerNorm": "use RMSNorm (mxhw.models.llama.RMSNorm)",
    "softmax": "use the attention module (mxhw.models.llama.CausalAttention)",
    "scaled_dot_product_attention": "use mxhw.models.llama.CausalAttention",
    "Dropout": "remove it: it does nothing at inference",
    "dropout": "remove it: it does nothing at inference",
}


@dataclasses.dataclass(frozen=True)
class _Problem:
    what: str
    where: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} at {self.where}: {self.advice}"


class _Tracer(LlamaTracer):
    record_stack_traces = True


def capture(module: nn.Module) -> fx.GraphModule:
    """Trace a module with torch.fx; each node keeps the source line it comes from.

    Raises
    ------
    UserError
        If the module cannot be traced (control flow on values), with the line that prevents it.
    """
    try:
        graph = _Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"Model cannot be traced by torch.fx: {error}; "
            f"remove branches and loops that depend on tensor values"
        ) from error
    return fx.GraphModule(module, graph)


def source_line(node: fx.Node) -> str:
    """The user's file and line of a node, as ``file:line``, or the node's name if unknown."""
    frame = _frame(node)
    if frame is None:
        return f"node {node.name!r}"
    path, line, _ = frame
    return f"{path.rsplit('/', 1)[-1]}:{line}"


def source_code(node: fx.Node) -> str:
    """The text of the line that :func:`source_line` names; empty if unknown."""
    frame = _frame(node)
    return "" if frame is None else frame[2].strip()


def _frame(node: fx.Node) -> tuple[str, str, str] | None:
    """File, line and code of the innermost call in the user's files."""
    trace = node.stack_trace or ""
    frames = re.findall(r'File "([^"]+)", line (\d+)[^\n]*(?:\n {4}([^\n]*))?', trace)
    outside = [f for f in frames if "/torch/" not in f[0]]
    return outside[-1] if outside else None


def _advice(name: str, supported: list[str]) -> str:
    for key, text in _ADVICE.items():
        if key in name:
            return text
    return f"supported are {', '.join(supported)}"


def _problem(graph: fx.GraphModule, node: fx.Node) -> _Problem | None:
    where = source_line(node)
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if type(module) not in SUPPORTED_MODULES:
            name = type(module).__name__
            advice = _advice(name, list(SUPPORTED_MODULES.values()))
            return _Problem(f"Module {name}", where, advice)
    elif node.op == "call_function" and node.target not in SUPPORTED_FUNCTIONS:
        name = getattr(node.target, "__name__", str(node.target))
        advice = _advice(name, list(SUPPORTED_FUNCTIONS.values()))
        return _Problem(f"Function {name}", where, advice)
    elif node.op == "call_method" and node.target not in _SUPPORTED_METHODS:
        advice = f"supported are {', '.join(_SUPPORTED_METHODS)}"
        return _Problem(f"Method {node.target}", where, advice)
    elif node.op == "get_attr":
        return _Problem(
            f"Tensor attribute {node.target}", where, "use it inside a supported module"
        )
    return None


def check_supported(graph: fx.GraphModule) -> None:
    """Refuse a graph that holds anything but supported operators.

    Raises
    ------
    UserError
        Every unsupported node, each with its source line and what to use instead.
    """
    problems = [p for node in graph.graph.nodes if (p := _problem(graph, node)) is not None]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        plural = "" if len(problems) == 1 else "s"
        raise UserError(f"{len(problems)} unsupported operation{plural} in the model:{lines}")
