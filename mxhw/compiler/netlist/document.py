"""Netlists as the tools write them: JSON, of which one module is the design."""

import json
from pathlib import Path
from typing import Any

from mxhw.errors import BuildError

__all__ = ["read_netlist", "top_module"]


def read_netlist(netlist: Path) -> dict[str, Any]:
    """Read a flat netlist of Yosys.

    Raises
    ------
    BuildError
        If the file is no netlist.
    """
    try:
        with netlist.open(encoding="utf-8") as file:
            document = json.load(file)
        top_module(document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BuildError(f"Netlist '{netlist.name}' cannot be read: {error}") from error
    return document


def top_module(document: dict[str, Any]) -> dict[str, Any]:
    """Return the top module of a netlist; LookupError if there is none."""
    for module in document["modules"].values():
        if int(str(module.get("attributes", {}).get("top", "0")), 2):
            return module
    raise LookupError("it has no top module")
