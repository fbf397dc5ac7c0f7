"""Formats for every edge, and the operators of :mod:`mxhw.ops` in place of modules."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from mxhw import ops
from mxhw.compiler.frontend import Node, source_line
from mxhw.compiler.passes.base import GraphPass, LoweringOptions
from mxhw.compiler.passes.pad import Places, pad_matrix, pad_vector
from mxhw.compiler.passes.simplify import swiglu_marker
from mxhw.errors import UserError
from mxhw.formats import BlockFormat
from mxhw.models.llama import CausalAttention, KeyValueCache, Positions, RMSNorm, Rope
from mxhw.sw.golden.cache import KeyStore, ValueStore
from mxhw.sw.golden.tensor import quantize

__all__ = ["AppendArgmax", "AssignFormats", "LowerOperators"]


def _module(graph: fx.GraphModule, node: Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


class AssignFormats(GraphPass):
    """Narrow blocks where every reader is a matrix operand or a cache, wide blocks elsewhere."""

    name = "assign-formats"
    summary = "matrix operands, keys and values are narrow; sums and pointwise inputs are wide"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        for node in module.graph.nodes:
            narrow = bool(node.users) and all(self._reads_narrow(module, u) for u in node.users)
            node.meta["format"] = options.activation_format if narrow else options.wide_format

    @staticmethod
    def _reads_narrow(module: fx.GraphModule, user: Node) -> bool:
        return isinstance(_module(module, user), (nn.Linear, CausalAttention, KeyValueCache))


class LowerOperators(GraphPass):
    """Replace modules and functions by operators with quantised constants.

    Vectors become whole blocks here (:mod:`mxhw.compiler.passes.pad`). A graph without an embedding
    takes and gives MX blocks, so there the widths must be whole blocks already.
    """

    name = "lower-operators"
    summary = "modules become operators on MX blocks, weights are quantised"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        self._module = module
        self._options = options
        self._constants: dict[tuple[Any, ...], str] = {}
        self._replaced: dict[Node, Any] = {}
        self._narrowed: dict[Node, Node] = {}
        self._exact: dict[str, torch.Tensor] = {}
        # Only a model with an embedding ends in logits; another one ends in MX blocks.
        self._has_vocabulary = any(
            isinstance(_module(module, n), nn.Embedding) for n in module.graph.nodes
        )
        for node in list(module.graph.nodes):
            if node.op in ("placeholder", "output"):
                continue
            with module.graph.inserting_before(node):
                new = self._lower(node)
            self._replaced[node] = new
            if isinstance(new, fx.Node):
                new.meta.update(node.meta, source=source_line(node), origin=str(node.target))
                new.stack_trace = node.stack_trace
                node.replace_all_uses_with(new)
        for node in reversed(list(module.graph.nodes)):
            if node in self._replaced:
                node.users.clear()
                module.graph.erase_node(node)

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        return self._module.graph.call_function(function, args, kwargs)

    def _constant(
        self,
        tensor: torch.Tensor,
        scale: float,
        format: BlockFormat,
        rows: Places | None = None,
        columns: Places | None = None,
    ) -> Node:
        """A constant; the last axis is padded at its end unless ``columns`` says otherwise."""
        size = self._options.activation_format.block_size
        columns = columns or Places.end(tensor.shape[-1], size)
        key = (tensor.data_ptr(), scale, format.name, rows, columns)
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            scaled = tensor.detach().double() * scale
            if scaled.dim() == 1:
                scaled = pad_vector(scaled, columns)
            else:
                rows = rows or Places(tuple(range(len(scaled))), len(scaled))
                scaled = pad_matrix(scaled, rows, columns)
            setattr(self._module, name, quantize(scaled, format))
            self._constants[key] = name
            self._exact[name] = scaled
        node = self._module.graph.create_node("get_attr", self._constants[key])
        # What was rounded, for readings that do not round.
        node.meta["exact"] = self._exact[self._constants[key]]
        return node

    def _check_width(self, node: Node, what: str, width: int) -> None:
        size = self._options.activation_format.block_size
        if width % size and not self._has_vocabulary:
            raise UserError(
                f"{what} at {source_line(node)} must be a multiple of the block size ({size}), "
                f"not {width}"
            )

    def _operand(self, node: Node) -> Node:
        """A matrix operand: an edge that is wide for its other readers is requantised."""
        format = self._options.activation_format
        if node.meta.get("format", format) == format:
            return node
        if node not in self._narrowed:
            new = self._call(ops.requantize, node, format=format.name)
            new.meta.update(node.meta, format=format)
            new.stack_trace = node.stack_trace
            self._narrowed[node] = new
        return self._narrowed[node]

    def _lower(self, node: Node) -> Any:
        format = node.meta["format"].name
        if node.op == "call_function":
            return self._lower_function(node, format)
        inner = _module(self._module, node)
        if isinstance(inner, nn.Embedding):
            table = self._constant(inner.weight, 1.0, self._options.weight_format)
            return self._call(ops.embedding, table, node.args[0], format=format)
        if isinstance(inner, nn.Linear):
            return self._lower_linear(node, inner, format)
        if isinstance(inner, RMSNorm):
            weight = self._constant(inner.weight, 1.0, self._options.wide_format)
            return self._call(
                ops.rms_norm, node.args[0], weight, epsilon=inner.eps, dim=inner.dim, format=format
            )
        if isinstance(inner, Rope):
            layout = node.meta.get("heads")
            period = {} if layout is None else {"rotary": layout.rotary, "slots": layout.slots}
            return self._call(
                ops.rope,
                *node.args,
                context=inner.context,
                head_size=inner.head_size if layout is None else layout.head_size,
                theta=inner.theta,
                format=format,
                **period,
            )
        if isinstance(inner, nn.SiLU):
            return self._call(ops.silu, node.args[0], format=format)
        if isinstance(inner, KeyValueCache):
            return self._lower_cache(node, inner)
        if isinstance(inner, CausalAttention):
            return self._lower_attention(node, inner, format)
        if isinstance(inner, Positions):
            return self._call(_positions, node.args[0])
        raise UserError(f"Module {type(inner).__name__} at {source_line(node)} has no operator")

    def _lower_linear(self, node: Node, inner: nn.Linear, format: str) -> Node:
        self._check_width(node, "Input width of the Linear", inner.in_features)
        self._check_width(node, "Output width of the Linear", inner.out_features)
        scale = node.meta.get("weight_scale", 1.0)
        weight_format = self._options.weight_format
        columns = node.meta.get("columns")
        if self._has_vocabulary and any(user.op == "output" for user in node.users):
            if inner.bias is not None:
                raise UserError(f"Linear at {source_line(node)} gives logits: use bias=False")
            weight = self._constant(inner.weight, scale, weight_format, columns=columns)
            return self._call(ops.logits, self._operand(node.args[0]), weight)
        size = self._options.activation_format.block_size
        rows = node.meta.get("rows") or Places.end(inner.out_features, size)
        weight = self._constant(inner.weight, scale, weight_format, rows, columns)
        if inner.bias is None:
            return self._call(ops.linear, self._operand(node.args[0]), weight, format=format)
        wide = self._options.wide_format
        product = self._call(ops.linear, self._operand(node.args[0]), weight, format=wide.name)
        product.meta.update(node.meta, source=source_line(node), origin=str(node.target))
        product.stack_trace = node.stack_trace
        bias = self._constant(inner.bias, scale, wide, columns=rows)
        return self._call(ops.bias, product, bias, format=format)

    def _lower_function(self, node: Node, format: str) -> Any:
        if node.target is operator.add:
            return self._call(ops.add, *node.args, format=format)
        if node.target is swiglu_marker:
            return self._call(ops.swiglu, *node.args, format=format)
        if node.target is functional.silu:
            return self._call(ops.silu, node.args[0], format=format)
        if node.target is operator.getitem:
            pair = self._replaced[node.args[0]]
            return pair[node.args[1]]
        raise UserError(f"Function {node.target} at {source_line(node)} has no operator")

    def _lower_cache(self, node: Node, inner: KeyValueCache) -> tuple[Node, Node]:
        context, kv_heads, head_size = inner.keys.shape
        layout = node.meta.get("heads")
        if layout is not None:
            kv_heads, head_size = layout.kv_heads, layout.head_size
        keys, values, position = node.args
        result = []
        for function, store, rows in (
            (ops.key_cache, KeyStore, keys),
            (ops.value_cache, ValueStore, values),
        ):
            name = f"{function.__name__}_{node.name}"
            state = store(context, kv_heads * head_size, self._options.activation_format)
            setattr(self._module, name, state)
            attribute = self._module.graph.create_node("get_attr", name)
            new = self._call(function, self._operand(rows), position, attribute)
            new.meta.update(node.meta, source=source_line(node), origin=str(node.target))
            new.stack_trace = node.stack_trace
            result.append(new)
        return result[0], result[1]

    def _lower_attention(self, node: Node, inner: CausalAttention, format: str) -> Node:
        query, keys, values, position = (self._replaced.get(a, a) for a in node.args)
        layout = node.meta.get("heads") or inner
        narrow = self._options.activation_format.name
        query = self._operand(query)
        slots = {} if isinstance(layout, CausalAttention) else {"slots": layout.slots}
        logits = self._call(
            ops.scores, query, keys, heads=layout.heads, kv_heads=layout.kv_heads, **slots
        )
        probabilities = self._call(
            ops.softmax, logits, values, position, kv_heads=layout.kv_heads, format=narrow
        )
        for new in (logits, probabilities):
            new.meta.update(node.meta, source=source_line(node), origin=str(node.target))
            new.stack_trace = node.stack_trace
        return self._call(
            ops.attention_values,
            probabilities,
            values,
            kv_heads=layout.kv_heads,
            format=format,
            wide=self._options.wide_format.name,
            **slots,
        )


def _positions(tokens: torch.Tensor) -> torch.Tensor:
    """Positions 0 .. T - 1 of a sequence of tokens."""
    return torch.arange(tokens.shape[-1])


class AppendArgmax(GraphPass):
    """Let a decode step return the greedy token besides the logits."""

    name = "append-argmax"
    summary = "the decode step also chooses the next token"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        output = next(n for n in module.graph.nodes if n.op == "output")
        result = output.args[0]
        if not isinstance(result, fx.Node) or result.target is not ops.logits:
            return
        with module.graph.inserting_before(output):
            token = module.graph.call_function(ops.argmax, (result,))
        token.meta.update(result.meta)
        output.args = ((token, result),)
