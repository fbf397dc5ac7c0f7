"""Helpers for unit tests of stream components.

A unit test gives payloads to the input streams and compares what the output streams deliver, under
several patterns of stalls::

    check_stream(Adder(), inputs={"i": [{"a": 1, "b": 2}]}, expected={"o": [3]})

Payloads may be integers holding bits, or anything that the payload shape packs: dictionaries,
sequences, negative integers for signed shapes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Shape, ShapeCastable
from amaranth.lib import data

from mxhw.cosim.engine import Engine, make_engine
from mxhw.dataflow.link import payload_shape

__all__ = [
    "STALLS",
    "Timing",
    "check_stream",
    "measure_latency_and_interval",
    "pack",
    "pack_lanes",
    "port_of",
    "run_stream",
    "unpack",
    "unpack_lanes",
]

#: Probabilities (valid, ready) that :func:`check_stream` runs by default.
STALLS = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.4), (0.6, 0.6))


def pack(shape: Any, value: Any) -> int:
    """Return the bits of ``value`` in ``shape`` as an unsigned integer.

    Integers are taken as bits already unless the shape is a plain (signed or unsigned) shape.
    """
    width = Shape.cast(shape).width
    if isinstance(value, data.Const):
        return value.as_bits()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not isinstance(shape, data.Layout):
        # Shapes of enumerations and numbers.
        plain = Shape.cast(shape)
        low = -(1 << (width - 1)) if plain.signed and width else 0
        # An unsigned integer with the sign bit set stands for its bits.
        assert low <= value < (1 << width), f"{value} does not fit into {shape!r}"
        return value & ((1 << width) - 1)
    if isinstance(value, int):
        assert 0 <= value < (1 << width), f"{value} does not fit into {shape!r}"
        return value
    if isinstance(shape, data.Layout):
        # Faster than shape.const(): no Amaranth value is built.
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        bits = 0
        for key, item in items:
            field = shape[key]
            bits |= pack(field.shape, item) << field.offset
        return bits
    assert isinstance(shape, ShapeCastable), f"{value!r} does not fit into {shape!r}"
    const = shape.const(value)
    return const.as_bits() if isinstance(const, data.Const) else int(const.as_value().value)


def unpack(shape: Any, bits: int) -> Any:
    """Return the value that ``bits`` stand for in ``shape``: int, dict, list or enumeration."""
    if isinstance(shape, data.StructLayout):
        return {key: _field(shape[key], bits) for key in shape.members}
    if isinstance(shape, data.ArrayLayout):
        return [_field(shape[index], bits) for index in range(shape.length)]
    plain = Shape.cast(shape)
    if plain.signed and bits >> (plain.width - 1):
        bits -= 1 << plain.width
    return bits


def _field(field: data.Field, bits: int) -> Any:
    return unpack(field.shape, (bits >> field.offset) & ((1 << field.width) - 1))


def pack_lanes(values: Iterable[int], width: int) -> int:
    """Return integers, signed or not, packed into lanes of ``width`` bits, first lane lowest."""
    mask = (1 << width) - 1
    lanes = [int(value) & mask for value in values]
    if width % 8 == 0:
        return int.from_bytes(
            b"".join(lane.to_bytes(width // 8, "little") for lane in lanes), "little"
        )
    bits = 0
    for lane in reversed(lanes):
        bits = (bits << width) | lane
    return bits


def unpack_lanes(bits: int, width: int, count: int, *, signed: bool = False) -> list[int]:
    """Return ``count`` lanes of ``width`` bits, first lane lowest."""
    mask = (1 << width) - 1
    lanes = [(bits >> (index * width)) & mask for index in range(count)]
    if signed:
        lanes = [lane - (1 << width) if lane >> (width - 1) else lane for lane in lanes]
    return lanes


def port_of(component: Any, name: str) -> Any:
    """Return the port ``name`` of a component: ``i``, ``o.0`` or ``bus.data``."""
    for part in name.replace("[", ".").replace("]", "").split("."):
        component = component[int(part)] if part.isdigit() else getattr(component, part)
    return component


def run_stream(
    component: Any,
    inputs: Mapping[str, Iterable[Any]],
    counts: Mapping[str, int],
    *,
    engine: str = "pysim",
    stalls: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
    timeout_cycles: int = 100_000,
    setup: Callable[[Engine], None] | None = None,
) -> dict[str, list[int]]:
    """Run a component once and return the bits of ``counts[name]`` transfers of each output.

    ``setup`` is called with the engine before the first cycle, to poke inputs or load memories.
    """
    with make_engine(component, engine) as sim:
        if setup is not None:
            setup(sim)
        _start(sim, component, inputs, counts, stalls, seed)
        sim.run_until(timeout_cycles=timeout_cycles)
        return {name: sim.take(name, count) for name, count in counts.items()}


def _start(
    sim: Engine,
    component: Any,
    inputs: Mapping[str, Iterable[Any]],
    counts: Mapping[str, int],
    stalls: tuple[float, float],
    seed: int,
) -> None:
    for name, payloads in inputs.items():
        shape = payload_shape(port_of(component, name))
        rows = [pack(shape, payload) for payload in payloads]
        sim.put(name, rows, valid_probability=stalls[0], seed=seed)
    for name, count in counts.items():
        sim.collect(name, count, ready_probability=stalls[1], seed=seed)


def check_stream(
    component: Any,
    inputs: Mapping[str, Sequence[Any]],
    expected: Mapping[str, Sequence[Any]],
    *,
    engine: str = "pysim",
    stalls: Sequence[tuple[float, float]] = STALLS,
    seed: int = 0,
    timeout_cycles: int = 100_000,
    idle_cycles: int = 20,
    setup: Callable[[Engine], None] | None = None,
) -> None:
    """Check that the outputs deliver ``expected`` for ``inputs`` under each pattern of stalls.

    All patterns run in one simulation, one after the other, with a reset between them: a component
    that keeps state in a memory over a reset needs one call per pattern. The stream contract is
    checked on all outputs, and each output must stay silent for ``idle_cycles`` after its last
    payload.

    Parameters
    ----------
    component : Component
        The unit under test, not elaborated yet.
    inputs, expected : mapping of str to sequence
        Payloads of each input stream, and those that each output stream must deliver.
    engine : str
        ``pysim`` or ``cxxrtl``.
    stalls : sequence of (float, float)
        Pairs of valid and ready probability.
    setup : callable, optional
        Called with the engine before each pattern, to poke inputs or load memories.
    """
    shapes = {name: payload_shape(port_of(component, name)) for name in expected}
    wanted = {
        name: [pack(shapes[name], payload) for payload in payloads]
        for name, payloads in expected.items()
    }
    counts = {name: len(rows) for name, rows in wanted.items()}
    with make_engine(component, engine) as sim:
        for number, pattern in enumerate(stalls):
            if number:
                sim.reset()
            if setup is not None:
                setup(sim)
            _start(sim, component, inputs, counts, pattern, seed + number)
            sim.run_until(timeout_cycles=timeout_cycles)
            for name, rows in wanted.items():
                _compare(name, shapes[name], sim.take(name, counts[name]), rows, pattern)
            _check_silence(sim, counts, idle_cycles, pattern)


def _compare(
    name: str, shape: Any, got: list[int], wanted: list[int], pattern: tuple[float, float]
) -> None:
    for index, (left, right) in enumerate(zip(got, wanted, strict=True)):
        assert left == right, (
            f"Transfer {index} of stream '{name}' with stalls {pattern} is "
            f"{unpack(shape, left)}, not {unpack(shape, right)}"
        )


def _check_silence(
    sim: Engine, counts: Mapping[str, int], idle_cycles: int, pattern: tuple[float, float]
) -> None:
    for _ in range(idle_cycles):
        sim.run(1)
        for name in counts:
            assert not sim.peek(f"{name}.valid"), (
                f"Stream '{name}' with stalls {pattern} offers more than {counts[name]} transfers"
            )


@dataclass(frozen=True)
class Timing:
    """Timing of a unit without stalls, in cycles.

    ``latency`` is from the transfer of the last input that the first output needs to the transfer
    of that output; ``interval`` is from one group of inputs to the next, in the steady state.
    """

    latency: int
    interval: float


def measure_latency_and_interval(
    component: Any,
    inputs: Mapping[str, Sequence[Any]],
    output: str,
    count: int,
    *,
    groups: int = 1,
    engine: str = "pysim",
    setup: Callable[[Engine], None] | None = None,
    timeout_cycles: int = 100_000,
) -> Timing:
    """Measure a component without stalls, to compare with its stated ``latency`` and ``interval``.

    ``inputs`` hold ``groups`` equal groups of payloads (for instance vectors or matrix rows), for
    which ``output`` delivers ``count`` transfers in all. The latency is that of the first group:
    from its last input transfer to its first output transfer. The interval is the mean distance
    between the first output transfers of successive groups, without the first group where there
    are at least three, because a pipeline accepts the first ones faster.
    """
    assert count % groups == 0, "Each group must deliver the same number of transfers"
    with make_engine(component, engine) as sim:
        if setup is not None:
            setup(sim)
        _start(sim, component, inputs, {output: count}, (1.0, 1.0), 0)
        sim.run_until([output], timeout_cycles=timeout_cycles)
        last = 0
        for name, payloads in inputs.items():
            cycles = sim.transfer_cycles(name)
            last = max(last, cycles[len(payloads) // groups - 1])
        starts = sim.transfer_cycles(output)[:: count // groups]
        skip = 1 if groups > 2 else 0
        steady = starts[skip:]
        interval = (steady[-1] - steady[0]) / (len(steady) - 1) if len(steady) > 1 else 0.0
        return Timing(starts[0] - last, interval)
