"""The engine that runs a design in Amaranth's simulator."""

from contextlib import ExitStack
from typing import Any

from amaranth.hdl import Value
from amaranth.sim.pysim import PySimEngine

from mxhw.cosim._design import Design
from mxhw.cosim._random import Stalls
from mxhw.cosim._types import Handle, Role, Stop
from mxhw.cosim.engine import Engine
from mxhw.errors import UserError

__all__ = ["PysimEngine"]

_PERIOD_FS = 1_000_000_000


class _Stream:
    """The driver's state of one stream; ``driver.cc`` has the same fields."""

    def __init__(self, handle: Handle, state: int, check: bool) -> None:
        port = handle.port
        self.role = handle.role
        self.number = handle.number
        self.payload = port.payload
        self.mask = (1 << port.width) - 1
        self.valid = port.valid
        self.ready = port.ready
        self.check = check and handle.role != Role.INPUT
        self.stalls = Stalls(state)
        self.rows: list[int] = []
        self.cycles: list[int] = []
        self.target = 0
        self.done = 0
        self.offering = False
        self.driven = 0
        self.held: int | None = None

    @property
    def satisfied(self) -> bool:
        return self.done >= (len(self.rows) if self.role == Role.INPUT else self.target)


class PysimEngine(Engine):
    """Runs the design in Amaranth's simulator: no build step, thousands of cycles per second.

    The clock is stepped here and not by a testbench, because a call must be able to run the clock
    and return. That uses the simulator's engine object, which Amaranth keeps private.
    """

    def __init__(self, design: Design) -> None:
        self._sim: Any = PySimEngine(design.prepared)
        self._lanes: list[_Stream] = []
        self._vcd: tuple[str, int, int] | None = None
        self._vcd_stack = ExitStack()
        self._failure = ""
        self._sim.step_design()
        super().__init__(design)

    def _add_stream(self, handle: Handle, state: int, check: bool) -> None:
        self._lanes.append(_Stream(handle, state, check))

    def _put(self, handle: Handle, payloads: list[int], limit: int, state: int | None) -> None:
        lane = self._lanes[handle.number]
        lane.rows.extend(payloads)
        self._set_stalls(lane, limit, state)

    def _collect(self, handle: Handle, count: int, limit: int, state: int | None) -> None:
        lane = self._lanes[handle.number]
        lane.target += count
        self._set_stalls(lane, limit, state)

    @staticmethod
    def _set_stalls(lane: _Stream, limit: int, state: int | None) -> None:
        lane.stalls.threshold = limit
        if state is not None:
            lane.stalls.state = state

    def _count(self, handle: Handle) -> int:
        return self._lanes[handle.number].done

    def _fetch(self, handle: Handle, start: int, count: int) -> list[int]:
        return self._lanes[handle.number].rows[start : start + count]

    def _fetch_cycles(self, handle: Handle) -> list[int]:
        return list(self._lanes[handle.number].cycles)

    def _message(self) -> str:
        return self._failure

    def _run(self, cycles: int, waits: list[Handle]) -> tuple[Stop, int]:
        lanes = [self._lanes[handle.number] for handle in waits]
        for _ in range(cycles):
            if lanes and all(lane.satisfied for lane in lanes):
                return Stop.DONE, 0
            try:
                stop, number = self._cycle()
            except AssertionError as error:
                self._failure = str(error)
                return Stop.ASSERTION, 0
            if stop != Stop.DONE:
                return stop, number
        done = all(lane.satisfied for lane in lanes)
        return Stop.DONE if done else Stop.LIMIT, 0

    def _cycle(self) -> tuple[Stop, int]:
        self._open_waveform()
        for lane in self._lanes:
            self._drive(lane)
        self._sim.step_design()
        for lane in self._lanes:
            stop = self._sample(lane)
            if stop != Stop.DONE:
                return stop, lane.number
        self._edge()
        return Stop.DONE, 0

    def _drive(self, lane: _Stream) -> None:
        if lane.role == Role.INPUT:
            if not lane.offering and lane.done < len(lane.rows):
                lane.offering = lane.valid is None or lane.stalls.draw()
                if lane.offering:
                    self._sim.set_value(lane.payload.as_unsigned(), lane.rows[lane.done])
            self._drive_bit(lane, lane.valid, lane.offering)
        elif lane.role == Role.OUTPUT:
            ready = lane.done < lane.target and (lane.ready is None or lane.stalls.draw())
            self._drive_bit(lane, lane.ready, ready)

    def _drive_bit(self, lane: _Stream, signal: Value | None, value: bool) -> None:
        if signal is not None and lane.driven != value:
            lane.driven = int(value)
            self._sim.set_value(signal, lane.driven)

    def _sample(self, lane: _Stream) -> Stop:
        if lane.role == Role.INPUT:
            if lane.offering and self._bit(lane.ready):
                lane.offering = False
                lane.done += 1
                lane.cycles.append(self.cycles)
            return Stop.DONE
        if not self._bit(lane.valid):
            return Stop.DONE if lane.held is None else Stop.VALID_DROPPED
        payload = self._sim.get_value(lane.payload) & lane.mask
        if lane.held is not None and lane.held != payload:
            return Stop.PAYLOAD_CHANGED
        if self._bit(lane.ready):
            lane.held = None
            lane.rows.append(payload)
            lane.done += 1
            lane.cycles.append(self.cycles)
        elif lane.check and lane.valid is not None:
            lane.held = payload
        return Stop.DONE

    def _bit(self, signal: Value | None) -> bool:
        return signal is None or self._sim.get_value(signal) != 0

    def _edge(self) -> None:
        clk = self.design.clk
        timeline = self._sim.state.timeline
        for value in (1, 0):
            # The engine's own clock advances only for the waveform's time stamps.
            timeline.now += _PERIOD_FS // 2
            if clk is not None:
                self._sim.set_value(clk, value)
            self._sim.step_design()
        self.cycles += 1
        if self._vcd is not None and self.cycles >= self._vcd[2]:
            self._close_waveform()

    def _reset(self) -> None:
        self._open_waveform()
        for lane in self._lanes:
            lane.offering = False
            lane.held = None
            if lane.role == Role.INPUT:
                del lane.rows[lane.done :]
                self._drive_bit(lane, lane.valid, False)
            elif lane.role == Role.OUTPUT:
                lane.target = lane.done
                self._drive_bit(lane, lane.ready, False)
        rst = self.design.rst
        if rst is not None:
            self._sim.set_value(rst, 1)
        self._sim.step_design()
        self._edge()
        if rst is not None:
            self._sim.set_value(rst, 0)
            self._sim.step_design()

    def _peek(self, name: str) -> int:
        signal = self.design.find_signal(name)
        return self._sim.get_value(signal) & ((1 << len(signal)) - 1)

    def _poke(self, name: str, value: int) -> None:
        self._sim.set_value(self.design.ports[name][0].as_unsigned(), value)
        self._sim.step_design()

    def _memory_load(self, name: str, offset: int, rows: list[int]) -> None:
        memory = self.design.find_memory(name)._data
        for index, row in enumerate(rows, offset):
            self._sim.set_value(Value.cast(memory[index]).as_unsigned(), row)
        self._sim.step_design()

    def _memory_read(self, name: str, offset: int, count: int) -> list[int]:
        memory = self.design.find_memory(name)._data
        values = [Value.cast(memory[index]) for index in range(offset, offset + count)]
        return [self._sim.get_value(value) & ((1 << len(value)) - 1) for value in values]

    def _waveform(self, path: str, begin: int, end: int) -> None:
        if self._vcd is not None:
            raise UserError("A waveform window is open already")
        self._vcd = (path, begin, end)

    def _open_waveform(self) -> None:
        if self._vcd is not None and self._vcd[1] == self.cycles:
            self._vcd_stack.enter_context(
                self._sim.write_vcd(
                    vcd_file=self._vcd[0], gtkw_file=None, traces=(), fs_per_delta=0
                )
            )

    def _close_waveform(self) -> None:
        self._vcd_stack.close()
        self._vcd = None

    def close(self) -> None:
        """Complete the waveform file."""
        self._close_waveform()
