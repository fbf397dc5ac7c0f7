"""The program of a folded design: matrix steps that share one engine, in order.

A step may load an operand into the engine, run one matrix product over it and send the result to
a unit. The pointwise units in between need no steps: they answer what streams in.
"""

import dataclasses
import enum as python_enum

from amaranth import unsigned
from amaranth.lib import data, enum
from amaranth.utils import bits_for

__all__ = [
    "Destination",
    "EmbeddingCommand",
    "Operand",
    "Position",
    "Shape",
    "Step",
    "StepWord",
    "TokenStep",
    "Weights",
]


class Operand(enum.IntEnum, shape=unsigned(3)):
    """Where a step's activation blocks come from."""

    NORM = 0
    QUERY = 1
    PROBABILITIES = 2
    ATTENTION = 3
    GATED = 4
    KEEP = 7


class Weights(enum.IntEnum, shape=unsigned(2)):
    """Where a step's weight words come from."""

    MEMORY = 0
    KEYS = 1
    VALUES = 2


class Destination(enum.IntEnum, shape=unsigned(3)):
    """Where a step's results go."""

    ROPE = 0
    RESIDUAL = 1
    GATED = 2
    ATTENTION = 3
    VALUES = 4
    SOFTMAX = 5
    LOGITS = 6
    EMBEDDING = 7


class Position(python_enum.Enum):
    """A count that follows the token's position instead of being constant."""

    BLOCKS = "position blocks"
    """Blocks that hold positions 0 to the token's own."""
    GROUPS = "position groups"
    """Groups of engine rows that hold positions 0 to the token's own."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the program.

    Members
    -------
    name : str
        Name of the node that it computes, for reports.
    operand : Operand
        ``KEEP`` reuses what the engine holds.
    weights : Weights
    base : int
        First word in the weight memory; for the embedding, of token 0.
    blocks : int or Position
        Length of the contraction in blocks.
    groups : int or Position
        Groups of engine rows.
    destination : Destination
    layer, head, part : int
        For cache commands: the layer, the key/value head, and which of the equal parts of its
        values is read.
    start_layer : bool
        Whether the rotary unit is given the position: the first step of a layer.
    store : bool
        Whether the result is a key (``ROPE``) or value (``VALUES``) to be cached.
    sampled_only : bool
        Whether the product is left out for tokens whose successor is known; its operand is still
        taken.
    """

    name: str
    operand: Operand
    weights: Weights
    base: int
    blocks: "int | Position"
    groups: "int | Position"
    destination: Destination
    layer: int = 0
    head: int = 0
    part: int = 0
    start_layer: bool = False
    store: bool = False
    sampled_only: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes that the program's fields and the decoder's ports follow from.

    Members
    -------
    rows, lanes : int
        Rows of the engine and elements of a beat; both are equal, so that a group of results is a
        beat.
    block_size, context, layers, kv_heads, vocabulary, words : int
    key_blocks : int
        Blocks of a key.
    value_parts, value_groups : int
        Equal parts that a head's values are read in, and groups of engine rows of each.
    max_blocks, max_groups : int
    """

    rows: int
    block_size: int
    context: int
    layers: int
    kv_heads: int
    vocabulary: int
    words: int
    value_groups: int
    max_blocks: int
    max_groups: int
    key_blocks: int = 1
    value_parts: int = 1

    @property
    def lanes(self) -> int:
        """Elements of a beat."""
        return self.rows

    @property
    def beats_per_block(self) -> int:
        """Beats that carry a block."""
        return self.block_size // self.rows

    @property
    def count_bits(self) -> int:
        """Width of every count of transfers."""
        largest = max(
            self.words,
            self.max_blocks * self.beats_per_block,
            self.max_groups,
            -(-self.context // self.rows) * self.key_blocks,
            -(-self.context // self.block_size) * self.value_groups,
        )
        return bits_for(largest)


class StepWord(data.StructLayout):
    """A step as the program memory holds it."""

    def __init__(self, shape: Shape):
        super().__init__(
            {
                "operand": Operand,
                "weights": Weights,
                "destination": Destination,
                "base": unsigned(bits_for(max(shape.words - 1, 1))),
                "words": unsigned(shape.count_bits),
                "blocks": unsigned(bits_for(shape.max_blocks)),
                "position_blocks": unsigned(1),
                "groups": unsigned(bits_for(shape.max_groups)),
                "position_groups": unsigned(1),
                "layer": unsigned(bits_for(max(shape.layers - 1, 1))),
                "head": unsigned(bits_for(max(shape.kv_heads - 1, 1))),
                "part": unsigned(bits_for(max(shape.value_parts - 1, 1))),
                "start_layer": unsigned(1),
                "store": unsigned(1),
                "sampled_only": unsigned(1),
                "last": unsigned(1),
            }
        )

    def encode(self, step: Step, *, last: bool) -> dict[str, int]:
        """Fields of one step, for a memory's initial contents."""
        blocks = 0 if isinstance(step.blocks, Position) else step.blocks
        groups = 0 if isinstance(step.groups, Position) else step.groups
        return {
            "operand": step.operand.value,
            "weights": step.weights.value,
            "destination": step.destination.value,
            "base": step.base,
            "words": blocks * groups,
            "blocks": blocks,
            "position_blocks": int(isinstance(step.blocks, Position)),
            "groups": groups,
            "position_groups": int(isinstance(step.groups, Position)),
            "layer": step.layer,
            "head": step.head,
            "part": step.part,
            "start_layer": int(step.start_layer),
            "store": int(step.store),
            "sampled_only": int(step.sampled_only),
            "last": int(last),
        }


class TokenStep(data.StructLayout):
    """One token for the decoder: what to feed at which position and what is wanted of it.

    With ``sample`` the head is run and the next token is delivered; with ``logits``, which implies
    ``sample``, the logits are delivered too. Position 0 begins a new context.
    """

    def __init__(self, *, vocabulary: int, context: int):
        super().__init__(
            {
                "token": unsigned(bits_for(max(vocabulary - 1, 1))),
                "position": unsigned(bits_for(max(context - 1, 1))),
                "sample": unsigned(1),
                "logits": unsigned(1),
            }
        )


class EmbeddingCommand(data.StructLayout):
    """Which row of the table's words is the token's."""

    def __init__(self, *, rows: int):
        super().__init__({"row": unsigned(bits_for(max(rows - 1, 1)))})
