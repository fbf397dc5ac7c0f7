"""What a folded binding is: a program of matrix steps on one engine, and the sizes around it."""

import dataclasses

from mxhw.dataflow.decoder import TableBits
from mxhw.dataflow.program import Shape, Step
from mxhw.errors import UserError
from mxhw.formats import BlockFormat
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["FoldedBinding", "Region", "engine_format"]


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
    softmax_lanes, attention_lanes, gated_lanes : int
        Elements a cycle of the softmax, the attention output and the gated SiLU.
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
    norm_width : int or None
        Width of the model where it fills no whole block, else None.
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
    attention_lanes: int = 2
    gated_lanes: int = 1
    tables: TableBits = TableBits()
    rotary: int | None = None
    slots: int = 1
    biases: list[MXTensor] = dataclasses.field(default_factory=list)
    block_words: int | None = None
    norm_width: int | None = None

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
