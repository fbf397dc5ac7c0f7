"""Greedy text from the golden model, and the same text from the simulated hardware.

The golden model writes a script: every step that the hardware is to take, with the token that it
must choose and, at every sixteenth of them, the logits. The simulation takes the steps one after
the other, as a host does, and stops at the first answer that differs; so up to there every token
that the hardware was fed is its own choice.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from amaranth.lib import data
from torch import fx

from mxhw.compiler.lower import reset_caches
from mxhw.cosim.engine import Engine
from mxhw.errors import BuildError, UserError
from mxhw.models.tokenizer import BOS, EOS
from mxhw.sw.golden.linear import FIXED_BITS

__all__ = ["LOGITS_PERIOD", "Script", "ScriptStep", "SimulationResult", "replay", "write_script"]

LOGITS_PERIOD = 16
"""Logits are compared at the first generated token and at every so many further ones."""

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ScriptStep:
    """One token through the model.

    Members
    -------
    token, position : int
    chosen : int or None
        The greedy next token; None where the next token is known from the prompt.
    """

    token: int
    position: int
    chosen: int | None


@dataclasses.dataclass(frozen=True)
class Script:
    """Steps of one or more sequences, each from position 0, and some of their logits.

    Members
    -------
    steps : list of ScriptStep
    logits : dict of int to int64 array
        Fixed-point logits by number of the step.
    """

    steps: list[ScriptStep]
    logits: dict[int, np.ndarray]

    @property
    def chosen(self) -> list[int]:
        """Generated tokens, in order."""
        return [step.chosen for step in self.steps if step.chosen is not None]

    def sequences(self) -> list[list[int]]:
        """Tokens of each sequence, prompt included."""
        result: list[list[int]] = []
        for step in self.steps:
            if step.position == 0:
                result.append([])
            result[-1].append(step.token)
        # The last choice of a sequence was never fed back.
        ends = [index for index, step in enumerate(self.steps) if step.position == 0][1:]
        for tokens, end in zip(result, [*ends, len(self.steps)], strict=True):
            last = self.steps[end - 1].chosen
            tokens.extend([] if last is None else [last])
        return result

    def to_dict(self) -> dict[str, Any]:
        """The steps as JSON types."""
        return {"steps": [dataclasses.astuple(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, content: dict[str, Any], logits: dict[int, np.ndarray]) -> "Script":
        """Inverse of :meth:`to_dict`."""
        return cls([ScriptStep(*step) for step in content["steps"]], logits)


@torch.no_grad()
def write_script(
    decode: fx.GraphModule,
    prompt: Sequence[int],
    tokens: int,
    context: int,
    on_progress: Progress | None = None,
    *,
    bos: int | None = BOS,
    eos: int | None = EOS,
) -> Script:
    """Generate ``tokens`` tokens greedily with the golden decode step.

    A text that ends, or is as long as the context, is followed by a new one from ``bos`` alone (by
    the same prompt where texts have no first token), until all tokens are there.

    Parameters
    ----------
    decode : fx.GraphModule
        Lowered decode step.
    prompt : sequence of int
        Token numbers, at least one.
    tokens : int
        Number of tokens to generate, at least one.
    context : int
        Positions that the model has.
    on_progress : callable, optional
        Called with the tokens generated and their number.
    bos, eos : int or None
        Tokens that begin and end a text.

    Raises
    ------
    UserError
        If the prompt is empty or longer than the context, or no token is asked for.
    """
    if not prompt:
        raise UserError("Prompt must have at least one token, not 0")
    if len(prompt) > context:
        raise UserError(
            f"Prompt of {len(prompt)} tokens is longer than the model's context ({context} tokens)"
        )
    if tokens < 1:
        raise UserError(f"Number of tokens must be at least 1, not {tokens}")
    steps: list[ScriptStep] = []
    logits: dict[int, np.ndarray] = {}
    generated = 0
    known = list(prompt)
    while generated < tokens:
        reset_caches(decode)
        token = known[0]
        for position in range(context):
            choice, fixed = decode(torch.tensor([token]), torch.tensor([position]))
            sampled = position >= len(known) - 1
            if sampled and generated % LOGITS_PERIOD == 0:
                logits[len(steps)] = fixed.flatten().numpy().astype(np.int64)
            steps.append(ScriptStep(token, position, int(choice) if sampled else None))
            token = int(choice) if sampled else known[position + 1]
            generated += sampled
            if on_progress is not None:
                on_progress(generated, tokens)
            if sampled and (generated == tokens or token == eos):
                break
        # A text that is over, or as long as the context, is followed by a new one.
        known = list(prompt) if bos is None else [bos]
    return Script(steps, logits)


@dataclasses.dataclass(frozen=True)
class SimulationResult:
    """What the hardware did.

    Members
    -------
    tokens : int
        Generated tokens that are equal to golden's, all of them.
    logits : int
        Vectors of logits that are equal to golden's, all of them.
    cycles : int
        Clock cycles of the whole simulation.
    cycles_by_position : dict of int to int
        Cycles between a step's entry and its token; of steps without logits, if there are any.
    """

    tokens: int
    logits: int
    cycles: int
    cycles_by_position: dict[int, int]

    def cycles_per_token(self, context: int) -> tuple[int, int]:
        """Cycles of the step that sees ``context`` positions, and how many it really sees.

        If no such step was simulated, the nearest one stands in.
        """
        nearest = min(self.cycles_by_position, key=lambda position: abs(position + 1 - context))
        return self.cycles_by_position[nearest], nearest + 1


def replay(
    engine: Engine,
    step_shape: data.StructLayout,
    script: Script,
    on_progress: Progress | None = None,
    *,
    timeout_cycles: int = 2_000_000,
) -> SimulationResult:
    """Let the simulated hardware take a script's steps and compare every answer.

    Parameters
    ----------
    engine : Engine
        Simulation of a decoder with the streams ``i_step``, ``o_token`` and ``o_logits``.
    step_shape : StructLayout
        Payload of ``i_step``.
    script : Script
    on_progress : callable, optional
        Called with the steps taken and their number.
    timeout_cycles : int
        Cycles that one step may take.

    Raises
    ------
    BuildError
        At the first difference, with the step and both values.
    """
    tokens = vectors = 0
    cycles: dict[int, int] = {}
    cycles_with_logits: dict[int, int] = {}
    for number, step in enumerate(script.steps):
        expected = script.logits.get(number)
        fields: Mapping[int | str, int] = {
            "token": step.token,
            "position": step.position,
            "sample": int(step.chosen is not None),
            "logits": int(expected is not None),
        }
        start = engine.cycles
        engine.put("i_step", [step_shape.const(fields).as_bits()])
        if step.chosen is None:
            engine.run_until(["i_step"], timeout_cycles=timeout_cycles)
        else:
            if expected is not None:
                _compare_logits(engine, number, step, expected, timeout_cycles)
                vectors += 1
            (chosen,) = engine.get("o_token", 1, timeout_cycles=timeout_cycles)
            if chosen != step.chosen:
                raise BuildError(
                    f"Hardware differs from golden at token {tokens} (position {step.position}): "
                    f"it chose {chosen}, not {step.chosen}"
                )
            tokens += 1
            kind = cycles if expected is None else cycles_with_logits
            kind[step.position] = engine.cycles - start
        if on_progress is not None:
            on_progress(number + 1, len(script.steps))
    return SimulationResult(tokens, vectors, engine.cycles, cycles or cycles_with_logits)


def _compare_logits(
    engine: Engine, number: int, step: ScriptStep, expected: np.ndarray, timeout_cycles: int
) -> None:
    width = engine.design.streams["o_logits"].width
    lanes = width // FIXED_BITS
    beats = engine.get("o_logits", -(-len(expected) // lanes), timeout_cycles=timeout_cycles)
    codes = [
        beat >> (lane * FIXED_BITS) & ((1 << FIXED_BITS) - 1)
        for beat in beats
        for lane in range(lanes)
    ]
    half = 1 << (FIXED_BITS - 1)
    values = np.array([(code ^ half) - half for code in codes[: len(expected)]])
    wrong = np.flatnonzero(values != expected)
    if len(wrong):
        index = int(wrong[0])
        raise BuildError(
            f"Hardware differs from golden at step {number} (position {step.position}): "
            f"logit {index} is {values[index]}, not {expected[index]} "
            f"({len(wrong)} of {len(expected)} differ)"
        )
