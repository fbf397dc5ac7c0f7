"""RTLIL or Verilog to C++: the part that runs Yosys, in a process of its own.

Usage: ``python -m mxhw.cosim._translate input.il output.cc LEVEL``, or ``input.v``. Yosys writes
its log to the standard output and may end the process, so the engine does not load it.
"""

import sys

__all__ = ["main"]

#: Debug information for ports, registers and memories, or also for the inner signals that are
#: optimised away.
STATE_LEVEL, INNER_LEVEL = 2, 4


def main(source: str, target: str, level: str) -> None:
    """Translate the RTLIL or Verilog file ``source`` to the C++ file ``target``."""
    from pyosys import libyosys  # pyright: ignore[reportAttributeAccessIssue]

    design = libyosys.Design()
    read = "read_verilog" if source.endswith(".v") else "read_rtlil"
    libyosys.run_pass(f'{read} "{source}"', design)
    libyosys.run_pass(f'write_cxxrtl -O6 -g{int(level)} "{target}"', design)


if __name__ == "__main__":
    main(*sys.argv[1:])
