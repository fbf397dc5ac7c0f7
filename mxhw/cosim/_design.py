"""Names in an elaborated design: its stream ports, inner signals and memories.

Both engines resolve names here, so that a name means the same in both.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import ClockDomain, Const, Fragment, Signal, Value, ValueCastable
from amaranth.hdl._ir import PortDirection
from amaranth.hdl._mem import MemoryInstance
from amaranth.lib import stream, wiring

from mxhw.elaboration import fast_elaboration
from mxhw.errors import UserError

__all__ = ["Design", "StreamPort", "normalize"]


@dataclass(frozen=True)
class StreamPort:
    """A stream of the design: its three values and who drives them.

    ``is_input`` is seen from the component that owns the port; ``valid`` or ``ready`` is None where
    the signature promises the constant 1.
    """

    name: str
    is_input: bool
    payload: Value
    valid: Signal | None
    ready: Signal | None

    @property
    def width(self) -> int:
        """Width of the payload in bits."""
        return len(self.payload)


def normalize(name: str) -> str:
    """Return ``name`` in dotted form: ``o[0].payload`` becomes ``o.0.payload``."""
    return re.sub(r"\[(\d+)\]", r".\1", name)


def _signal(value: Any) -> Signal | None:
    return None if isinstance(value, Const) else value


def _members(members: Any, owner: Any, prefix: tuple[str, ...]) -> Iterator[StreamPort]:
    for name, member in members.items():
        if not member.is_signature:
            continue
        # Amaranth has flipped this signature already where the member, or an interface around it,
        # is an input.
        signature = member.signature
        is_input = isinstance(signature, wiring.FlippedSignature)
        plain = signature.flip() if is_input else signature
        for path, port in _elements(getattr(owner, name), member.dimensions, (*prefix, name)):
            if isinstance(plain, stream.Signature):
                payload = Value.cast(port.payload)
                valid, ready = _signal(port.valid), _signal(port.ready)
                yield StreamPort(".".join(path), is_input, payload, valid, ready)
            else:
                yield from _members(signature.members, port, path)


def _elements(
    value: Any, dimensions: tuple[int, ...], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not dimensions:
        yield path, value
        return
    for index in range(dimensions[0]):
        yield from _elements(value[index], dimensions[1:], (*path, str(index)))


def stream_ports(component: Any) -> Iterator[StreamPort]:
    """Yield the stream ports of ``component``, arrays and nested interfaces included."""
    signature = getattr(component, "signature", None)
    if isinstance(signature, wiring.Signature):
        yield from _members(signature.members, component, ())


class Design:
    """A component elaborated once, with the names of what is inside it.

    Parameters
    ----------
    component : :class:`amaranth.lib.wiring.Component`
        The component to simulate. It is elaborated here and cannot be elaborated again.
    probes : iterable of str
        Internal streams that become top-level ports, so that no optimisation removes them.

    Raises
    ------
    UserError
        If the design needs a clock domain other than ``sync``.
    """

    def __init__(self, component: Any, probes: Iterable[str] = ()) -> None:
        self.component = component
        with fast_elaboration():
            self._elaborate(component, probes)

    def _elaborate(self, component: Any, probes: Iterable[str]) -> None:
        self.fragment = Fragment.get(component, None)
        domains = self.fragment._propagate_domains(ClockDomain)
        if extra := sorted(domain.name for domain in domains if domain.name != "sync"):
            names = ", ".join(f"'{name}'" for name in extra)
            raise UserError(f"Only clock domain 'sync' can be simulated, not {names}")
        self.clk = domains[0].clk if domains else None
        self.rst = domains[0].rst if domains else None
        self.streams = {port.name: port for port in stream_ports(component)}
        self.ports = dict(self._top_ports())
        self._prepare()
        self.probes: dict[str, tuple[int, StreamPort]] = {}
        for name in map(normalize, probes):
            if name not in self.streams and name not in self.probes:
                self.probes[name] = (len(self.probes), self.find_stream(name))
        for index, port in self.probes.values():
            for role in ("payload", "valid", "ready"):
                value = getattr(port, role)
                if value is not None:
                    self.ports[f"mxhw_probe_{index}__{role}"] = (value, PortDirection.Output)
        if self.probes:
            self._prepare()

    def _top_ports(self) -> Iterator[tuple[str, tuple[Signal, PortDirection]]]:
        for path, member, value in self.component.signature.flatten(self.component):
            cast = value.as_value() if isinstance(value, ValueCastable) else value
            if isinstance(cast, Signal):
                flow = PortDirection.Input if member.flow == wiring.In else PortDirection.Output
                yield "__".join(map(str, path)), (cast, flow)
        for signal in (self.clk, self.rst):
            if signal is not None:
                yield signal.name, (signal, PortDirection.Input)

    def _prepare(self) -> None:
        # The published type stubs do not know what Amaranth keeps private.
        self.prepared: Any = self.fragment.prepare(ports=self.ports, propagate_domains=False)
        self._fragments = {
            ".".join(info.name[1:]): fragment for fragment, info in self.prepared.fragments.items()
        }
        self._owners = {
            ".".join(self.prepared.fragments[fragment].name[1:]): owner
            for owner, fragment in self.prepared.elaboratables.items()
            if hasattr(owner, "signature")
        }
        self.memories: dict[str, Any] = {
            name: fragment
            for name, fragment in self._fragments.items()
            if isinstance(fragment, MemoryInstance)
        }

    def path(self, name: str) -> tuple[str, ...]:
        """Return the hierarchical path of the fragment with the dotted name ``name``."""
        return self.prepared.fragments[self._fragments[name]].name[1:]

    def _splits(self, name: str) -> Iterator[tuple[str, str]]:
        parts = name.split(".")
        for count in reversed(range(len(parts))):
            scope = ".".join(parts[:count])
            if scope in self._fragments:
                yield scope, ".".join(parts[count:])

    def find_stream(self, name: str) -> StreamPort:
        """Return the stream ``name``: a port of the design or of a component inside it.

        Raises
        ------
        UserError
            If there is no such stream; the message proposes similar names.
        """
        name = normalize(name)
        for scope, rest in self._splits(name):
            for port in stream_ports(self._owners.get(scope)):
                if port.name == rest:
                    return StreamPort(name, port.is_input, port.payload, port.valid, port.ready)
        known = [
            f"{scope}.{port.name}" if scope else port.name
            for scope, owner in self._owners.items()
            for port in stream_ports(owner)
        ]
        raise UserError(f"The design has no stream '{name}'{_similar(name, known)}")

    def path_of_signal(self, signal: Signal, name: str) -> tuple[str, ...]:
        """Return the path of ``signal`` in the emitted hierarchy.

        Raises
        ------
        UserError
            If the signal is not used in the design; ``name`` is for the message.
        """
        for port, (value, _direction) in self.ports.items():
            if value is signal:
                return (port,)
        fragment = self.prepared.signal_lca.get(signal)
        if fragment is None:
            raise UserError(
                f"Signal '{name}' is used nowhere: name its stream in 'probes' of make_engine()"
            )
        info = self.prepared.fragments[fragment]
        return (*info.name[1:], info.signal_names[signal])

    def find_signal(self, name: str) -> Signal:
        """Return the signal ``name``: a port or an inner signal.

        Raises
        ------
        UserError
            If there is no such signal; the message proposes similar names.
        """
        name = normalize(name)
        known = []
        for scope, rest in self._splits(name):
            info = self.prepared.fragments[self._fragments[scope]]
            wanted = rest.replace(".", "__")
            if not scope and wanted in self.ports:
                return self.ports[wanted][0]
            for signal, emitted in info.signal_names.items():
                if emitted == wanted:
                    return signal
                known.append(f"{scope}.{emitted}" if scope else emitted)
        raise UserError(f"The design has no signal '{name}'{_similar(name, known)}")

    def find_memory(self, name: str) -> Any:
        """Return the memory ``name``, a ``MemoryInstance``.

        Raises
        ------
        UserError
            If there is no such memory; the message proposes similar names.
        """
        name = normalize(name)
        if name not in self.memories:
            raise UserError(f"The design has no memory '{name}'{_similar(name, self.memories)}")
        return self.memories[name]


def _similar(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
    return f" (similar: {', '.join(repr(match) for match in matches)})" if matches else ""
