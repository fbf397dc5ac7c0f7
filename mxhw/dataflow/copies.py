"""Registers that repeat one another, so that none has to drive a net all over a device."""

from amaranth import Signal
from amaranth.hdl import ShapeLike

__all__ = ["COPY_ATTRIBUTE", "register_copies"]

COPY_ATTRIBUTE = "mxhw_copy"
"""Attribute of signals whose registers synthesis must not merge
(:data:`mxhw.compiler.toolflow.PREPARE_SCRIPT`)."""


def register_copies(shape: ShapeLike, count: int, name: str) -> list[Signal]:
    """Signals for ``count`` registers that the caller gives equal values.

    Synthesis makes one register of equal ones; these carry an attribute that forbids it.

    Parameters
    ----------
    shape : ShapeLike
    count : int
        At least 1; a single register needs no attribute.
    name : str
    """
    if count == 1:
        return [Signal(shape, name=name)]
    return [
        Signal(shape, name=f"{name}_{index}", attrs={COPY_ATTRIBUTE: 1}) for index in range(count)
    ]
