# amaranth: UnusedElaboratable=no
"""The folded decoder: one set of units, a shared matrix engine, and the program that uses them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from amaranth import Module, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from mxhw.arith.pipeline import StreamFifo
from mxhw.arith.quantize import Quantizer
from mxhw.arith.shapes import BlockBeat, BlockWord, WideBeat
from mxhw.dataflow.argmax import ArgMax
from mxhw.dataflow.attention_output import AttentionOutput
from mxhw.dataflow.bias import Bias
from mxhw.dataflow.embedding import Embedding
from mxhw.dataflow.engine import MatrixEngine
from mxhw.dataflow.fixed import FixedBeat, ToFixed
from mxhw.dataflow.key_cache import KeyCache
from mxhw.dataflow.link import link, payload_shape
from mxhw.dataflow.logits import LogitsTap
from mxhw.dataflow.program import Destination, Operand, Shape, Step, TokenStep, Weights
from mxhw.dataflow.query_slots import QuerySlots
from mxhw.dataflow.residual import Residual
from mxhw.dataflow.rms_norm import RmsNorm
from mxhw.dataflow.rope import Rope
from mxhw.dataflow.routing import StreamRegister, StreamRoute, StreamSelect
from mxhw.dataflow.sequencer import Sequencer
from mxhw.dataflow.softmax import Softmax
from mxhw.dataflow.swiglu import SwiGlu
from mxhw.dataflow.value_cache import ValueCache
from mxhw.dataflow.weight_memory import WeightMemory, WordDecoder, neighbours
from mxhw.formats import BlockFormat
from mxhw.sw.golden.tensor import MXTensor

__all__ = ["DecoderParameters", "FoldedDecoder", "TableBits"]

_COMMAND_DEPTH = 4


def _queued(m: Module, name: str, source: Any, depth: int = 2) -> Any:
    """The stream behind a queue of that name."""
    m.submodules[name] = queue = StreamFifo(shape=payload_shape(source), depth=depth)
    link(m, source, queue.i)
    return queue.o


@dataclasses.dataclass(frozen=True)
class TableBits:
    """Logarithm of the entries of every unit's function tables: 3, 4 or 5.

    Members
    -------
    norm_rsqrt, softmax_exp2, attention_reciprocal, gated_exp2, gated_reciprocal : int
    """

    norm_rsqrt: int = 5
    softmax_exp2: int = 5
    attention_reciprocal: int = 5
    gated_exp2: int = 5
    gated_reciprocal: int = 5


@dataclasses.dataclass(frozen=True)
class DecoderParameters:
    """Everything that a folded decoder is built from.

    Members
    -------
    shape : Shape
        Sizes of the program and of the engine.
    program : sequence of Step
    words : sequence of int
        Contents of the weight memory, packed words of ``weight_format``.
    weight_format, activation_format, engine_format, wide_format : BlockFormat
        The engine takes weights, keys and values in ``engine_format``.
    dim, heads, head_size : int
    rope_theta, norm_epsilon : float
    norm_weights : sequence of MXTensor
        In the order the norms are used in a token.
    softmax_lanes, attention_lanes, gated_lanes : int
        Elements a cycle of the softmax, the attention output and the gated SiLU.
    tables : TableBits
    rotary : int or None
        Head size of the model where heads share or do not fill their blocks.
    slots : int
        Heads that share a block.
    biases : sequence of MXTensor
        Of the queries, keys and values of each layer in turn; empty if there are none.
    block_words : int or None
        Weight words in block RAM, the others in lookup tables; by default all.
    norm_width : int or None
        Elements of a norm's mean where the model's width fills no whole block; by default ``dim``.
    """

    shape: Shape
    program: Sequence[Step]
    words: Sequence[int]
    weight_format: BlockFormat
    activation_format: BlockFormat
    engine_format: BlockFormat
    wide_format: BlockFormat
    dim: int
    heads: int
    head_size: int
    rope_theta: float
    norm_epsilon: float
    norm_weights: Sequence[MXTensor]
    softmax_lanes: int = 2
    attention_lanes: int = 2
    gated_lanes: int = 1
    tables: TableBits = TableBits()
    rotary: int | None = None
    slots: int = 1
    biases: Sequence[MXTensor] = ()
    block_words: int | None = None
    norm_width: int | None = None

    @property
    def query_blocks(self) -> int:
        """Blocks of the queries of a layer, which are those of the attention outputs."""
        return self.heads // self.slots * self.head_size // self.shape.block_size


class FoldedDecoder(wiring.Component):
    """One decode step of a Llama model for each transfer, all weights on chip.

    Contract: for each token the lowered graph's golden reading, bit for bit: with ``sample`` the
    arg-max of the logits comes out of ``o_token``, with ``logits`` as well the logits come out of
    ``o_logits``. Positions of a sequence must be given in order from 0.

    Parameters
    ----------
    parameters : DecoderParameters

    Members
    -------
    i_step : In(stream of TokenStep)
    o_token : Out(stream of unsigned)
    o_logits : Out(stream of beats of signed(24), 12 fraction bits)

    Timing
    ------
    See the compiler's estimate: about the engine's words a token, plus the latency between
    dependent operators.
    """

    def __init__(self, parameters: DecoderParameters):
        self._p = p = parameters
        shape = p.shape
        step = TokenStep(vocabulary=shape.vocabulary, context=shape.context)
        super().__init__(
            {
                "i_step": In(stream.Signature(step)),
                "o_token": Out(stream.Signature(unsigned(bits_for(shape.vocabulary - 1)))),
                "o_logits": Out(stream.Signature(FixedBeat(lanes=shape.lanes))),
            }
        )

    @property
    def parameters(self) -> DecoderParameters:
        """What the decoder is built from."""
        return self._p

    def unit_timings(self) -> dict[str, int]:
        """Latencies of the units in cycles, as they state them: what a schedule is made from."""
        self._make_units()
        position = self._p.shape.context - 1
        beats = self._p.shape.beats_per_block
        return {
            "step": self._sequencer.overhead,
            "command": 1,
            "memory": self._weights.latency + 1,
            "keys": self._keys.latency,
            "values": self._values.latency,
            "embedding": self._embedding.latency,
            "engine": self._engine.latency,
            "quantizer": self._quantizer.latency + 1,
            "fixed": self._to_fixed.latency + 2,
            "argmax": self._argmax.latency + 1,
            "residual": 1 + self._residual.latency,
            "norm": self._norm.latency,
            "rope": 1 + self._rope.latency,
            "rope_beat": max(self._rope.interval // beats, 1),
            "softmax": self._softmax.latency,
            "softmax_block": self._p.shape.block_size // self._p.softmax_lanes,
            "softmax_interval": self._softmax.interval(position),
            "attention": 1 + self._attention.latency,
            "attention_beat": max(self._attention.interval // beats, 1),
            "gated": self._gated.latency,
            "gated_block": self._gated.interval,
            "gated_beat": max(self._p.shape.block_size // self._p.gated_lanes // beats, 1),
            "bias": self._bias.latency if self._bias is not None else 0,
        }

    def elaborate(self, platform) -> Module:
        m = Module()
        self._make_units()
        for name, unit in self._units.items():
            m.submodules[name] = unit
        self._build_routes(m)
        self._link_operands(m)
        self._link_weights(m)
        self._link_results(m)
        self._link_commands(m)
        return m

    def _make_units(self) -> None:
        p, shape = self._p, self._p.shape
        beat = {"wide_format": p.wide_format, "format": p.activation_format, "lanes": shape.lanes}
        cache = {
            "layers": shape.layers,
            "kv_heads": shape.kv_heads,
            "context": shape.context,
            "head_size": p.head_size,
            "rows": shape.rows,
            "format": p.activation_format,
            "lanes": shape.lanes,
            "parts": shape.value_parts,
        }
        self._engine = MatrixEngine(
            x_format=p.activation_format,
            w_format=p.engine_format,
            rows=shape.rows,
            slots=max(shape.max_blocks, 2),
            max_blocks=shape.max_blocks,
            groups_bits=bits_for(shape.max_groups),
            x_lanes=shape.lanes,
        )
        self._sequencer = Sequencer(
            program=p.program,
            shape=shape,
            engine_command=payload_shape(self._engine.i_command),
            narrow_values=not p.biases,
        )
        self._weights = WeightMemory(
            format=p.weight_format, rows=shape.rows, words=p.words, block_words=p.block_words
        )
        self._word_decoder = WordDecoder(
            from_format=p.weight_format, to_format=p.engine_format, rows=shape.rows
        )
        self._embedding = Embedding(
            format=p.engine_format,
            wide_format=p.wide_format,
            rows=shape.rows,
            lanes=shape.lanes,
            blocks=p.dim // shape.block_size,
        )
        self._residual = Residual(
            dim=p.dim,
            wide_format=p.wide_format,
            lanes=shape.lanes,
            adds=sum(step.destination is Destination.RESIDUAL for step in p.program),
        )
        self._norm = RmsNorm(
            dim=p.dim,
            epsilon=p.norm_epsilon,
            width=p.norm_width,
            weights=p.norm_weights,
            rsqrt_bits=p.tables.norm_rsqrt,
            **beat,
        )
        self._rope = Rope(
            context=shape.context,
            head_size=p.head_size,
            theta=p.rope_theta,
            rotary=p.rotary,
            slots=p.slots,
            query_heads=p.heads // p.slots,
            key_heads=shape.kv_heads,
            **beat,
        )
        self._keys = KeyCache(**cache)
        self._values = ValueCache(query_heads_per_kv=p.heads // shape.kv_heads, **cache)
        self._softmax = Softmax(
            context=shape.context,
            format=p.activation_format,
            lanes_in=shape.lanes,
            lanes=p.softmax_lanes,
            exp2_bits=p.tables.softmax_exp2,
            passes=shape.key_blocks,
        )
        self._attention = AttentionOutput(
            head_size=shape.block_size // p.slots,
            context=shape.context,
            multipliers=p.attention_lanes,
            reciprocal_bits=p.tables.attention_reciprocal,
            **beat,
        )
        self._bias = Bias(vectors=p.biases, **beat) if p.biases else None
        self._gated = SwiGlu(
            wide_format=p.wide_format,
            format=p.activation_format,
            lanes_in=shape.lanes,
            lanes=p.gated_lanes,
            lanes_out=shape.lanes,
            exp2_bits=p.tables.gated_exp2,
            reciprocal_bits=p.tables.gated_reciprocal,
        )
        self._quantizer = Quantizer(
            mantissa_bits=self._engine.mantissa_bits,
            lanes=shape.lanes,
            formats=(p.wide_format, p.activation_format),
            shared_exponent=False,
        )
        self._to_fixed = ToFixed(mantissa_bits=self._engine.mantissa_bits, lanes=shape.lanes)
        self._tap = LogitsTap(length=shape.vocabulary, lanes=shape.lanes)
        self._argmax = ArgMax(length=shape.vocabulary, lanes=shape.lanes)
        self._units = {
            "engine": self._engine,
            "sequencer": self._sequencer,
            "weights": self._weights,
            "word_decoder": self._word_decoder,
            "embedding": self._embedding,
            "residual": self._residual,
            "norm": self._norm,
            "rope": self._rope,
            "keys": self._keys,
            "values": self._values,
            "softmax": self._softmax,
            "attention": self._attention,
            "gated": self._gated,
            "quantizer": self._quantizer,
            "to_fixed": self._to_fixed,
            "tap": self._tap,
            "argmax": self._argmax,
        }
        if self._bias is not None:
            self._units["bias"] = self._bias

    def _build_routes(self, m: Module) -> None:
        p, shape = self._p, self._p.shape
        word = BlockWord(format=p.engine_format, rows=shape.rows)
        m.submodules.memory_route = self._memory_route = StreamRoute(
            shape=word, ports=2, count_bits=shape.count_bits
        )
        m.submodules.weight_select = self._weight_select = StreamSelect(
            shape=word,
            ports=len(Weights),
            parts=neighbours(p.engine_format, shape.rows),
            count_bits=shape.count_bits,
        )
        m.submodules.operand_select = self._operand_select = StreamSelect(
            shape=BlockBeat(format=p.activation_format, lanes=shape.lanes),
            ports=5,
            count_bits=shape.count_bits,
        )
        m.submodules.result_route = self._result_route = StreamRoute(
            shape=WideBeat(lanes=shape.rows, mantissa_bits=self._engine.mantissa_bits),
            ports=3,
            count_bits=shape.count_bits,
        )
        m.submodules.wide_route = self._wide_route = StreamRoute(
            shape=BlockBeat(format=p.wide_format, lanes=shape.lanes),
            ports=5,
            count_bits=shape.count_bits,
        )
        m.submodules.fixed_route = self._fixed_route = StreamRoute(
            shape=FixedBeat(lanes=shape.lanes), ports=2, count_bits=shape.count_bits
        )

    def _link_operands(self, m: Module) -> None:
        p, shape = self._p, self._p.shape
        head_beats = p.query_blocks * shape.beats_per_block
        # All heads wait here while the engine is still busy with the keys and values, or with the
        # other heads; a shorter queue would stop what those depend on.
        query = _queued(m, "queries", self._rope.o_query, head_beats)
        attended = _queued(m, "attended", self._attention.o, head_beats)
        if p.slots > 1:
            m.submodules.query_slots = slots = QuerySlots(
                format=p.activation_format, lanes=shape.lanes, slots=p.slots
            )
            link(m, query, slots.i)
            query = slots.o
        sources = {
            Operand.NORM: self._norm.o,
            Operand.QUERY: query,
            Operand.PROBABILITIES: self._softmax.o,
            Operand.ATTENTION: attended,
            Operand.GATED: self._gated.o,
        }
        for operand, source in sources.items():
            link(m, source, self._operand_select.i[operand.value])
        # Holds the longest operand while the engine works on the step before.
        longest = shape.max_blocks * shape.beats_per_block
        link(m, _queued(m, "operands", self._operand_select.o, longest), self._engine.i_x)

    def _link_weights(self, m: Module) -> None:
        p, shape = self._p, self._p.shape
        link(m, self._weights.o, self._word_decoder.i)
        link(m, self._word_decoder.o, self._memory_route.i)
        link(m, self._memory_route.o[0], self._weight_select.i[Weights.MEMORY.value])
        link(m, self._memory_route.o[1], self._embedding.i)
        for name, cache, source in (
            ("key_decoder", self._keys, Weights.KEYS),
            ("value_decoder", self._values, Weights.VALUES),
        ):
            m.submodules[name] = decoder = WordDecoder(
                from_format=p.activation_format, to_format=p.engine_format, rows=shape.rows
            )
            link(m, cache.o, decoder.i)
            link(m, decoder.o, self._weight_select.i[source.value])
        link(m, self._weight_select.o, self._engine.i_weights)

    def _link_results(self, m: Module) -> None:
        shape = self._p.shape
        link(m, self._engine.o, self._result_route.i)
        # Ports 0 and 1 are wide and narrow results of one quantiser; never both at once.
        wide, narrow, fixed = self._result_route.o
        into = self._quantizer.i
        m.d.comb += [
            into.payload.beat.eq(self._result_route.i.payload),
            into.payload.select.eq(narrow.valid),
            into.valid.eq(wide.valid | narrow.valid),
            wide.ready.eq(into.ready),
            narrow.ready.eq(into.ready),
        ]
        link(m, fixed, self._to_fixed.i)
        # Queues cut the chains of ready signals that would reach from the host to the engine, and
        # from every unit behind a route to the one before it.
        link(m, _queued(m, "wide_queue", self._quantizer.o), self._wide_route.i)
        fixed_beat = FixedBeat(lanes=shape.lanes)
        # Comparisons with the maximum so far follow, which should not begin at a memory.
        m.submodules.fixed_register = fixed_register = StreamRegister(shape=fixed_beat)
        link(m, _queued(m, "fixed_queue", self._to_fixed.o), fixed_register.i)
        link(m, fixed_register.o, self._fixed_route.i)

        results = self._wide_route.o
        rotated, values = results[Destination.ROPE.value], results[Destination.VALUES.value]
        if self._bias is not None:
            link(m, rotated, self._bias.i_wide)
            link(m, values, self._bias.i_narrow)
            rotated, values = self._bias.o_wide, self._bias.o_narrow
        # Whether these take a beat depends on all of their pipelines, and would reach back through
        # the route.
        link(m, _queued(m, "rope_queue", rotated), self._rope.i)
        sums = _queued(m, "attention_queue", results[Destination.ATTENTION.value])
        link(m, sums, self._attention.i)
        sums = _queued(m, "residual_queue", results[Destination.RESIDUAL.value])
        link(m, sums, self._residual.i_add)
        link(m, results[Destination.GATED.value], self._gated.i)
        beat = payload_shape(self._values.i)
        m.submodules.values_queue = into = StreamFifo(shape=beat, depth=2)
        link(m, into.o, self._values.i)
        m.d.comb += [
            into.i.payload.scale.eq(values.payload.scale),
            into.i.valid.eq(values.valid),
            values.ready.eq(into.i.ready),
        ]
        for lane in range(shape.lanes):
            # A narrow result is sign-extended in the quantiser's wide element.
            m.d.comb += into.i.payload.elements[lane].eq(values.payload.elements[lane])

        link(m, self._fixed_route.o[0], self._softmax.i)
        link(m, self._fixed_route.o[1], self._tap.i)
        link(m, self._tap.o, self._argmax.i)
        m.submodules.logits_register = register = StreamRegister(shape=fixed_beat)
        link(m, _queued(m, "logits_queue", self._tap.o_copy), register.i)
        link(m, register.o, wiring.flipped(self.o_logits))
        link(m, _queued(m, "token_queue", self._argmax.o), wiring.flipped(self.o_token))

        link(m, self._embedding.o, self._residual.i_load)
        link(m, self._residual.o, self._norm.i)
        link(m, self._rope.o_key, self._keys.i)
        link(m, _queued(m, "scales_queue", self._values.o_scales), self._softmax.i_scales)
        totals = self._softmax.o_total
        if self._p.slots > 1:
            # A block of sums is complete, and the first total used, after the last of its heads.
            totals = _queued(m, "totals", totals, self._p.slots)
        link(m, totals, self._attention.i_total)

    def _link_commands(self, m: Module) -> None:
        link(m, wiring.flipped(self.i_step), self._sequencer.i_step)
        commands = {
            "memory": self._weights.i_command,
            "memory_route": self._memory_route.i_command,
            "weights": self._weight_select.i_command,
            "operand": self._operand_select.i_command,
            "engine": self._engine.i_command,
            "result": self._result_route.i_command,
            "wide": self._wide_route.i_command,
            "fixed": self._fixed_route.i_command,
            "key": self._keys.i_command,
            "value": self._values.i_command,
            "rope": self._rope.i_position,
            "softmax": self._softmax.i_position,
            "embedding": self._embedding.i_command,
            "logits": self._tap.i_command,
        }
        for name, sink in commands.items():
            source = getattr(self._sequencer, f"o_{name}")
            link(m, _queued(m, f"{name}_commands", source, _COMMAND_DEPTH), sink)
