"""RTLIL to C++: the part that runs Yosys, in a process of its own.

Usage: ``python -m mxhw.cosim._translate input.il output.cc LEVEL``. Yosys writes its log to the
standard output and may end the process, so the engine does not load it.
"""

import sys

__all__ = ["main"]

#: Debug information for ports, registers and memories, or also for the inner signals that are
#: optimised away.
STATE_LEVEL, INNER_LEVEL = 2, 4


def main(source: str, target: str, level: str) -> None:
    """Translate the RTLIL file ``source`` to the C++ file ``target``."""
    from pyosys import libyosys  # pyright: ignore[reportAttributeAccessIssue]

    design = libyosys.Design()
    libyosys.run_pass(f'read_rtlil "{source}"', design)
    libyosys.run_pass(f'write_cxxrtl -O6 -g{int(level)} "{target}"', design)


if __name__ == "__main__":
    main(*sys.argv[1:])
