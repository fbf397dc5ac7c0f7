"""Widths in whole blocks: where each row and column of a matrix goes.

Zeros at the end of a row change nothing: they are products with zero. So every width is padded to
whole blocks, and the weights get zero rows and columns there. Heads of at most half a block share
one: a block of keys or values has equal slots with a head each. Query heads are put in an order in
which each lies in the slot of its key/value head, so that queries and attention outputs are blocks
without gaps too; for the score of one head the other slots of the query's block are taken as zero.
"""

import dataclasses

import torch
from torch import fx, nn

from mxhw.compiler.frontend import Node, source_line
from mxhw.compiler.passes.base import GraphPass, LoweringOptions
from mxhw.errors import UserError
from mxhw.models.llama import CausalAttention, KeyValueCache, Rope

__all__ = ["HeadLayout", "PadToBlocks", "Places", "pad_matrix", "pad_vector", "whole_blocks"]

_SMALLEST_SLOT = 8


def whole_blocks(width: int, block_size: int) -> int:
    """The width padded to whole blocks."""
    return -(-width // block_size) * block_size


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the elements of an axis go.

    Members
    -------
    index : tuple of int
        New index of each old element.
    width : int
        New length; what no element goes to is zero.
    """

    index: tuple[int, ...]
    width: int

    @classmethod
    def end(cls, width: int, block_size: int) -> "Places":
        """Zeros at the end."""
        return cls(tuple(range(width)), whole_blocks(width, block_size))


def pad_vector(values: torch.Tensor, places: Places) -> torch.Tensor:
    """Spread a vector."""
    result = values.new_zeros(places.width)
    result[torch.tensor(places.index)] = values
    return result


def pad_matrix(matrix: torch.Tensor, rows: Places, columns: Places) -> torch.Tensor:
    """Spread the rows and columns of a matrix."""
    result = matrix.new_zeros(rows.width, columns.width)
    result[torch.tensor(rows.index)[:, None], torch.tensor(columns.index)] = matrix
    return result


@dataclasses.dataclass(frozen=True)
class HeadLayout:
    """Heads of an attention in whole blocks.

    Members
    -------
    heads, kv_heads, head_size : int
        Of the attention that is built: ``heads`` query heads; ``kv_heads`` counts groups of
        ``slots`` key/value heads, which have ``head_size`` elements together, whole blocks.
    queries, keys : Places
        Rows of the projections; values lie as keys, attention outputs as queries.
    rotary : int
        Head size of the model.
    slots : int
        Heads in a block, a power of two; 1 if a head has blocks of its own.
    """

    heads: int
    kv_heads: int
    head_size: int
    queries: Places
    keys: Places
    rotary: int
    slots: int

    @classmethod
    def of(cls, heads: int, kv_heads: int, head_size: int, block_size: int) -> "HeadLayout":
        """Layout for the sizes of a model."""
        width = whole_blocks(head_size, block_size)
        slots = 1
        # A slot is whole beats of the widest engine.
        while (
            2 * slots * head_size <= width
            and kv_heads % (2 * slots) == 0
            and width // (2 * slots) >= _SMALLEST_SLOT
        ):
            slots *= 2
        group = heads // kv_heads

        def elements(block: int, slot: int) -> range:
            start = block * width + slot * (width // slots)
            return range(start, start + head_size)

        def query_block(head: int) -> int:
            # The heads of a group take turns, each in a block of its own.
            return head // group // slots * group + head % group

        queries = [
            i for head in range(heads) for i in elements(query_block(head), head // group % slots)
        ]
        keys = [i for head in range(kv_heads) for i in elements(head // slots, head % slots)]
        return cls(
            heads=heads,
            kv_heads=kv_heads // slots,
            head_size=width,
            queries=Places(tuple(queries), heads // slots * width),
            keys=Places(tuple(keys), kv_heads // slots * width),
            rotary=head_size,
            slots=slots,
        )


class PadToBlocks(GraphPass):
    """Find where the rows and columns of the attention's projections go.

    Nodes get the entries ``heads`` (a :class:`HeadLayout`), ``rows`` and ``columns``
    (:class:`Places`) of their ``meta``; without them an axis is padded at its end.
    """

    name = "pad-to-blocks"
    summary = "widths become whole blocks; heads smaller than a block share one"

    def run(self, module: fx.GraphModule, options: LoweringOptions) -> None:
        """Mark the nodes around every attention."""
        self._module = module
        size = options.activation_format.block_size
        for node in list(module.graph.nodes):
            attention = self._inner(node)
            if not isinstance(attention, CausalAttention):
                continue
            layout = HeadLayout.of(attention.heads, attention.kv_heads, attention.head_size, size)
            if layout.head_size == attention.head_size:
                continue
            node.meta["heads"] = layout
            query, key, value, *_ = node.args
            self._mark(query, layout, layout.queries, 0)
            self._mark(key, layout, layout.keys, 0)
            self._mark(value, layout, layout.keys, 1)
            for user in node.users:
                if not isinstance(self._inner(user), nn.Linear):
                    raise self._refuse(user, attention)
                user.meta["columns"] = layout.queries

    def _inner(self, node: Node) -> nn.Module | None:
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        return self._module.get_submodule(str(node.target))

    def _refuse(self, node: Node, attention: CausalAttention) -> UserError:
        return UserError(
            f"Heads of {attention.head_size} elements, padded to whole blocks, must come from and "
            f"go to Linears, not {node.name!r} at {source_line(node)}"
        )

    def _mark(self, node: Node, layout: HeadLayout, rows: Places, argument: int) -> None:
        """Mark what lies between an attention's input and its projection."""
        while True:
            inner = self._inner(node)
            if isinstance(inner, nn.Linear):
                node.meta["rows"] = rows
                return
            if isinstance(inner, (Rope, KeyValueCache)):
                node.meta["heads"] = layout
            elif node.op != "call_function":
                attention = CausalAttention(layout.heads, layout.kv_heads, layout.rotary)
                raise self._refuse(node, attention)
            node = node.args[argument if isinstance(inner, KeyValueCache) else 0]
