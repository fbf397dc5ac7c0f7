"""The memory that a model needs, before any design is made for it."""

import dataclasses
import math

from mxhw.compiler.passes.pad import HeadLayout, whole_blocks
from mxhw.formats import BlockFormat
from mxhw.models.config import LlamaConfig
from mxhw.models.loaders.checked import weight_shapes

__all__ = ["EXTERNAL_MEMORY", "Memory", "describe_memory", "memory_needed"]

_MB = 1_000_000

#: Bytes and kind of the memory beside the chip, by the beginning of a board's name. No design uses
#: it yet.
EXTERNAL_MEMORY = {
    "ulx3s": (32 << 20, "SDRAM"),
    "ecpix5": (512 << 20, "DDR3"),
    "versa": (128 << 20, "DDR3"),
    "arty": (256 << 20, "DDR3L"),
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bits that a model's constants and caches take.

    Members
    -------
    weight_bits : int
        Matrices, in whole blocks, and norms.
    cache_bits : int
        Keys and values of all positions.
    """

    weight_bits: int
    cache_bits: int

    @property
    def bytes(self) -> int:
        """Bytes of both."""
        return -(-(self.weight_bits + self.cache_bits) // 8)


def memory_needed(
    config: LlamaConfig, weights: BlockFormat, activations: BlockFormat, wide: BlockFormat
) -> Memory:
    """Memory of a model in these formats.

    Parameters
    ----------
    config : LlamaConfig
    weights, activations, wide : BlockFormat
        Of matrices, of keys and values, and of norms.
    """
    size = activations.block_size
    layout = HeadLayout.of(config.heads, config.kv_heads, config.head_size, size)
    queries, keys = layout.queries.width, layout.keys.width
    rows = {"wq": queries, "wk": keys, "wv": keys}
    bits = 0
    for name, shape in weight_shapes(dataclasses.replace(config, layers=1)).items():
        count = config.layers if name.startswith("blocks.") else 1
        projection = name.split(".")[-2]
        if len(shape) == 1:
            width = rows.get(projection, whole_blocks(shape[0], size))
            bits += count * (width // size) * wide.block_bits
            continue
        # Rows of tables by token are no axis of blocks.
        table = projection in ("embedding", "head")
        height = shape[0] if table else rows.get(projection, whole_blocks(shape[0], size))
        width = queries if projection == "wo" else shape[1]
        bits += count * height * (whole_blocks(width, size) // size) * weights.block_bits
    blocks = config.layers * config.context * keys // size
    return Memory(bits, 2 * blocks * activations.block_bits)


def describe_memory(memory: Memory, config: LlamaConfig, board: str, on_chip_bits: int) -> str:
    """Sentences about where a model's weights and caches fit.

    Parameters
    ----------
    memory : Memory
    config : LlamaConfig
    board : str
        Name of the board that is asked for.
    on_chip_bits : int
        Block RAM of its device.
    """
    weights, cache = memory.weight_bits / 8 / _MB, memory.cache_bits / 8 / _MB
    text = (
        f"Memory: {weights:.2f} MB of weights and {cache:.2f} MB of keys and values for "
        f"{config.context} positions"
    )
    share = (memory.weight_bits + memory.cache_bits) / on_chip_bits
    if share <= 1:
        return f"{text}; the block RAM of {board} has {on_chip_bits / 8 / _MB:.2f} MB."
    holders = [
        f"{name} ({size >> 20} MiB of {kind})"
        for name, (size, kind) in EXTERNAL_MEMORY.items()
        if size >= memory.bytes
    ]
    places = ", ".join(holders) if holders else "none of the boards"
    factor = f"{share:,.0f}" if share >= 10 else f"{share:.1f}"
    return (
        f"{text}: {factor} times the block RAM of {board} ({on_chip_bits / 8 / _MB:.2f} MB). "
        f"External memory would hold it on {places}; designs use on-chip memory only, and every "
        f"token would read all {math.ceil(weights)} MB of weights."
    )
