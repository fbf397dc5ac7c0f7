"""Lower a PyTorch module to the graph that every reading starts from."""

import torch
from torch import fx, nn

from mxhw.compiler.frontend import capture, check_supported
from mxhw.compiler.passes import LOWERING, LoweringOptions, verify, verify_lowered

__all__ = ["lower", "reset_caches"]


def lower(module: nn.Module, options: LoweringOptions | None = None) -> fx.GraphModule:
    """Capture a module with torch.fx and lower it to operators on MX blocks.

    The result runs in PyTorch: that is the golden model. For a decode step it takes
    ``(token[1], position[1])`` and returns ``(next token, logits)``; for a prefill it takes
    ``tokens[T]`` and returns the same for every position.

    Raises
    ------
    UserError
        If the model holds unsupported operations (all are named) or widths that are not whole
        blocks.
    """
    options = options or LoweringOptions()
    graph = capture(module)
    check_supported(graph)
    for step in LOWERING:
        step.run(graph, options)
        verify(graph, step.name)
    verify_lowered(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def reset_caches(graph: fx.GraphModule) -> None:
    """Forget every cached key and value of a lowered decode step."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, str(node.target))
            if hasattr(value, "reset") and not isinstance(value, torch.Tensor):
                value.reset()
