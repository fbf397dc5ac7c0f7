"""Runs a Yosys script in the process's own libyosys: ``python -m mxhw.compiler._yosys SCRIPT``.

The script is what Amaranth's build plan holds, one command a line. A ``synth_ecp5`` command is run
label by label, for two reasons: each label is announced on standard output, and its last label is
replaced, because the AUTONAME pass in it can take minutes and gigabytes of memory on a design with
long chains of logic, only to give internal nets longer names.
"""

import sys

__all__ = ["LABELS", "MARKER", "commands_of", "main"]

MARKER = "@mxhw-label "
"""Begin of the lines that announce a label."""

LABELS = {
    "begin": 0.01,
    "coarse": 0.09,
    "map_ram": 0.31,
    "map_ffram": 0.03,
    "map_gates": 0.09,
    "map_ffs": 0.06,
    "map_luts": 0.33,
    "map_cells": 0.06,
    "check": 0.02,
}
"""Labels of ``synth_ecp5``, each with its usual share of the time."""

_CHECKS = ("hierarchy -check", "stat", "check -noinit", "blackbox =A:whitebox")


def commands_of(script: str) -> list[tuple[str | None, str]]:
    """Return the commands of a script, each with the label that it begins or None."""
    commands: list[tuple[str | None, str]] = []
    for line in script.splitlines():
        command = line.strip()
        if not command or command.startswith("#"):
            continue
        if command.split()[0] != "synth_ecp5":
            commands.append((None, command))
            continue
        names = list(LABELS)
        for name, following in zip(names, names[1:], strict=False):
            commands.append((name, f"{command} -run {name}:{following}"))
        commands.append((names[-1], _CHECKS[0]))
        commands += [(None, check) for check in _CHECKS[1:]]
    return commands


def main(arguments: list[str]) -> int:
    """Run the script named in the arguments."""
    from pyosys import libyosys

    with open(arguments[0], encoding="utf-8") as file:
        commands = commands_of(file.read())
    design = libyosys.Design()
    for label, command in commands:
        if label is not None:
            sys.stdout.write(f"{MARKER}{label}\n")
            sys.stdout.flush()
        libyosys.run_pass(command, design)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
