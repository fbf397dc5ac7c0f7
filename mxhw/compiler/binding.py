"""Folded binding: every matrix operator of a decode step on one engine, in a static program.

The repeated layer of the graph is found and its pointwise operators share one unit each. What the
graph holds decides the program; the units' connections are those of
:class:`mxhw.dataflow.decoder.FoldedDecoder`.
"""

import dataclasses

from torch import fx

from mxhw import ops
from mxhw.compiler.frontend import Node
from mxhw.dataflow.decoder import TableBits
from mxhw.dataflow.program import Destination, Operand, Position, Shape, Step, Weights
from mxhw.errors import UserError
from mxhw.formats import SCALE_MAX, BlockFormat, parse_format
from mxhw.sw.golden.tensor import MXTensor
from mxhw.sw.packing import interleave_blocks, pack_matrix

__all__ = ["FoldedBinding", "Region", "bind", "engine_format"]


@dataclasses.dataclass(frozen=True)
class Region:
    """Where a matrix lies in the weight memory.

    Members
    -------
    name : str
        Nodes that use it.
    base, words : int
    rows, blocks : int
        Of the matrix.
    """

    name: str
    base: int
    words: int
    rows: int
    blocks: int


@dataclasses.dataclass
class FoldedBinding:
    """A decode step bound to the folded decoder.

    Members
    -------
    program : list of Step
    regions : list of Region
    words : list of int
        Contents of the weight memory.
    shape : Shape
    weight_format, activation_format, engine_format, wide_format : BlockFormat
    dim, hidden, heads, head_size : int
    rope_theta, norm_epsilon : float
    norm_weights : list of MXTensor
    softmax_lanes, gated_lanes : int
    tables : TableBits
        Entries of the units' function tables.
    rotary : int or None
        Head size of the model where heads share or do not fill their blocks.
    slots : int
        Heads that share a block.
    biases : list of MXTensor
        Of the queries, keys and values of each layer in turn.
    block_words : int or None
        Weight words in block RAM, the others in lookup tables; None for all.
    macs : int
        Useful multiplications of the constant matrices, a token.
    step_nodes : dict
        For each step's name the graph nodes whose results it produces.
    """

    program: list[Step]
    regions: list[Region]
    words: list[int]
    shape: Shape
    weight_format: BlockFormat
    activation_format: BlockFormat
    engine_format: BlockFormat
    wide_format: BlockFormat
    dim: int
    hidden: int
    heads: int
    head_size: int
    rope_theta: float
    norm_epsilon: float
    norm_weights: list[MXTensor]
    macs: int
    softmax_lanes: int = 2
    gated_lanes: int = 1
    tables: TableBits = TableBits()
    rotary: int | None = None
    slots: int = 1
    biases: list[MXTensor] = dataclasses.field(default_factory=list)
    block_words: int | None = None

    @property
    def multipliers(self) -> int:
        """Multipliers of the matrix engine."""
        return self.shape.rows * self.shape.block_size

    def useful_macs(self, context: int) -> int:
        """Multiplications that a token at the last of ``context`` positions needs."""
        size = self.rotary or self.head_size
        return self.macs + 2 * self.shape.layers * self.heads * size * context

    def with_context(self, context: int) -> "FoldedBinding":
        """The same binding for another number of positions: its sizes, not its tables."""
        shape = self.shape
        blocks = [s.blocks for s in self.program if isinstance(s.blocks, int)]
        groups = [s.groups for s in self.program if isinstance(s.groups, int)]
        shape = dataclasses.replace(
            shape,
            context=context,
            max_blocks=max(*blocks, -(-context // shape.block_size)),
            max_groups=max(*groups, -(-context // shape.rows)),
        )
        return dataclasses.replace(self, shape=shape)

    def describe(self) -> str:
        """One line for people."""
        shape = self.shape
        rest = len(self.words) - (self.block_words or len(self.words))
        tables = f", {rest} of them in lookup tables" if rest else ""
        return (
            f"folded: 1 layer built and used {shape.layers} times, {shape.rows} rows x "
            f"{shape.block_size} lanes, {len(self.program)} steps, {len(self.words)} weight "
            f"words{tables}"
        )


_TABLES = {
    ops.rms_norm: {"norm_rsqrt": "rsqrt_bits"},
    ops.softmax: {"softmax_exp2": "exp2_bits"},
    ops.attention_values: {"attention_reciprocal": "reciprocal_bits"},
    ops.swiglu: {"gated_exp2": "exp2_bits", "gated_reciprocal": "reciprocal_bits"},
}
"""Where the entries of each unit's tables come from."""


def _users(node: Node, target: object) -> list[Node]:
    return [user for user in node.users if user.target is target]


class _Binder:
    def __init__(self, lowered: fx.GraphModule, rows: int):
        self._graph = lowered
        self._rows = rows
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
            words = pack_matrix(weight, self._rows)
            region = Region(
                name, len(self._words), len(words), weight.elements.shape[0], weight.blocks
            )
            self._regions[key] = region
            self._words += words
        return self._regions[key]

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
        region = self._place(key, node.name, weight)
        groups = region.rows // self._rows
        self._macs += region.rows * region.blocks * weight.format.block_size
        step = Step(
            name=node.name,
            operand=self._operand(node),
            weights=Weights.MEMORY,
            base=region.base,
            blocks=region.blocks,
            groups=groups,
            layer=max(self._layer, 0),
            **fields,
        )
        self._program.append(step)

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
        key = f"{gate.args[1].target}+{up.args[1].target}"
        self._matrix(node, key, merged, destination=Destination.GATED)

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
        if self._dims - {dim}:
            raise UserError(
                f"Width of the model must be a multiple of the block size ({block}) to bind, "
                f"not {min(self._dims - {dim})}"
            )
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
        )


def engine_format(weights: BlockFormat, activations: BlockFormat) -> BlockFormat:
    """The integer format that holds the significands of weights, keys and values."""
    needed = [
        max(f.element.significand_bits, f.element.fraction_bits + 2) for f in (weights, activations)
    ]
    if max(needed) > 18:
        raise UserError(
            f"Format {weights.name} needs {max(needed)}-bit multipliers; hardware takes weights of "
            f"at most 18 bits: MXINT, mxfp4 and mxfp6"
        )
    return BlockFormat.mxint(max(needed), activations.block_size)


def _check_scales(lowered: fx.GraphModule, options, engine: BlockFormat) -> None:
    shift = engine.element.fraction_bits - options.weight_format.element.fraction_bits
    for node in lowered.graph.nodes:
        if node.target in (ops.linear, ops.logits):
            weight = getattr(lowered, str(node.args[1].target))
            if int(weight.scales.max()) + shift > SCALE_MAX:
                raise UserError(f"Weights of {node.name} are too large for the matrix engine")


def bind(lowered: fx.GraphModule, options, *, rows: int = 4) -> FoldedBinding:
    """Bind a lowered decode step to the folded decoder.

    Parameters
    ----------
    lowered : torch.fx.GraphModule
        Result of :func:`mxhw.compiler.lower.lower` of a decode step.
    options : LoweringOptions
        Formats that it was lowered with.
    rows : int
        Rows of the matrix engine, which are also the elements of a beat.

    Raises
    ------
    UserError
        If the graph holds a connection that the decoder has not, or layers differ in what they
        must share.
    """
    binder = _Binder(lowered, rows)
    for node in lowered.graph.nodes:
        if node.op == "call_function":
            binder.visit(node)
    binding = binder.finish(options)
    _check_scales(lowered, options, binding.engine_format)
    return binding
