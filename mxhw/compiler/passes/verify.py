"""Rules that a graph must keep after each pass."""

from torch import fx

from mxhw import ops
from mxhw.compiler.passes.base import VerificationError
from mxhw.formats import parse_format

__all__ = ["verify", "verify_lowered"]


def verify(module: fx.GraphModule, after: str) -> None:
    """Check what holds at every stage: a well-formed graph with no dead nodes and an output.

    Raises
    ------
    VerificationError
        With the pass's name and the node.
    """
    try:
        module.graph.lint()
    except RuntimeError as error:
        raise VerificationError(f"Graph is malformed after pass {after!r}: {error}") from error
    for node in module.graph.nodes:
        if not node.users and node.op not in ("output", "placeholder"):
            raise VerificationError(f"Node {node.name!r} has no reader after pass {after!r}")


def verify_lowered(module: fx.GraphModule) -> None:
    """Check that only operators are left and that matrix operands are in a narrow format.

    Raises
    ------
    VerificationError
        With the node and the rule it breaks.
    """
    allowed = {"placeholder", "output", "get_attr"}
    for node in module.graph.nodes:
        if node.op in allowed:
            continue
        if node.op != "call_function":
            raise VerificationError(f"Node {node.name!r} is still a {node.op}, not an operator")
        if ops.info(node.target) is None and node.target.__name__ != "_positions":
            raise VerificationError(f"Node {node.name!r} does not call an operator of mxhw.ops")
        if node.target in (ops.linear, ops.logits, ops.scores):
            operand = node.args[0]
            format = operand.kwargs.get("format") if operand.op == "call_function" else None
            if format is not None and parse_format(format).element.bits > 8:
                raise VerificationError(
                    f"Operand {operand.name!r} of {node.name!r} is {format}, too wide for a "
                    f"matrix engine"
                )
