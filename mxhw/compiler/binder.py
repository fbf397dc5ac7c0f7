"""Folded binding: every matrix operator of a decode step on one engine, in a static program.

The repeated layer of the graph is found and its pointwise operators share one unit each. What the
graph holds decides the program; the units' connections are those of
:class:`mxhw.dataflow.decoder.FoldedDecoder`.
"""

import dataclasses
import itertools

import torch
from torch import fx

from mxhw import ops
from mxhw.compiler.binding import FoldedBinding, Region, engine_format
from mxhw.compiler.frontend import Node
from mxhw.dataflow.decoder import TableBits
from mxhw.dataflow.program import Destination, Operand, Position, Shape, Step, Weights
from mxhw.errors import UserError
from mxhw.formats import SCALE_MAX, BlockFormat, parse_format
from mxhw.sw.golden.tensor import MXTensor
from mxhw.sw.packing import interleave_blocks, pack_matrix

__all__ = ["bind"]

_TABLES = {
    ops.rms_norm: {"norm_rsqrt": "rsqrt_bits"},
    ops.softmax: {"softmax_exp2": "exp2_bits"},
    ops.attention_values: {"attention_reciprocal": "reciprocal_bits"},
    ops.swiglu: {"gated_exp2": "exp2_bits", "gated_reciprocal": "reciprocal_bits"},
}
"""Where the entries of each unit's tables come from."""


def _users(node: Node, target: object) -> list[Node]:
    return [user for user in node.users if user.target is target]


_ZERO_RUN = 4
"""Groups of rows of zeros that are worth a step of their own."""


class _Binder:
    def __init__(self, lowered: fx.GraphModule, rows: int, share_zeros: bool):
        self._graph = lowered
        self._rows = rows
        self._share_zeros = share_zeros
        self._zeros: dict[int, Region] = {}
        self._regions: dict[str, Region] = {}
        self._words: list[int] = []
        self._program: list[Step] = []
        self._norms: list[MXTensor] = []
        self._loaded: Node | None = None
        self._layer = -1
        self._macs = 0
        self._gates: dict[Node, Node] = {}
        self._epsilons: set[float] = set()
        self._dims: set[int] = set()
        self._ropes: set[tuple[int, int, float, int | None, int]] = set()
        self._biases: list[MXTensor] = []
        self._biased: set[bool] = set()
        self._hidden = 0
        self._heads: set[tuple[int, int]] = set()
        self._projecting = False
        self._tables: dict[str, int] = {}

    def _constant(self, node: Node) -> MXTensor:
        return getattr(self._graph, str(node.target))

    def _place(self, key: str, name: str, weight: MXTensor) -> Region:
        if key not in self._regions:
            words = pack_matrix(self._whole_groups(weight), self._rows)
            region = Region(
                name, len(self._words), len(words), weight.elements.shape[0], weight.blocks
            )
            self._regions[key] = region
            self._words += words
        return self._regions[key]

    def _whole_groups(self, weight: MXTensor) -> MXTensor:
        """The matrix with rows of zeros behind it; only a vocabulary needs them."""
        missing = -weight.elements.shape[0] % self._rows
        if not missing:
            return weight

        def pad(part: torch.Tensor) -> torch.Tensor:
            return torch.cat([part, part.new_zeros(missing, part.shape[1])])

        return MXTensor(pad(weight.elements), pad(weight.scales), weight.format)

    def _refuse(self, node: Node, why: str) -> UserError:
        where = node.meta.get("source", node.name)
        return UserError(f"Operator {node.name} ({where}) cannot be bound: {why}")

    def _operand(self, node: Node) -> Operand:
        """Where the engine gets a linear's input, or KEEP if it already holds it."""
        source = node.args[0]
        if source is self._loaded:
            return Operand.KEEP
        self._loaded = source
        kinds = {
            ops.rms_norm: Operand.NORM,
            ops.attention_values: Operand.ATTENTION,
            ops.swiglu: Operand.GATED,
        }
        if source.target not in kinds:
            raise self._refuse(node, "its input must be a norm, an attention or a gated SiLU")
        return kinds[source.target]

    def _matrix(self, node: Node, key: str, weight: MXTensor, **fields) -> None:
        self._macs += weight.elements.numel()
        self._step(node, self._place(key, node.name, weight), **fields)

    def _step(self, node: Node, region: Region, **fields) -> None:
        step = Step(
            name=node.name,
            operand=self._operand(node),
            weights=Weights.MEMORY,
            base=region.base,
            blocks=region.blocks,
            groups=-(-region.rows // self._rows),
            layer=max(self._layer, 0),
            **fields,
        )
        self._program.append(step)

    def _gated_matrix(self, node: Node, key: str, weight: MXTensor) -> None:
        """The matrix in steps of stored words and of shared zeros, where zeros are shared."""
        self._macs += weight.elements.numel()
        start = 0
        for length, zero in self._zero_runs(weight) if self._share_zeros else ():
            first, last = start * self._rows, (start + length) * self._rows
            part = weight[first:last]
            region = (
                self._zero_region(part) if zero else self._place(f"{key}@{first}", node.name, part)
            )
            self._step(node, region, destination=Destination.GATED)
            start += length
        if not start:
            self._step(node, self._place(key, node.name, weight), destination=Destination.GATED)

    def _zero_runs(self, weight: MXTensor) -> list[tuple[int, bool]]:
        """Groups of rows in runs: how many, and whether they are shared zeros."""
        empty = ~weight.elements.unflatten(0, (-1, self._rows)).flatten(1).any(1)
        runs: list[tuple[int, bool]] = []
        for zero, groups in itertools.groupby(empty.tolist()):
            length = len(list(groups))
            zero = zero and length >= _ZERO_RUN
            if runs and runs[-1][1] == zero:
                length += runs.pop()[0]
            runs.append((length, zero))
        return runs

    def _zero_region(self, weight: MXTensor) -> Region:
        """Words of zeros that every matrix of that many blocks reads where its rows are padding."""
        rows = weight.elements.shape[0]
        known = self._zeros.get(weight.blocks)
        if known is None or known.rows < rows:
            known = self._place(f"zeros of {weight.blocks} x {rows}", "zeros", weight)
            self._zeros[weight.blocks] = known
        return dataclasses.replace(known, rows=rows)

    def visit(self, node: Node) -> None:
        """Emit the steps of one node."""
        for field, argument in _TABLES.get(node.target, {}).items():
            wanted = node.kwargs[argument]
            if self._tables.setdefault(field, wanted) != wanted:
                raise self._refuse(node, "function tables of one unit must have one size")
        if node.target is ops.embedding:
            table = self._constant(node.args[0])
            region = self._place(str(node.args[0].target), node.name, table)
            self._program.append(
                Step(
                    name=node.name,
                    operand=Operand.KEEP,
                    weights=Weights.MEMORY,
                    base=region.base,
                    blocks=region.blocks,
                    groups=1,
                    destination=Destination.EMBEDDING,
                )
            )
        elif node.target is ops.rms_norm:
            self._norms.append(self._constant(node.args[1]))
            self._epsilons.add(node.kwargs["epsilon"])
            self._dims.add(node.kwargs["dim"])
        elif node.target is ops.rope:
            keywords = {"rotary": None, "slots": 1, **node.kwargs}
            names = ("context", "head_size", "theta", "rotary", "slots")
            self._ropes.add(tuple(keywords[name] for name in names))
        elif node.target is ops.linear:
            self._visit_linear(node)
        elif node.target is ops.attention_values:
            self._visit_attention(node)
        elif node.target is ops.logits:
            self._loaded_logits(node)

    def _loaded_logits(self, node: Node) -> None:
        weight = self._constant(node.args[1])
        self._matrix(
            node,
            str(node.args[1].target),
            weight,
            destination=Destination.LOGITS,
            sampled_only=True,
        )

    def _visit_linear(self, node: Node) -> None:
        weight = self._constant(node.args[1])
        key = str(node.args[1].target)
        user = self._reader(node)
        bias = None
        if user.target is ops.bias:
            bias, user = user, self._reader(user)
        if user.target in (ops.rope, ops.value_cache):
            self._biased.add(bias is not None)
            if bias is not None:
                self._biases.append(self._constant(bias.args[1]))
        elif bias is not None:
            raise self._refuse(node, "only queries, keys and values may have a bias")
        if user.target is ops.rope and _users(user, ops.scores):
            self._layer += 1
            self._projecting = True
            self._matrix(node, key, weight, destination=Destination.ROPE, start_layer=True)
        elif user.target is ops.rope and _users(user, ops.key_cache):
            self._per_head(node, key, weight, Destination.ROPE)
        elif user.target is ops.value_cache:
            self._per_head(node, key, weight, Destination.VALUES)
        elif user.target is ops.add:
            self._matrix(node, key, weight, destination=Destination.RESIDUAL)
        elif user.target is ops.swiglu:
            self._visit_gated(node, user)
        else:
            raise self._refuse(node, f"its reader {user.name} is not one the decoder has")

    def _reader(self, node: Node) -> Node:
        users = list(node.users)
        if len(users) != 1:
            raise self._refuse(node, f"its result must have one reader, not {len(users)}")
        return users[0]

    def _per_head(self, node: Node, key: str, weight: MXTensor, destination: Destination) -> None:
        if not self._projecting:
            raise self._refuse(node, "keys and values must be computed after the queries")
        size = self._head_size
        for head in range(weight.elements.shape[0] // size):
            part = weight[head * size : (head + 1) * size]
            self._matrix(
                node,
                f"{key}.{head}",
                part,
                destination=destination,
                head=head,
                store=True,
            )

    @property
    def _head_size(self) -> int:
        if not self._ropes:
            raise UserError("Queries and keys must pass through a Rope to be bound")
        return next(iter(self._ropes))[1]

    def _visit_gated(self, node: Node, user: Node) -> None:
        gate, up = user.args
        if node is not gate and node is not up:
            raise self._refuse(node, "it must be the gate or the factor of a gated SiLU")
        other = up if node is gate else gate
        if other.target is not ops.linear or other.args[0] is not node.args[0]:
            raise self._refuse(node, "gate and factor must be Linears of the same input")
        if other not in self._gates:
            self._gates[node] = other
            return
        weights = (self._constant(gate.args[1]), self._constant(up.args[1]))
        self._hidden = weights[0].elements.shape[0]
        merged = interleave_blocks(*weights)
        self._gated_matrix(node, f"{gate.args[1].target}+{up.args[1].target}", merged)

    def _visit_attention(self, node: Node) -> None:
        probabilities = node.args[0]
        logits = probabilities.args[0]
        heads, kv_heads = logits.kwargs["heads"], logits.kwargs["kv_heads"]
        self._heads.add((heads, kv_heads))
        self._projecting = False
        size = self._head_size
        slots = logits.kwargs.get("slots", 1)
        blocks = size // parse_format(node.kwargs["format"]).block_size
        # Values are read by slot, or by block where a head has several.
        parts = max(slots, blocks)
        scores = [
            Step(
                name=f"{logits.name}[{head}]",
                operand=Operand.QUERY,
                weights=Weights.KEYS,
                base=0,
                blocks=blocks,
                groups=Position.GROUPS,
                destination=Destination.SOFTMAX,
                head=head * kv_heads // heads,
                layer=self._layer,
            )
            for head in range(heads)
        ]
        sums = [
            Step(
                name=f"{node.name}[{head * blocks + block}]",
                operand=Operand.PROBABILITIES,
                weights=Weights.VALUES,
                base=0,
                blocks=Position.BLOCKS,
                groups=size // parts // self._rows,
                destination=Destination.ATTENTION,
                head=head * kv_heads // heads,
                part=block if blocks > 1 else head % slots,
                layer=self._layer,
            )
            for head in range(heads)
            for block in range(blocks)
        ]
        # The softmax holds two heads: the scores of the next head overlap this head's softmax.
        self._program.append(scores[0])
        for head in range(heads):
            if head + 1 < heads:
                self._program.append(scores[head + 1])
            self._program += sums[head * blocks : (head + 1) * blocks]
        self._loaded = None

    def finish(self, options) -> FoldedBinding:
        """Check what the units share and collect the binding."""
        for what, values in (
            ("rotary embedding", self._ropes),
            ("norm epsilon", self._epsilons),
            ("number of heads", self._heads),
            ("width of norms", self._dims),
            ("use of biases", self._biased),
        ):
            if len(values) != 1:
                raise UserError(f"Layers must share one {what} to fold, not have {len(values)}")
        context, head_size, theta, rotary, slots = next(iter(self._ropes))
        heads, kv_heads = next(iter(self._heads))
        layers = self._layer + 1
        block = options.activation_format.block_size
        if head_size // slots % self._rows:
            raise UserError(
                f"Heads in slots of {head_size // slots} elements must be whole groups of the "
                f"engine's rows ({self._rows})"
            )
        key_blocks = head_size // block
        parts = max(slots, key_blocks)
        if context % self._rows:
            raise UserError(
                f"Context must be a multiple of the engine's rows ({self._rows}), not {context}"
            )
        table = next(n for n in self._graph.graph.nodes if n.target is ops.embedding)
        dim = self._constant(table.args[0]).elements.shape[1]
        vocabulary = self._constant(table.args[0]).elements.shape[0]
        constant_blocks = [s.blocks for s in self._program if isinstance(s.blocks, int)]
        constant_groups = [s.groups for s in self._program if isinstance(s.groups, int)]
        shape = Shape(
            rows=self._rows,
            block_size=block,
            context=context,
            layers=layers,
            kv_heads=kv_heads,
            vocabulary=vocabulary,
            words=len(self._words),
            value_groups=head_size // parts // self._rows,
            max_blocks=max(*constant_blocks, -(-context // block)),
            max_groups=max(*constant_groups, -(-context // self._rows)),
            key_blocks=key_blocks,
            value_parts=parts,
        )
        return FoldedBinding(
            program=self._program,
            regions=list(self._regions.values()),
            words=self._words,
            shape=shape,
            weight_format=options.weight_format,
            activation_format=options.activation_format,
            engine_format=engine_format(options.weight_format, options.activation_format),
            wide_format=options.wide_format,
            dim=dim,
            hidden=self._hidden,
            heads=heads,
            head_size=head_size,
            rope_theta=theta,
            norm_epsilon=next(iter(self._epsilons)),
            norm_weights=self._norms,
            macs=self._macs,
            tables=TableBits(**self._tables),
            rotary=rotary,
            slots=slots,
            biases=self._biases,
            norm_width=None if self._dims == {dim} else min(self._dims),
        )


def _check_scales(lowered: fx.GraphModule, options, engine: BlockFormat) -> None:
    shift = engine.element.fraction_bits - options.weight_format.element.fraction_bits
    for node in lowered.graph.nodes:
        if node.target in (ops.linear, ops.logits):
            weight = getattr(lowered, str(node.args[1].target))
            if int(weight.scales.max()) + shift > SCALE_MAX:
                raise UserError(f"Weights of {node.name} are too large for the matrix engine")


def bind(
    lowered: fx.GraphModule, options, *, rows: int = 4, share_zeros: bool = False
) -> FoldedBinding:
    """Bind a lowered decode step to the folded decoder.

    Parameters
    ----------
    lowered : torch.fx.GraphModule
        Result of :func:`mxhw.compiler.lower.lower` of a decode step.
    options : LoweringOptions
        Formats that it was lowered with.
    rows : int
        Rows of the matrix engine, which are also the elements of a beat.
    share_zeros : bool
        Store the rows of zeros that fill the blocks of the hidden layer once for all layers: fewer
        words, for up to three more steps a layer.

    Raises
    ------
    UserError
        If the graph holds a connection that the decoder has not, or layers differ in what they
        must share.
    """
    binder = _Binder(lowered, rows, share_zeros)
    for node in lowered.graph.nodes:
        if node.op == "call_function":
            binder.visit(node)
    binding = binder.finish(options)
    _check_scales(lowered, options, binding.engine_format)
    return binding
