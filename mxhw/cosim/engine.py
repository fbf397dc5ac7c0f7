"""One interface for the two simulation engines.

:func:`make_engine` elaborates a component and returns an :class:`Engine`: :mod:`mxhw.cosim.pysim`
runs it in Amaranth's simulator (no build step, slow), :mod:`mxhw.cosim.cxxrtl` in native code
(seconds to build, hundreds of times faster), which can also be made of the exported Verilog. For
the same calls all give the same transfers in the same cycles.

A cycle is: the engine drives ``valid`` and ``payload`` of the input streams and ``ready`` of the
output streams; the design settles; contracts are checked and transfers recorded; the clock rises.

* An input stream that is idle and has payloads queued begins to offer the next one with
  probability ``valid_probability`` in each cycle, and then holds it until it is accepted.
* An output stream that still has transfers to collect is ready with probability
  ``ready_probability`` in each cycle; otherwise it is not ready.
* Where a signature promises ``always_valid`` or ``always_ready``, there are no stalls: such an
  input repeats its last payload (at first 0) once its queue is empty, and such an output records
  each transfer whether or not it was asked for.

The draws come from SplitMix64 (:mod:`mxhw.cosim._random`), one generator per stream, seeded by
``seed`` and the number of the stream in the component's signature.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from amaranth.hdl import Value

from mxhw.cosim._design import Design, StreamPort, normalize
from mxhw.cosim._random import initial_state, threshold
from mxhw.cosim._types import Handle, Role, SimulationTimeout, Stop, StreamContractError, check_rows
from mxhw.errors import UserError

__all__ = ["Engine", "SimulationTimeout", "StreamContractError", "make_engine"]


class Engine(ABC):
    """A running simulation of one component; use it as a context manager.

    Stream names are those of the ports, dotted where they are nested: ``i``, ``o.0``, ``bus.data``.
    Names of internal streams, signals and memories begin with the names of the submodules.
    Payloads are unsigned integers holding the bits of the payload.

    Attributes
    ----------
    design : :class:`mxhw.cosim._design.Design`
        The elaborated component and its names.
    cycles : int
        Clock cycles simulated so far.
    """

    def __init__(self, design: Design) -> None:
        self.design = design
        self.cycles = 0
        self._streams: dict[str, Handle] = {}
        self._poke_reserved: set[str] = set()
        for name, port in design.streams.items():
            self._attach(name, port, Role.INPUT if port.is_input else Role.OUTPUT)
            roles = ("payload", "valid") if port.is_input else ("ready",)
            self._poke_reserved.update(f"{name}.{role}" for role in roles)

    # What an engine provides.

    @abstractmethod
    def _add_stream(self, handle: Handle, state: int, check: bool) -> None: ...

    @abstractmethod
    def _put(self, handle: Handle, payloads: list[int], limit: int, state: int | None) -> None: ...

    @abstractmethod
    def _collect(self, handle: Handle, count: int, limit: int, state: int | None) -> None: ...

    @abstractmethod
    def _run(self, cycles: int, waits: list[Handle]) -> tuple[Stop, int]:
        """Run until the waits are met or ``cycles`` are over: the reason and a stream number."""

    @abstractmethod
    def _count(self, handle: Handle) -> int:
        """Return how many transfers the stream has done."""

    @abstractmethod
    def _fetch(self, handle: Handle, start: int, count: int) -> list[int]: ...

    @abstractmethod
    def _fetch_cycles(self, handle: Handle) -> list[int]: ...

    @abstractmethod
    def _reset(self) -> None: ...

    @abstractmethod
    def _peek(self, name: str) -> int: ...

    @abstractmethod
    def _poke(self, name: str, value: int) -> None: ...

    @abstractmethod
    def _memory_load(self, name: str, offset: int, rows: list[int]) -> None: ...

    @abstractmethod
    def _memory_read(self, name: str, offset: int, count: int) -> list[int]: ...

    @abstractmethod
    def _waveform(self, path: str, begin: int, end: int) -> None: ...

    @abstractmethod
    def _message(self) -> str:
        """Return the message of the assertion that failed."""

    @abstractmethod
    def close(self) -> None:
        """Release the simulation and complete its waveform file."""

    # What a user calls.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def put(
        self,
        name: str,
        payloads: Iterable[int],
        *,
        valid_probability: float = 1.0,
        seed: int | None = None,
    ) -> None:
        """Queue payloads on an input stream, without running the clock.

        Parameters
        ----------
        name : str
            Name of the input stream.
        payloads : iterable of int
            Payloads, as unsigned integers holding their bits; they follow those queued before.
        valid_probability : float
            Probability that an idle stream begins to offer its next payload in a cycle.
        seed : int, optional
            Seed of the stalls; without it the generator of the stream goes on (from seed 0).

        Raises
        ------
        UserError
            If there is no such input stream, or a payload or the probability is out of range.
        """
        handle = self._handle(name, Role.INPUT)
        rows = check_rows(payloads, handle.port.width, f"Payload {{}} of stream '{name}'")
        stalls = self._stalls(handle, "valid_probability", valid_probability, seed)
        handle.requested += len(rows)
        self._put(handle, rows, *stalls)

    def collect(
        self,
        name: str,
        count: int,
        *,
        ready_probability: float = 1.0,
        seed: int | None = None,
    ) -> None:
        """Ask for ``count`` further transfers of an output stream, without running the clock.

        Parameters
        ----------
        name : str
            Name of the output stream.
        count : int
            Number of transfers; the stream is not ready before they are asked for.
        ready_probability : float
            Probability that the stream is ready in a cycle.
        seed : int, optional
            Seed of the stalls; without it the generator of the stream goes on (from seed 0).

        Raises
        ------
        UserError
            If there is no such output stream, or the count or the probability is out of range.
        """
        handle = self._handle(name, Role.OUTPUT)
        if count < 0:
            raise UserError(f"Count must be a non-negative integer, not {count}")
        stalls = self._stalls(handle, "ready_probability", ready_probability, seed)
        handle.requested += count
        self._collect(handle, count, *stalls)

    def run(self, cycles: int) -> None:
        """Run the clock for exactly ``cycles`` cycles.

        Raises
        ------
        StreamContractError
            If an output stream or a checked probe breaks the stream contract.
        AssertionError
            If an ``Assert`` of the design fails.
        """
        self._checked_run(cycles, [])

    def run_until(
        self, names: Iterable[str] | None = None, *, timeout_cycles: int = 100_000
    ) -> None:
        """Run the clock until the named streams have done all that was asked of them.

        Parameters
        ----------
        names : iterable of str, optional
            Input streams whose queue must be accepted and output streams whose count must be
            reached; by default all streams of the design.
        timeout_cycles : int
            Number of cycles allowed.

        Raises
        ------
        SimulationTimeout
            If the cycles are over; names the streams waited for and their transfers.
        StreamContractError
            If an output stream or a checked probe breaks the stream contract.
        AssertionError
            If an ``Assert`` of the design fails.
        """
        if names is None:
            waits = [item for item in self._streams.values() if item.role != Role.PROBE]
        else:
            waits = [self._handle(name, Role.INPUT, Role.OUTPUT) for name in names]
        if self._checked_run(timeout_cycles, waits) == Stop.LIMIT:
            self._raise_timeout(waits, timeout_cycles)

    def get(
        self,
        name: str,
        count: int,
        *,
        ready_probability: float = 1.0,
        seed: int | None = None,
        timeout_cycles: int = 100_000,
    ) -> list[int]:
        """Collect ``count`` transfers of an output stream, running the clock until they are there.

        The parameters and exceptions are those of :meth:`collect` and :meth:`run_until`.

        Returns
        -------
        list of int
            Payloads, as unsigned integers holding their bits.
        """
        self.collect(name, count, ready_probability=ready_probability, seed=seed)
        self.run_until([name], timeout_cycles=timeout_cycles)
        return self.take(name, count)

    def take(self, name: str, count: int | None = None) -> list[int]:
        """Return the payloads of an output stream or probe that were not taken yet.

        Parameters
        ----------
        name : str
            Name of the output stream, or of an internal stream given to :meth:`probe`.
        count : int, optional
            Number of payloads; by default all that there are.
        """
        handle = self._handle(name, Role.OUTPUT, Role.PROBE)
        present = self._count(handle) - handle.taken
        if count is None:
            count = present
        if count > present:
            raise UserError(f"Stream '{name}' has {present} payloads to take, not {count}")
        rows = self._fetch(handle, handle.taken, count)
        handle.taken += count
        return rows

    def transfers(self, name: str) -> int:
        """Return the number of transfers that a stream or probe has done since its start."""
        return self._count(self._handle(name, *Role))

    def transfer_cycles(self, name: str) -> list[int]:
        """Return the cycle of each transfer that a stream or probe has done since its start."""
        return self._fetch_cycles(self._handle(name, *Role))

    def probe(self, name: str, *, check: bool = True) -> None:
        """Begin to record the transfers of an internal stream; :meth:`take` returns them.

        Streams named in ``probes`` of :func:`make_engine` are cheap to record. Others need, in the
        CXXRTL engine, a second evaluation of the design in each cycle.

        Parameters
        ----------
        name : str
            Names of the submodules and of the stream port, dotted: ``layer0.norm.o``.
        check : bool
            Check the stream contract on this stream too.

        Raises
        ------
        UserError
            If there is no such stream.
        """
        name = normalize(name)
        if name in self._streams:
            return
        port = self.design.find_stream(name)
        self._attach(name, port, Role.PROBE, check=check)

    def peek(self, name: str) -> int:
        """Return the present value of a port or an internal signal, as an unsigned integer.

        Raises
        ------
        UserError
            If there is no such signal.
        """
        return self._peek(normalize(name))

    def poke(self, name: str, value: int) -> None:
        """Set a top-level input that is no part of a stream; it keeps the value.

        Raises
        ------
        UserError
            If there is no such input, a stream drives it, or the value does not fit.
        """
        name = normalize(name)
        dotted = name.replace("__", ".")
        if dotted in self._poke_reserved:
            raise UserError(f"Signal '{name}' is driven by the engine: use put() or collect()")
        inputs = {
            port: signal
            for port, (signal, flow) in self.design.ports.items()
            if flow.value == "input" and signal is not self.design.clk
        }
        port = name.replace(".", "__")
        if port not in inputs:
            raise UserError(f"The design has no input '{name}' to poke")
        (raw,) = check_rows([value], len(inputs[port]), f"Value {{}} of input '{name}'")
        self._poke(port, raw)

    def reset(self) -> None:
        """Assert the synchronous reset for one cycle and forget what was queued and asked for.

        Memories keep their contents, as they do in hardware.
        """
        self._reset()
        for handle in self._streams.values():
            handle.requested = self._count(handle)

    def memory_load(self, name: str, offset: int, rows: Iterable[int]) -> None:
        """Write rows of a memory from row ``offset`` on.

        Raises
        ------
        UserError
            If there is no such memory, or a row or its number is out of range.
        """
        memory = self.design.find_memory(name)._data
        width = len(Value.cast(memory[0])) if memory.depth else 0
        raw = check_rows(rows, width, f"Row {{}} of memory '{name}'")
        self._check_span(name, memory.depth, offset, len(raw))
        self._memory_load(normalize(name), offset, raw)

    def memory_read(self, name: str, offset: int = 0, count: int | None = None) -> list[int]:
        """Return ``count`` rows of a memory from row ``offset`` on, by default all of them.

        Raises
        ------
        UserError
            If there is no such memory or row.
        """
        depth: int = self.design.find_memory(name)._data.depth
        rows = depth - offset if count is None else count
        self._check_span(name, depth, offset, rows)
        return self._memory_read(normalize(name), offset, rows)

    def waveform(self, path: str | PathLike[str], begin_cycle: int, end_cycle: int) -> None:
        """Write a VCD file of the cycles from ``begin_cycle`` up to but not with ``end_cycle``.

        The file is complete when ``end_cycle`` has been reached or the simulation is closed.

        Raises
        ------
        UserError
            If the window is empty or begins in the past.
        """
        if not self.cycles <= begin_cycle < end_cycle:
            raise UserError(
                f"A waveform window must not be empty and must not begin before cycle "
                f"{self.cycles}, not be [{begin_cycle}, {end_cycle})"
            )
        self._waveform(str(path), begin_cycle, end_cycle)

    # Shared parts.

    def _attach(self, name: str, port: StreamPort, role: Role, *, check: bool = True) -> None:
        handle = Handle(port, role, len(self._streams))
        self._add_stream(handle, initial_state(0, handle.number), check)
        self._streams[name] = handle

    def _handle(self, name: str, *roles: Role) -> Handle:
        handle = self._streams.get(normalize(name))
        if handle is None or handle.role not in roles:
            known = [f"'{key}'" for key, item in self._streams.items() if item.role in roles]
            kinds = " or ".join(role.name.lower() for role in roles)
            raise UserError(
                f"The simulation has no {kinds} stream '{name}', only {', '.join(known) or 'none'}"
            )
        return handle

    def _stalls(
        self, handle: Handle, what: str, probability: float, seed: int | None
    ) -> tuple[int, int | None]:
        if not 0.0 < probability <= 1.0:
            raise UserError(f"Parameter '{what}' must be in (0, 1], not {probability}")
        state = None if seed is None else initial_state(seed, handle.number)
        return threshold(probability), state

    def _check_span(self, name: str, depth: int, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or offset + count > depth:
            raise UserError(
                f"Rows [{offset}, {offset + count}) are outside memory '{name}' of {depth} rows"
            )

    def _checked_run(self, cycles: int, waits: list[Handle]) -> Stop:
        if cycles < 0:
            raise UserError(f"Number of cycles must be a non-negative integer, not {cycles}")
        stop, number = self._run(cycles, waits)
        if stop == Stop.ASSERTION:
            raise AssertionError(f"{self._message()} (in cycle {self.cycles})")
        if stop in (Stop.VALID_DROPPED, Stop.PAYLOAD_CHANGED):
            name = next(key for key, item in self._streams.items() if item.number == number)
            broken = "dropped 'valid'" if stop == Stop.VALID_DROPPED else "changed its payload"
            raise StreamContractError(
                f"Stream '{name}' {broken} before its transfer, in cycle {self.cycles}"
            )
        return stop

    def _raise_timeout(self, waits: Sequence[Handle], timeout_cycles: int) -> None:
        def describe(handles: Iterable[Handle]) -> str:
            return ", ".join(
                f"{item.role.name.lower()} '{item.port.name}' "
                f"({self._count(item)} of {item.requested} transfers)"
                for item in handles
            )

        late = [item for item in waits if self._count(item) < item.requested]
        message = (
            f"Timeout after {timeout_cycles} cycles, in cycle {self.cycles}: waiting for "
            f"{describe(late)}"
        )
        others = [item for item in self._streams.values() if item.requested and item not in late]
        if others:
            message += f"; other streams: {describe(others)}"
        raise SimulationTimeout(message)


def make_engine(
    component: Any,
    engine: str = "cxxrtl",
    *,
    probes: Iterable[str] = (),
    build_dir: str | PathLike[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
    inner_signals: bool = True,
    prebuilt: Callable[[], Path | None] | None = None,
) -> Engine:
    """Elaborate ``component`` and start a simulation of it.

    Parameters
    ----------
    component : :class:`amaranth.lib.wiring.Component`
        The component; it may use one clock domain, ``sync``.
    engine : str
        ``cxxrtl`` (native code), ``pysim`` (Amaranth's simulator) or ``verilog`` (native code, made
        of the design's exported Verilog: only its ports have names).
    probes : iterable of str
        Internal streams that :meth:`Engine.probe` will record: naming them here makes them cheap.
    build_dir : path, optional
        Folder for the built simulators; by default a private cache folder of the user.
    on_progress : callable, optional
        Called with a line of text before each slow step.
    inner_signals : bool
        Whether inner signals can be peeked, probed without being named in ``probes``, and seen in
        a waveform. Without them the native code of a large design is built in less than half the
        time.
    prebuilt : callable, optional
        Returns the path of a simulator in native code that was built for this design and these
        probes, or None; asked when the design is elaborated.

    Raises
    ------
    UserError
        If the engine is unknown, or the component has a clock domain other than ``sync``.
    ToolError
        If the ``cxxrtl`` engine finds no C++ compiler.
    """
    if engine == "pysim":
        from mxhw.cosim.pysim import PysimEngine

        return PysimEngine(Design(component, probes))
    if engine in ("cxxrtl", "verilog"):
        from mxhw.cosim.cxxrtl import CxxrtlEngine

        return CxxrtlEngine(
            Design(component, probes),
            build_dir=build_dir,
            on_progress=on_progress,
            inner_signals=inner_signals,
            prebuilt=prebuilt,
            through_verilog=engine == "verilog",
        )
    raise UserError(f"Engine must be 'cxxrtl', 'pysim' or 'verilog', not {engine!r}")
