"""Cycles of a token, predicted from the program and the latencies that the units state.

Each stream is a list of the cycles in which its beats pass. A unit maps the lists of its inputs to
the list of its output; the engine takes the steps one after the other. No simulation is needed.
"""

import dataclasses

from mxhw.dataflow.decoder import FoldedDecoder
from mxhw.dataflow.program import Destination, Operand, Position, Step, Weights

__all__ = ["StepTiming", "TokenSchedule", "schedule_token"]

_QUEUE = 1
"""Cycles that a queue between two units adds."""
_LAST_STEPS = 1
"""Cycles from the arg-max to the next token's step."""
_STORED = (Operand.QUERY, Operand.ATTENTION)
"""Operands that wait in a queue of their own; the others wait in their units."""


@dataclasses.dataclass(frozen=True)
class StepTiming:
    """When a step held the engine.

    Members
    -------
    name : str
    start, end : int
        First word, and the cycle after the last.
    words : int
    """

    name: str
    start: int
    end: int
    words: int


@dataclasses.dataclass(frozen=True)
class TokenSchedule:
    """Predicted schedule of one token.

    Members
    -------
    cycles : int
        From a token's step to the next one's.
    steps : list of StepTiming
    """

    cycles: int
    steps: list[StepTiming]

    @property
    def engine_words(self) -> int:
        """Cycles in which the engine multiplies."""
        return sum(step.words for step in self.steps)


class _Scheduler:
    def __init__(self, decoder: FoldedDecoder, position: int):
        self._d = decoder.unit_timings()
        self._shape = decoder.parameters.shape
        self._p = decoder.parameters
        self._position = position
        self._engine = 0
        self._select = 0
        self._operands: dict[Operand, list[int]] = {}
        self._scores: list[list[int]] = []
        self._sums: list[int] = []
        self._gated: list[int] = []
        self._key_written = 0
        self._value_written = 0
        self._softmax_free = 0
        self._sequencer = 0
        self._token = 0
        self.steps: list[StepTiming] = []

    def count(self, value: int | Position) -> int:
        """A count resolved for the position."""
        if value is Position.BLOCKS:
            return self._position // self._shape.block_size + 1
        if value is Position.GROUPS:
            return self._position // self._shape.rows + 1
        return value

    def _blocks(self, times: list[int], latency: int, stride: int = 1) -> list[int]:
        """Beats after a unit that needs a whole block before its first beat."""
        size = self._shape.beats_per_block
        result: list[int] = []
        for start in range(0, len(times), size):
            ready = times[start + size - 1] + latency
            first = max(ready, result[-1] + stride if result else 0)
            result += [first + stride * beat for beat in range(size)]
        return result

    @staticmethod
    def _slowed(times: list[int], stride: int) -> list[int]:
        """Beats into a unit that takes one every ``stride`` cycles."""
        result: list[int] = []
        for time in times:
            result.append(max(time, result[-1] + stride) if result else time)
        return result

    def run(self, step: Step) -> None:
        """Advance by one step."""
        self._sequencer += self._d["step"]
        blocks, groups = self.count(step.blocks), self.count(step.groups)
        if step.destination is Destination.EMBEDDING:
            self._embed(blocks)
            return
        start = max(self._engine, self._sequencer)
        # An operand takes a command of its own before that of the product.
        if step.operand is not Operand.KEEP:
            start = self._load(step.operand, blocks, start + self._d["command"])
        fetch = {
            Weights.MEMORY: 0,
            Weights.KEYS: self._key_written + self._d["keys"],
            Weights.VALUES: self._value_written + self._d["values"],
        }[step.weights]
        start = max(start + self._d["command"], fetch)
        words = blocks * groups
        self._engine = start + words
        self.steps.append(StepTiming(step.name, start, self._engine, words))
        first = start + self._d["engine"]
        results = [first + (group + 1) * blocks - 1 for group in range(groups)]
        self._deliver(step, results)

    def _embed(self, blocks: int) -> None:
        beats = self._shape.beats_per_block
        first = self._sequencer + self._d["memory"] + self._d["embedding"]
        self._normalise([first + beat for beat in range(blocks * beats)])

    def _load(self, operand: Operand, blocks: int, start: int) -> int:
        beats = blocks * self._shape.beats_per_block
        queue = self._operands[operand]
        if operand is Operand.GATED:
            self._gated = []
        taken, self._operands[operand] = queue[:beats], queue[beats:]
        if operand in _STORED:
            taken = [time + _QUEUE for time in taken]
        else:
            # The unit itself waits until the operands before have passed.
            delay = max(self._select - taken[0], 0)
            taken = [time + delay for time in taken]
        for time in taken:
            self._select = max(self._select, time) + 1
            # Through the queue before the engine.
            start = max(start, self._select - 1 + _QUEUE) + 1
        return start

    def _normalise(self, times: list[int]) -> None:
        first = times[-1] + self._d["norm"]
        self._operands[Operand.NORM] = [first + beat for beat in range(len(times))]

    def _deliver(self, step: Step, results: list[int]) -> None:
        if step.destination is Destination.SOFTMAX:
            self._scores.append([time + self._d["fixed"] for time in results])
            self._softmax(step)
            return
        if step.destination is Destination.LOGITS:
            self._token = results[-1] + self._d["fixed"] + self._d["argmax"]
            return
        if step.destination is Destination.ATTENTION:
            # Heads that share a block complete it together.
            self._sums += results
            if len(self._sums) % self._shape.beats_per_block:
                return
            results, self._sums = self._sums, []
        if step.destination is Destination.GATED:
            # Gate and factor come in turns of a block, perhaps in several steps.
            self._gated += results
            if len(self._gated) % (2 * self._shape.beats_per_block):
                return
            results = self._gated
        times = self._blocks(results, self._d["quantizer"])
        if self._p.biases and step.destination in (Destination.ROPE, Destination.VALUES):
            times = self._blocks(times, self._d["bias"])
        if step.destination is Destination.ROPE:
            self._rotate(step, times)
        elif step.destination is Destination.VALUES:
            # Through the register before the cache.
            self._value_written = times[-1] + 1
        elif step.destination is Destination.ATTENTION:
            stride = self._d["attention_beat"]
            done = self._blocks(self._slowed(times, stride), self._d["attention"], stride)
            self._operands.setdefault(Operand.ATTENTION, []).extend(done)
        elif step.destination is Destination.RESIDUAL:
            self._normalise(self._blocks(times, self._d["residual"]))
        elif step.destination is Destination.GATED:
            self._gate(times)

    def _rotate(self, step: Step, times: list[int]) -> None:
        stride = self._d["rope_beat"]
        rotated = self._blocks(self._slowed(times, stride), self._d["rope"], stride)
        if step.store:
            self._key_written = rotated[-1]
        else:
            size = self._shape.beats_per_block
            self._operands[Operand.QUERY] = [
                time
                for first in range(0, len(rotated), size)
                for time in rotated[first : first + size] * self._p.slots
            ]

    def _softmax(self, step: Step) -> None:
        last = self._scores[-1][-1]
        positions = self._position + 1
        blocks = -(-positions // self._shape.block_size)
        per_block = self._d["softmax_block"]
        start = max(last, self._softmax_free, self._value_written)
        first = start + self._d["softmax"]
        beats = self._shape.beats_per_block
        stride = per_block // beats
        passes = self._shape.key_blocks
        # A cycle passes between two passes.
        times = [
            first + number * (blocks * per_block + 1) + block * per_block + stride * beat
            for number in range(passes)
            for block in range(blocks)
            for beat in range(beats)
        ]
        self._softmax_free = start + passes * (blocks * per_block + 1) - 1
        self._operands.setdefault(Operand.PROBABILITIES, []).extend(times)

    def _gate(self, times: list[int]) -> None:
        beats = self._shape.beats_per_block
        stride = self._d["gated_beat"]
        result: list[int] = []
        for start in range(0, len(times), 2 * beats):
            ready = times[start + 2 * beats - 1] + self._d["gated"]
            if result:
                ready = max(ready, result[-beats] + self._d["gated_block"])
            result += [ready + stride * beat for beat in range(beats)]
        self._operands[Operand.GATED] = result

    @property
    def cycles(self) -> int:
        """Cycles from the token's step to the next one's."""
        return self._token + _LAST_STEPS


def schedule_token(decoder: FoldedDecoder, position: int) -> TokenSchedule:
    """Predict the schedule of a sampled token at a position.

    The first position of a text is 0; a token with ``n`` positions in sight is at ``n - 1``.
    """
    scheduler = _Scheduler(decoder, position)
    for step in decoder.parameters.program:
        scheduler.run(step)
    return TokenSchedule(scheduler.cycles, scheduler.steps)
