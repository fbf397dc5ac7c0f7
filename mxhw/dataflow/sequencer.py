"""The sequencer: runs the program once a token and hands each unit its commands."""

from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from mxhw.dataflow.engine import EngineCommand
from mxhw.dataflow.key_cache import CacheCommand
from mxhw.dataflow.program import (
    Destination,
    EmbeddingCommand,
    Operand,
    Shape,
    Step,
    StepWord,
    TokenStep,
    Weights,
)
from mxhw.dataflow.routing import RouteCommand
from mxhw.dataflow.weight_memory import ReadCommand

__all__ = ["Sequencer"]


class Sequencer(wiring.Component):
    """Turn each token into the commands of every unit, step by step, in program order.

    Contract: for each transfer of ``i_step`` the program runs once. The commands of a step are
    offered together and each is taken when its unit is ready; the next step follows when all have
    been taken. Units run ahead of or behind each other as their queues allow: order within a unit
    is program order, and data streams enforce every other dependence.

    Parameters
    ----------
    program : sequence of Step
    shape : Shape
    engine_command : EngineCommand
        Layout of the engine's commands.
    narrow_values : bool
        Whether values leave the engine's quantiser in the narrow format; a bias needs them wide.

    Members
    -------
    i_step : In(stream of TokenStep)
    o_memory, o_memory_route, o_weights, o_operand, o_engine, o_result, o_wide, o_fixed, o_key,
    o_value, o_rope, o_softmax, o_embedding, o_logits : Out(stream)
        Commands; see :class:`mxhw.dataflow.decoder.FoldedDecoder` for the units behind them.

    Raises
    ------
    ValueError
        If the program is empty.

    Timing
    ------
    ``overhead`` 4 cycles a step besides waiting, hidden while units have commands queued.

    Cost
    ----
    The program memory and a few counters; no multiplier.
    """

    overhead = 4

    def __init__(
        self,
        *,
        program: Sequence[Step],
        shape: Shape,
        engine_command: EngineCommand,
        narrow_values: bool = True,
    ):
        if not program:
            raise ValueError("Program of a sequencer must have at least one step, not 0")
        self._program = list(program)
        lengths = sorted(
            {
                step.blocks
                for step in program
                if step.destination is Destination.EMBEDDING and isinstance(step.blocks, int)
            }
        )
        if len(lengths) > 1:
            raise ValueError(
                f"Embeddings of a program must have rows of one length, not of "
                f"{' and '.join(map(str, lengths))} blocks"
            )
        # A constant, so that finding a row takes no multiplier.
        self._row_words = lengths[0] if lengths else 0
        self._narrow_values = narrow_values
        self._shape = shape
        counts = {"count_bits": shape.count_bits}
        cache = CacheCommand(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            context=shape.context,
            parts=shape.value_parts,
        )
        position = unsigned(bits_for(max(shape.context - 1, 1)))
        super().__init__(
            {
                "i_step": In(
                    stream.Signature(TokenStep(vocabulary=shape.vocabulary, context=shape.context))
                ),
                "o_memory": Out(stream.Signature(ReadCommand(depth=shape.words))),
                "o_memory_route": Out(stream.Signature(RouteCommand(ports=2, **counts))),
                "o_weights": Out(stream.Signature(RouteCommand(ports=3, **counts))),
                "o_operand": Out(stream.Signature(RouteCommand(ports=5, **counts))),
                "o_engine": Out(stream.Signature(engine_command)),
                "o_result": Out(stream.Signature(RouteCommand(ports=3, **counts))),
                "o_wide": Out(stream.Signature(RouteCommand(ports=5, **counts))),
                "o_fixed": Out(stream.Signature(RouteCommand(ports=2, **counts))),
                "o_key": Out(stream.Signature(cache)),
                "o_value": Out(stream.Signature(cache)),
                "o_rope": Out(stream.Signature(position)),
                "o_softmax": Out(stream.Signature(position)),
                "o_embedding": Out(stream.Signature(EmbeddingCommand(rows=shape.rows))),
                "o_logits": Out(stream.Signature(unsigned(1))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        shape = self._shape
        layout = StepWord(shape)
        last_index = len(self._program) - 1
        init = [
            layout.encode(step, last=index == last_index)
            for index, step in enumerate(self._program)
        ]
        m.submodules.store = store = memory.Memory(shape=layout, depth=max(len(init), 2), init=init)  # pyright: ignore[reportArgumentType, reportCallIssue]
        port = store.read_port(domain="sync")
        token = Signal(self.i_step.payload.shape())
        counter = Signal(range(max(len(init), 2)))
        step = Signal(layout)
        counts = _Counts(shape)
        m.d.comb += port.addr.eq(counter)
        busy = Signal()
        prepare = Signal()
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.i_step.ready.eq(1)
                m.d.sync += counter.eq(0)
                with m.If(self.i_step.valid):
                    m.d.sync += token.eq(self.i_step.payload)
                    m.next = "fetch"
            with m.State("fetch"):
                m.next = "read"
            with m.State("read"):
                m.d.sync += step.eq(port.data)
                m.next = "count"
            with m.State("count"):
                m.d.comb += prepare.eq(1)
                m.d.sync += counter.eq(counter + 1)
                m.next = "issue"
            with m.State("issue"), m.If(~busy):
                with m.If(step.last):
                    m.next = "idle"
                with m.Else():
                    m.next = "read"
        self._count(m, step, token, counts, prepare)
        self._issue(m, step, token, prepare, busy)
        self._payloads(m, step, token, counts)
        return m

    def _count(self, m: Module, step, token, counts: "_Counts", prepare: Signal) -> None:
        """Resolve what depends on the token, in registers."""
        shape = self._shape
        blocks_so_far = (token.position >> exact_log2(shape.block_size)) + 1
        groups_so_far = (token.position >> exact_log2(shape.rows)) + 1
        blocks = Mux(step.position_blocks, blocks_so_far, step.blocks)
        row_bits = exact_log2(shape.rows)
        with m.If(prepare):
            m.d.sync += [
                counts.blocks.eq(blocks),
                counts.groups.eq(Mux(step.position_groups, groups_so_far, step.groups)),
                counts.beats.eq(blocks << exact_log2(shape.beats_per_block)),
                counts.base.eq(step.base),
                counts.words.eq(step.words),
            ]
            # Keys have a constant number of blocks, values of groups.
            with m.If(step.position_groups):
                m.d.sync += counts.words.eq(groups_so_far * shape.key_blocks)
            with m.If(step.position_blocks):
                m.d.sync += counts.words.eq(blocks_so_far * shape.value_groups)
            with m.If(step.destination == Destination.EMBEDDING):
                m.d.sync += counts.base.eq(step.base + (token.token >> row_bits) * self._row_words)

    def _issue(self, m: Module, step, token, prepare: Signal, busy: Signal) -> None:
        """Offer every command that the step needs until it is taken."""
        destination = step.destination
        product = Signal()
        engine = Signal()
        m.d.comb += [
            product.eq(~step.sampled_only | token.sample | token.logits),
            engine.eq(product & (destination != Destination.EMBEDDING)),
        ]
        wide = destination <= Destination.VALUES.value
        needs = {
            "o_memory": product & (step.weights == Weights.MEMORY),
            "o_memory_route": product & (step.weights == Weights.MEMORY),
            "o_weights": engine,
            "o_operand": step.operand != Operand.KEEP,
            "o_result": engine,
            "o_wide": engine & wide,
            "o_fixed": engine & ~wide,
            "o_key": (step.weights == Weights.KEYS)
            | (step.store & (destination == Destination.ROPE)),
            "o_value": (step.weights == Weights.VALUES)
            | (step.store & (destination == Destination.VALUES)),
            "o_rope": step.start_layer,
            "o_softmax": destination == Destination.SOFTMAX,
            "o_embedding": destination == Destination.EMBEDDING,
            "o_logits": product & (destination == Destination.LOGITS),
        }
        pending = []
        for name, need in needs.items():
            port = getattr(self, name)
            with m.If(prepare):
                m.d.sync += port.valid.eq(need)
            with m.Elif(port.ready):
                m.d.sync += port.valid.eq(0)
            pending.append(port.valid)
        # The engine is first told to load, then to multiply.
        load = self.o_engine.payload.load
        multiply = Signal()
        with m.If(prepare):
            m.d.sync += [
                self.o_engine.valid.eq((step.operand != Operand.KEEP) | engine),
                load.eq(step.operand != Operand.KEEP),
                multiply.eq((step.operand != Operand.KEEP) & engine),
            ]
        with m.Elif(self.o_engine.ready):
            m.d.sync += [self.o_engine.valid.eq(multiply), load.eq(0), multiply.eq(0)]
        pending.append(self.o_engine.valid)
        m.d.comb += busy.eq(Cat(*pending).any())

    def _payloads(self, m: Module, step, token, counts: "_Counts") -> None:
        destination = step.destination
        fixed = destination >= Destination.SOFTMAX.value
        narrow = (step.destination == Destination.VALUES) & self._narrow_values
        m.d.comb += [
            self.o_memory.payload.base.eq(counts.base),
            self.o_memory.payload.count.eq(counts.words),
            self.o_memory_route.payload.port.eq(step.destination == Destination.EMBEDDING),
            self.o_memory_route.payload.count.eq(counts.words),
            self.o_weights.payload.port.eq(step.weights),
            self.o_weights.payload.count.eq(counts.words),
            self.o_operand.payload.port.eq(step.operand),
            self.o_operand.payload.count.eq(counts.beats),
            self.o_engine.payload.slot.eq(0),
            self.o_engine.payload.blocks.eq(counts.blocks),
            self.o_engine.payload.groups.eq(counts.groups),
            self.o_result.payload.port.eq(Mux(fixed, 2, narrow)),
            self.o_result.payload.count.eq(counts.groups),
            self.o_wide.payload.port.eq(destination),
            self.o_wide.payload.count.eq(counts.groups),
            self.o_fixed.payload.port.eq(step.destination == Destination.LOGITS),
            self.o_fixed.payload.count.eq(counts.groups),
            self.o_rope.payload.eq(token.position),
            self.o_softmax.payload.eq(token.position),
            self.o_embedding.payload.row.eq(token.token),
            self.o_logits.payload.eq(token.logits),
        ]
        for cache in (self.o_key, self.o_value):
            m.d.comb += [
                cache.payload.write.eq(step.store),
                cache.payload.layer.eq(step.layer),
                cache.payload.head.eq(step.head),
                cache.payload.part.eq(step.part),
                cache.payload.position.eq(token.position),
            ]


class _Counts:
    """Registers that hold a step's resolved counts while its commands are offered."""

    def __init__(self, shape: Shape):
        self.blocks = Signal(bits_for(shape.max_blocks))
        self.groups = Signal(bits_for(shape.max_groups))
        self.beats = Signal(shape.count_bits)
        self.words = Signal(shape.count_bits)
        self.base = Signal(bits_for(max(shape.words - 1, 1)))
