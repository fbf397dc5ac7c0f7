"""The engine that runs a design in native code, translated by Yosys (CXXRTL)."""

import ctypes
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from amaranth.back import rtlil, verilog  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import Shape, Signal

from mxhw.cosim._build import build_library
from mxhw.cosim._design import Design, StreamPort
from mxhw.cosim._types import Handle, Role, Stop
from mxhw.cosim.engine import Engine
from mxhw.elaboration import fast_elaboration
from mxhw.errors import UserError

__all__ = ["CxxrtlEngine", "emit_rtlil", "emit_verilog"]

#: Cycles run without a return to Python, which can only then notice an interrupt of the user.
_CHUNK_CYCLES = 200_000

_SIGNATURES = {
    "create": ("p", ""),
    "destroy": ("", "p"),
    "add_stream": ("", "pisssQi"),
    "put": ("", "pIsN"),
    "collect": ("", "pIN"),
    "stalls": ("", "pIQp"),
    "run": ("i", "pQpN"),
    "reset": ("", "p"),
    "cycles": ("Q", "p"),
    "stopped_by": ("i", "p"),
    "message": ("s", "p"),
    "count": ("Q", "pI"),
    "fetch": ("", "pINNp"),
    "fetch_cycles": ("", "pIp"),
    "size": ("N", "ps"),
    "peek": ("", "psp"),
    "poke": ("", "pss"),
    "memory_write": ("", "psNNs"),
    "memory_read": ("", "psNNp"),
    "waveform": ("i", "psQQ"),
}
_TYPES = {
    "p": ctypes.c_void_p,
    "s": ctypes.c_char_p,
    "i": ctypes.c_int,
    "I": ctypes.c_uint32,
    "Q": ctypes.c_uint64,
    "N": ctypes.c_size_t,
    "": None,
}


def emit_rtlil(design: Design) -> str:
    """Return the design as RTLIL without the contents of its memories.

    The contents are loaded when the simulation starts. Emitted, they would take most of the time of
    the translation, and each change of a weight would need another build.
    """
    contents = {name: memory._data._init for name, memory in design.memories.items()}
    rows = {name: init._raw for name, init in contents.items()}
    try:
        for init in contents.values():
            init._raw = []
        with fast_elaboration():
            text, _names = rtlil.convert_fragment(design.prepared, emit_src=False)
    finally:
        for name, init in contents.items():
            init._raw = rows[name]
    return re.sub(r"\n  cell \$meminit_v2 .*?\n  end\n", "\n", text, flags=re.DOTALL)


def emit_verilog(design: Design) -> str:
    """Return the design as the Verilog that Amaranth exports, contents of memories included."""
    with fast_elaboration():
        text, _names = verilog.convert_fragment(design.prepared, emit_src=False)
    return text


def _pack(rows: list[int], width: int) -> bytes:
    size = (width + 31) // 32 * 4
    return b"".join([row.to_bytes(size, "little") for row in rows])


def _unpack(raw: bytes, width: int) -> list[int]:
    size = (width + 31) // 32 * 4
    if size == 0:
        return []
    return [int.from_bytes(raw[at : at + size], "little") for at in range(0, len(raw), size)]


class CxxrtlEngine(Engine):
    """Runs the design in native code: seconds to build once, then a million cycles per second.

    Parameters
    ----------
    design : Design
        The elaborated component.
    build_dir : path, optional
        Folder for the built simulator; by default a private cache folder of the user.
    on_progress : callable, optional
        Called with a line of text before each slow step.
    inner_signals : bool
        Keep inner signals reachable by name.
    prebuilt : callable, optional
        Returns the design's simulator, or None if it is still to be built.
    through_verilog : bool
        Translate the exported Verilog instead of the design's own RTLIL. Inner signals and memories
        then have no names that the engine knows.

    Raises
    ------
    ToolError
        If there is no C++ compiler or no Yosys.
    BuildError
        If Yosys or the compiler fails.
    """

    def __init__(
        self,
        design: Design,
        *,
        build_dir: str | PathLike[str] | None = None,
        on_progress: Callable[[str], None] | None = None,
        inner_signals: bool = True,
        prebuilt: Callable[[], Path | None] | None = None,
        through_verilog: bool = False,
    ) -> None:
        self.design = design
        self._native = None
        library = prebuilt() if prebuilt is not None else None
        if library is None:
            progress = on_progress or (lambda text: None)
            progress(f"Converting the design to {'Verilog' if through_verilog else 'RTLIL'}")
            library = build_library(
                (emit_verilog if through_verilog else emit_rtlil)(design),
                build_dir,
                progress,
                inner_signals=inner_signals and not through_verilog,
                verilog=through_verilog,
            )
        self._library = _load(library)
        self._native = self._library.mxhw_create()
        # Verilog brings the contents of its memories.
        memories = {} if through_verilog else design.memories
        for name, memory in memories.items():
            raw = memory._data._init._raw
            width = Shape.cast(memory._data.shape).width
            mask = (1 << width) - 1
            if width and any(raw):
                self._memory_load(name, 0, [row & mask for row in raw])
        super().__init__(design)

    def _object(self, path: tuple[str, ...]) -> bytes:
        return " ".join(path).encode()

    def _value_names(self, handle: Handle) -> list[bytes | None]:
        port: StreamPort = handle.port
        names: list[bytes | None] = []
        for role in ("payload", "valid", "ready"):
            if getattr(port, role) is None:
                names.append(None)
            elif handle.role == Role.PROBE and port.name in self.design.probes:
                index = self.design.probes[port.name][0]
                names.append(f"mxhw_probe_{index}__{role}".encode())
            else:
                names.append(self._signal_name(getattr(port, role), f"{port.name}.{role}"))
        return names

    def _signal_name(self, signal: Signal, name: str) -> bytes:
        encoded = self._object(self.design.path_of_signal(signal, name))
        if len(signal) and not self._library.mxhw_size(self._native, encoded):
            raise UserError(f"Signal '{name}' is no part of the native simulation")
        return encoded

    def _add_stream(self, handle: Handle, state: int, check: bool) -> None:
        names = self._value_names(handle)
        self._library.mxhw_add_stream(self._native, handle.role, *names, state, check)

    def _put(self, handle: Handle, payloads: list[int], limit: int, state: int | None) -> None:
        raw = _pack(payloads, handle.port.width)
        self._library.mxhw_put(self._native, handle.number, raw, len(payloads))
        self._set_stalls(handle, limit, state)

    def _collect(self, handle: Handle, count: int, limit: int, state: int | None) -> None:
        self._library.mxhw_collect(self._native, handle.number, count)
        self._set_stalls(handle, limit, state)

    def _set_stalls(self, handle: Handle, limit: int, state: int | None) -> None:
        pointer = None if state is None else ctypes.byref(ctypes.c_uint64(state))
        self._library.mxhw_stalls(self._native, handle.number, limit, pointer)

    def _run(self, cycles: int, waits: list[Handle]) -> tuple[Stop, int]:
        numbers = (ctypes.c_uint32 * len(waits))(*(handle.number for handle in waits))
        while True:
            chunk = min(cycles, _CHUNK_CYCLES)
            stop = Stop(self._library.mxhw_run(self._native, chunk, numbers, len(waits)))
            cycles -= chunk
            self.cycles = self._library.mxhw_cycles(self._native)
            # Without waits, a chunk that is over counts as done.
            if stop > Stop.LIMIT or cycles == 0 or (stop == Stop.DONE and waits):
                return stop, self._library.mxhw_stopped_by(self._native)

    def _count(self, handle: Handle) -> int:
        return self._library.mxhw_count(self._native, handle.number)

    def _fetch(self, handle: Handle, start: int, count: int) -> list[int]:
        width = handle.port.width
        if width == 0:
            return [0] * count
        out = ctypes.create_string_buffer((width + 31) // 32 * 4 * count)
        self._library.mxhw_fetch(self._native, handle.number, start, count, out)
        return _unpack(out.raw, width)

    def _fetch_cycles(self, handle: Handle) -> list[int]:
        out = (ctypes.c_uint64 * self._count(handle))()
        self._library.mxhw_fetch_cycles(self._native, handle.number, out)
        return list(out)

    def _message(self) -> str:
        return self._library.mxhw_message(self._native).decode(errors="replace")

    def _reset(self) -> None:
        self._library.mxhw_reset(self._native)
        self.cycles = self._library.mxhw_cycles(self._native)

    def _peek(self, name: str) -> int:
        signal = self.design.find_signal(name)
        if len(signal) == 0:
            return 0
        encoded = self._signal_name(signal, name)
        out = ctypes.create_string_buffer((len(signal) + 31) // 32 * 4)
        self._library.mxhw_peek(self._native, encoded, out)
        return int.from_bytes(out.raw, "little")

    def _poke(self, name: str, value: int) -> None:
        width = len(self.design.ports[name][0])
        if width:
            self._library.mxhw_poke(self._native, name.encode(), _pack([value], width))

    def _memory_load(self, name: str, offset: int, rows: list[int]) -> None:
        encoded, width = self._memory(name)
        if encoded is not None:
            raw = _pack(rows, width)
            self._library.mxhw_memory_write(self._native, encoded, offset, len(rows), raw)

    def _memory_read(self, name: str, offset: int, count: int) -> list[int]:
        encoded, width = self._memory(name)
        if encoded is None:
            return [0] * count
        out = ctypes.create_string_buffer((width + 31) // 32 * 4 * count)
        self._library.mxhw_memory_read(self._native, encoded, offset, count, out)
        return _unpack(out.raw, width)

    def _memory(self, name: str) -> tuple[bytes | None, int]:
        encoded = self._object(self.design.path(name))
        width = Shape.cast(self.design.find_memory(name)._data.shape).width
        # Yosys drops a memory without rows, bits or ports.
        return (encoded if self._library.mxhw_size(self._native, encoded) else None), width

    def _waveform(self, path: str, begin: int, end: int) -> None:
        if not self._library.mxhw_waveform(self._native, path.encode(), begin, end):
            raise UserError(f"Waveform file '{path}' cannot be written")

    def close(self) -> None:
        """Release the simulation and complete its waveform file."""
        if self._native is not None:
            self._library.mxhw_destroy(self._native)
            self._native = None


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"mxhw_{name}")
        function.restype = _TYPES[result]
        function.argtypes = [_TYPES[letter] for letter in arguments]
    return library
