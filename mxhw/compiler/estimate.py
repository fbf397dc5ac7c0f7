"""Resources and cycles of a folded design before any tool runs.

The cost of a unit is a formula of its parameters. The coefficients were fitted to the units as
yosys 0.64 maps them to an ECP5 (``synth_ecp5`` with abc9), counted as nextpnr counts: a carry
cell takes two lookup tables, a cell of distributed memory six. Memories are counted in blocks, not
in bits. Cycles come from :mod:`mxhw.compiler.schedule`.
"""

import dataclasses
from dataclasses import astuple

from amaranth.utils import bits_for

from mxhw.compiler.binding import FoldedBinding
from mxhw.compiler.elaborate import elaborate
from mxhw.compiler.schedule import schedule_token
from mxhw.dataflow.key_cache import block_rams, column_cost
from mxhw.dataflow.weight_memory import memory_parts
from mxhw.formats import SCALE_BITS
from mxhw.lut.choice import table_luts

__all__ = ["Estimate", "UnitCost", "estimate"]

_LINK = 60
_HOST = (1150, 740, 1)


@dataclasses.dataclass(frozen=True)
class UnitCost:
    """Predicted cost of one unit.

    Members
    -------
    lut, ff, dsp, block_ram : int
    """

    lut: float = 0
    ff: float = 0
    dsp: int = 0
    block_ram: int = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Prediction for a binding.

    Members
    -------
    units : dict of str to UnitCost
    binding : FoldedBinding
    """

    units: dict[str, UnitCost]
    binding: FoldedBinding

    @property
    def resources(self) -> dict[str, int]:
        """Sums over all units: ``lut``, ``ff``, ``dsp`` and ``block_ram``."""
        return {
            name: round(sum(getattr(unit, name) for unit in self.units.values()))
            for name in ("lut", "ff", "dsp", "block_ram")
        }

    def cycles_per_token(self, context: int) -> int:
        """Cycles of a sampled token that sees ``context`` positions."""
        return schedule_token(elaborate(self.binding), context - 1).cycles

    def multiplier_utilisation(self, context: int, cycles: int | None = None) -> float:
        """Useful multiplications of a token over multipliers times cycles."""
        cycles = self.cycles_per_token(context) if cycles is None else cycles
        return self.binding.useful_macs(context) / (self.binding.multipliers * cycles)


def _queue(bits: int, depth: int) -> UnitCost:
    """A queue in distributed memory of 16 rows by 4 bits a cell."""
    cells = -(-bits // 4) * -(-depth // 16)
    deep = bits if depth > 16 else 0
    return UnitCost(lut=23 + 6 * cells + 2 * deep, ff=12)


def _plus(left: UnitCost, right: UnitCost) -> UnitCost:
    """Cost of both."""
    return UnitCost(*(sum(pair) for pair in zip(astuple(left), astuple(right), strict=True)))


def _lanes_part(lut: float, ff: float, lanes: int, fixed: float = 0.35) -> tuple[float, float]:
    """A unit measured with four lanes: a part is there once, the rest a lane."""
    scale = fixed + (1 - fixed) * lanes / 4
    return lut * scale, ff * scale


def _engine(b: FoldedBinding) -> UnitCost:
    rows, size = b.shape.rows, b.shape.block_size
    product = b.activation_format.element.bits + b.engine_format.element.bits
    level_bits = 0.0
    adders, width = size // 2, product
    while adders:
        level_bits += adders * (width + 1)
        adders, width = adders // 2, width + 1
    mantissa = width + 8 + 3
    lut = rows * (level_bits * 1.09 + mantissa * 13.5) + 12 * size
    ff = rows * (size * (product + b.engine_format.element.bits) + level_bits * 1.03 + 235) + 200
    slices = 1 if product <= 36 and b.engine_format.element.bits <= 18 else 4
    slots = size * b.activation_format.element.bits / 4 * 6
    return UnitCost(lut + slots, ff, rows * size * slices)


def _weights(b: FoldedBinding) -> UnitCost:
    depth = b.block_words or len(b.words)
    rest = len(b.words) - depth
    bits = b.shape.rows * b.weight_format.block_bits
    # A table of 16 words a bit, a register, and the choice between both memories.
    tables = bits * (-(-rest // 16) + 1) if rest else 0
    fields = memory_parts(b.weight_format, b.shape.rows)
    widths = [sum(width for _start, width in part) for part in fields]
    blocks = [block_rams(width, depth) for width in widths]
    parts = len(blocks)
    return UnitCost(
        45 + 22 * parts + tables, 14 + 11 * parts + (bits if rest else 0), 0, sum(blocks)
    )


def _word_decoder(b: FoldedBinding) -> UnitCost:
    element = b.weight_format.element
    size = b.shape.block_size * b.shape.rows
    gates = 0 if element.is_integer else element.significand_bits * 1.5
    return UnitCost(size * gates)


def _bias(b: FoldedBinding) -> dict[str, UnitCost]:
    if not b.biases:
        return {}
    lanes = b.shape.lanes
    words = sum(vector.elements.numel() for vector in b.biases) // lanes
    blocks = block_rams(lanes * b.wide_format.element.bits, words)
    return {"bias": UnitCost(*_lanes_part(2591, 752, lanes, 0.12), 0, blocks)}


def _query_slots(b: FoldedBinding) -> UnitCost:
    return UnitCost(30 + 20 * b.shape.lanes, 5) if b.slots > 1 else UnitCost()


def _caches(b: FoldedBinding) -> dict[str, UnitCost]:
    shape = b.shape
    bits = b.activation_format.element.bits
    words = shape.layers * shape.kv_heads * shape.context
    columns = [bits] * shape.block_size
    depth = words * shape.key_blocks // shape.rows
    key = column_cost(depth=depth, rows=shape.rows, widths=[*columns, SCALE_BITS])
    positions = shape.layers * shape.kv_heads * -(-shape.context // shape.block_size)
    groups = shape.value_groups * shape.value_parts
    value = column_cost(depth=positions * groups, rows=shape.rows, widths=columns)
    scales = block_rams(shape.rows * 9, depth)
    return {
        "keys": UnitCost(156, 338, 0, key["block_rams"]),
        "values": UnitCost(207, 381, 0, value["block_rams"] + scales),
    }


def _saved(function: str, index_bits: int) -> int:
    """Lookup tables that a function's table takes more than one of 32 entries; mostly negative."""
    return table_luts(function, index_bits) - table_luts(function, 5)


def _pointwise(b: FoldedBinding) -> dict[str, UnitCost]:
    shape, tables = b.shape, b.tables
    lanes = shape.lanes
    word = shape.rows * b.engine_format.block_bits
    width = b.norm_width or b.dim
    dim_is_power = width & (width - 1) == 0
    norm_words = len(b.norm_weights) * b.dim // lanes
    rope_words = shape.context * b.head_size // b.slots // 2
    return {
        "embedding": UnitCost(635 + word, *_lanes_part(0, 513, lanes)[1:]),
        "residual": UnitCost(*_lanes_part(2267, 783, lanes)),
        "norm": UnitCost(
            _lanes_part(2893, 0, lanes)[0] + _saved("rsqrt", tables.norm_rsqrt),
            _lanes_part(0, 1376, lanes)[1],
            2 * lanes + (1 if dim_is_power else 2),
            block_rams(lanes * b.wide_format.element.bits, norm_words) // 2 + 1,
        ),
        "rope": UnitCost(*_lanes_part(1046, 513, lanes), 4, block_rams(32, rope_words)),
        "softmax": UnitCost(
            1020 + b.softmax_lanes * (630 + _saved("exp2", tables.softmax_exp2)),
            590 + 357 * b.softmax_lanes,
            0,
            block_rams(24 * lanes, shape.context),
        ),
        "attention": UnitCost(
            _lanes_part(990, 0, lanes)[0]
            + 185 * b.attention_lanes
            + _saved("reciprocal", tables.attention_reciprocal),
            _lanes_part(0, 450, lanes)[1] + 58 * b.attention_lanes,
            1 + b.attention_lanes,
        ),
        "gated": UnitCost(
            925
            + b.gated_lanes
            * (
                1170
                + _saved("exp2", tables.gated_exp2)
                + _saved("reciprocal", tables.gated_reciprocal)
            ),
            383 + 917 * b.gated_lanes,
            4 * b.gated_lanes,
        ),
        "quantizer": UnitCost(*_lanes_part(1715, 521, lanes, 0.1)),
        "to_fixed": UnitCost(258 * lanes, 120 * lanes),
        "argmax": UnitCost(*_lanes_part(250, 119, lanes)),
    }


def _control(b: FoldedBinding) -> dict[str, UnitCost]:
    shape = b.shape
    word = shape.rows * b.engine_format.block_bits
    beat = shape.lanes * b.activation_format.element.bits + SCALE_BITS
    wide = shape.lanes * b.wide_format.element.bits + SCALE_BITS
    head = _queue(beat, max(b.heads // b.slots * b.head_size // shape.lanes, 2))
    queues = 14
    return {
        "sequencer": UnitCost(255, 135),
        "weight_select": UnitCost(2.03 * word, 13),
        "routes": UnitCost(210 + 4 * _queue(wide, 2).lut + _queue(beat, 2).lut, 135),
        "operands": _queue(beat, shape.max_blocks * shape.beats_per_block),
        "queries": _plus(head, _query_slots(b)),
        "attended": head,
        "fixed_queues": UnitCost(
            2 * _queue(24 * shape.lanes, 2).lut + _queue(bits_for(b.shape.vocabulary - 1), 2).lut,
            48 * shape.lanes + 32,
        ),
        "scales_queue": _queue(SCALE_BITS * shape.lanes, 2),
        "commands": UnitCost(queues * 36, queues * 9),
        "host": UnitCost(*_HOST[:2], 0, _HOST[2]),
        "link": UnitCost(_LINK, 96),
    }


def estimate(binding: FoldedBinding) -> Estimate:
    """Predict resources and cycles of a binding with its host link.

    Resources are in ECP5 units. Needs no tools.
    """
    units = {
        "engine": _engine(binding),
        "weights": _weights(binding),
        "word_decoder": _word_decoder(binding),
        **_caches(binding),
        **_bias(binding),
        **_pointwise(binding),
        **_control(binding),
    }
    return Estimate(units, binding)
