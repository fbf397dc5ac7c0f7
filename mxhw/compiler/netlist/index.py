"""What drives and what reads each bit of a module of a netlist."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Index", "Pin"]

Pin: TypeAlias = tuple[str, str]
"""Name of a cell, and of one of its ports."""


class Index:
    """Index of a module, which follows the changes that are made through it.

    Constants, which are strings in a netlist, have no entries.

    Parameters
    ----------
    module : mapping
        A flat module of a JSON netlist: the direction of every port of a cell is known.

    Members
    -------
    drivers : mapping of int to Pin
        The output that drives a bit.
    readers : mapping of int to sequence of Pin
        Inputs that read a bit, in the order of the cells; also ports of both directions.
    ports : frozenset of int
        Bits at the ports of the module.
    """

    drivers: Mapping[int, Pin]
    readers: Mapping[int, Sequence[Pin]]

    def __init__(self, module: Mapping[str, Any]) -> None:
        self._cells: dict[str, Any] = module["cells"]
        self.drivers = self._drivers = {}
        self.readers = self._readers = defaultdict[int, list[Pin]](list)
        self.ports = frozenset(
            bit for port in module["ports"].values() for bit in port["bits"] if isinstance(bit, int)
        )
        for name in self._cells:
            self._enter(name)

    def is_read(self, bit: Any) -> bool:
        """Tell whether a cell reads a bit or it is at a port of the module."""
        return bool(self.readers.get(bit)) or bit in self.ports

    def connect(self, name: str, port: str, bits: list[Any], *, output: bool = False) -> None:
        """Connect a port of a cell, also one that was open, to other bits."""
        cell = self._cells[name]
        if port in cell["connections"]:
            self._leave((name, port))
        cell["connections"][port] = bits
        cell["port_directions"][port] = "output" if output else "input"
        for bit in bits:
            if not isinstance(bit, int):
                continue
            if output:
                self._drivers[bit] = name, port
            else:
                self._readers[bit].append((name, port))

    def remove(self, name: str) -> None:
        """Remove a cell from the module."""
        for port in self._cells[name]["connections"]:
            self._leave((name, port))
        del self._cells[name]

    def _enter(self, name: str) -> None:
        cell = self._cells[name]
        directions = cell["port_directions"]
        for port, bits in cell["connections"].items():
            pin = name, port
            if directions[port] == "output":
                for bit in bits:
                    if isinstance(bit, int):
                        self._drivers[bit] = pin
            else:
                for bit in bits:
                    if isinstance(bit, int):
                        self._readers[bit].append(pin)

    def _leave(self, pin: Pin) -> None:
        name, port = pin
        cell = self._cells[name]
        output = cell["port_directions"][port] == "output"
        for bit in cell["connections"][port]:
            if not isinstance(bit, int):
                continue
            if not output:
                self._readers[bit].remove(pin)
            elif self._drivers.get(bit) == pin:
                # Not where another output was connected to it meanwhile.
                del self._drivers[bit]
