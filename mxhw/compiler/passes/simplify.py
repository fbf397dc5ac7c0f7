"""Passes on the captured graph, before formats: remove what blocks make free, fuse, fold."""

import math
import operator

from torch import fx, nn
from torch.nn import functional

from mxhw.compiler.frontend import source_line
from mxhw.compiler.passes.base import GraphPass, LoweringOptions, erase_dead
from mxhw.errors import UserError
from mxhw.models.llama import CausalAttention, Rope

__all__ = ["FoldAttentionScale", "FuseGatedSilu", "RemoveReshapes", "swiglu_marker"]


def swiglu_marker(gate: object, up: object) -> object:
    """Placeholder of a fused ``silu(gate) * up`` until formats are known."""
    raise NotImplementedError("swiglu_marker stands for an operator that is lowered later")


class RemoveReshapes(GraphPass):
    """Drop splits and merges of the head axis: a row of MX blocks is the same either way."""

    name = "remove-reshapes"
    summary = "heads are whole blocks of one row, so splitting and merging them costs nothing"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        for node in list(module.graph.nodes):
            if node.op == "call_method" and node.target in ("flatten", "unflatten"):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)


class FuseGatedSilu(GraphPass):
    """``silu(gate) * up`` becomes one node."""

    name = "fuse-gated-silu"
    summary = "silu and the product it feeds are one unit"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        for node in list(module.graph.nodes):
            if node.op != "call_function" or node.target is not operator.mul:
                continue
            gates = [arg for arg in node.args if self._is_silu(module, arg)]
            if not gates:
                raise UserError(
                    f"1 unsupported operation in the model:\n  Product at {source_line(node)}: "
                    f"supported is silu(a) * b"
                )
            gate = gates[0]
            up = node.args[1] if node.args[0] is gate else node.args[0]
            with module.graph.inserting_before(node):
                fused = module.graph.call_function(swiglu_marker, (gate.args[0], up))
            fused.stack_trace = node.stack_trace
            node.replace_all_uses_with(fused)
            erase_dead(module, [gate, node])

    @staticmethod
    def _is_silu(module: fx.GraphModule, node: object) -> bool:
        if not isinstance(node, fx.Node):
            return False
        if node.op == "call_module":
            return isinstance(module.get_submodule(str(node.target)), nn.SiLU)
        return node.target is functional.silu


class FoldAttentionScale(GraphPass):
    """Move ``log2(e) / sqrt(head_size)`` into the query projection.

    The rotation between them is linear, so scores come out of the engine as base-2 logits.
    """

    name = "fold-attention-scale"
    summary = "the query projection carries log2(e) / sqrt(head size)"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        for node in module.graph.nodes:
            if node.op != "call_module":
                continue
            attention = module.get_submodule(str(node.target))
            if not isinstance(attention, CausalAttention):
                continue
            reader, projection = node, node.args[0]
            alone = self._is_only_use(projection, reader)
            while projection.op == "call_module" and isinstance(
                module.get_submodule(str(projection.target)), Rope
            ):
                reader, projection = projection, projection.args[0]
                alone = alone and self._is_only_use(projection, reader)
            is_linear = projection.op == "call_module" and isinstance(
                module.get_submodule(str(projection.target)), nn.Linear
            )
            if not is_linear or not alone:
                raise UserError(
                    f"Queries of the attention at {source_line(node)} must come from a Linear of "
                    f"their own, with at most a Rope between"
                )
            projection.meta["weight_scale"] = math.log2(math.e) / math.sqrt(attention.head_size)

    @staticmethod
    def _is_only_use(node: fx.Node, reader: fx.Node) -> bool:
        # A reader that takes a node twice is one user.
        return list(node.users) == [reader] and list(reader.args).count(node) == 1
