"""A serial port whose other end is a simulated design.

The port is a pseudo-terminal, which any program opens like a serial port's device. A platform that
has none gets a connection of the loopback interface, which pyserial opens by its URL. What arrives
at the port is queued on the design's stream of bytes, the clock runs, and what the design sends
goes back. Bytes come and go as fast as the streams take them: the line itself takes no time.
"""

import contextlib
import os
import select
import socket
import threading
from types import TracebackType
from typing import Any, Protocol, Self

from mxhw.cosim.engine import Engine

__all__ = ["SimulatedSerialPort"]

_SLICE_CYCLES = 100
_POLL_SECONDS = 0.1
_CHUNK_BYTES = 4096


class _Line(Protocol):
    """The simulation's end of a port."""

    url: str

    def receive(self, wait_s: float) -> bytes | None:
        """Bytes that came, none after ``wait_s`` seconds without any, or None if closed."""
        ...

    def send(self, data: bytes) -> None:
        """Send bytes; those that nobody takes are lost, as on a line."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


class _PseudoTerminal:
    def __init__(self) -> None:
        import tty

        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.url = os.ttyname(self._slave)

    def receive(self, wait_s: float) -> bytes | None:
        # This object keeps the other end open, so the terminal outlives the programs that use it.
        if not select.select([self._master], [], [], wait_s)[0]:
            return b""
        try:
            return os.read(self._master, _CHUNK_BYTES)
        except OSError:
            return None

    def send(self, data: bytes) -> None:
        while data:
            _, ready, _ = select.select([], [self._master], [], _POLL_SECONDS)
            if not ready:
                return
            try:
                data = data[os.write(self._master, data) :]
            except OSError:
                return

    def close(self) -> None:
        os.close(self._slave)
        os.close(self._master)


class _Loopback:
    def __init__(self) -> None:
        self._server: socket.socket | None = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._peer: socket.socket | None = None
        host, port = self._server.getsockname()
        self.url = f"socket://{host}:{port}"

    def receive(self, wait_s: float) -> bytes | None:
        if self._peer is None:
            if self._server is None:
                return None
            if not select.select([self._server], [], [], wait_s)[0]:
                return b""
            self._peer, _ = self._server.accept()
            self._peer.settimeout(_POLL_SECONDS)
            # One client only: nobody else can come in later.
            self._server.close()
            self._server = None
        if not select.select([self._peer], [], [], wait_s)[0]:
            return b""
        try:
            return self._peer.recv(_CHUNK_BYTES) or None
        except OSError:
            return None

    def send(self, data: bytes) -> None:
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.sendall(data)

    def close(self) -> None:
        for end in (self._server, self._peer):
            if end is not None:
                end.close()


class SimulatedSerialPort:
    """A serial port with a simulated design behind it; use it as a context manager.

    The simulation runs in a thread of its own, and only while there is something to do: from each
    byte that arrives until the design has been idle for ``quiet_cycles``.

    Parameters
    ----------
    engine : :class:`mxhw.cosim.engine.Engine`
        Simulation of a design with the streams ``i_byte`` and ``o_byte`` and the output ``busy``,
        such as :class:`~mxhw.boards.wrapper.HostedDecoder`. Nobody else may use it meanwhile.
    quiet_cycles : int
        Clock cycles in which an idle design may still answer: a little more than the silence that
        ends an incomplete frame.
    pseudo_terminal : bool, optional
        Whether the port is a pseudo-terminal, by default where the platform has them.

    Attributes
    ----------
    url : str
        What :func:`mxhw.sw.host.client.open_serial` opens: a device or an URL.
    failure : BaseException or None
        Why the simulation ended, if it did; the line is then closed.
    """

    def __init__(
        self, engine: Engine, *, quiet_cycles: int, pseudo_terminal: bool | None = None
    ) -> None:
        if quiet_cycles < 1:
            raise ValueError(f"Quiet time must be a positive number of cycles, not {quiet_cycles}")
        if pseudo_terminal is None:
            pseudo_terminal = hasattr(os, "openpty")
        self._engine = engine
        self._quiet_cycles = quiet_cycles
        self._line: _Line = _PseudoTerminal() if pseudo_terminal else _Loopback()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="simulation", daemon=True)
        self.url = self._line.url
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._engine.collect("o_byte", 1 << 40)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            self.failure = error
        finally:
            self._line.close()

    def _loop(self) -> None:
        engine: Any = self._engine
        left = 0
        while not self._ended.is_set():
            data = self._line.receive(0.0 if left else _POLL_SECONDS)
            if data is None:
                return
            if data:
                engine.put("i_byte", list(data))
                left = self._quiet_cycles
            if not left:
                continue
            engine.run(_SLICE_CYCLES)
            answer = bytes(engine.take("o_byte"))
            if answer:
                self._line.send(answer)
            if answer or engine.peek("busy"):
                left = self._quiet_cycles
            else:
                left = max(0, left - _SLICE_CYCLES)
