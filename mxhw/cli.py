"""What the commands have in common: one-line errors and exit statuses.

Exit status: 0 if all went well, 1 for a request that cannot be served, 2 for a step that failed, 3
for a missing tool, 130 for an interrupt.
"""

import sys
import traceback
from collections.abc import Sequence

import click

from mxhw.errors import MxhwError, UserError

__all__ = ["INTERRUPT_STATUS", "Interrupted", "run_command"]

INTERRUPT_STATUS = 130
_INTERNAL_STATUS = 2


class Interrupted(MxhwError):
    """The user ended the command."""

    exit_status = INTERRUPT_STATUS


def _report(message: str) -> None:
    click.echo(f"mxhw: error: {message}", err=True)


def run_command(command: click.Command, program: str, arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit status; errors are one line on standard error.

    Parameters
    ----------
    command : click.Command
    program : str
        Name for the command's help.
    arguments : sequence of str, optional
        By default those of the process. ``--debug``, where the command has that option, shows the
        traceback of an error.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    has_debug = any("--debug" in parameter.opts for parameter in command.params)
    debug = has_debug and "--debug" in arguments
    try:
        command.main(list(arguments), prog_name=program, standalone_mode=False)
        return 0
    except (click.Abort, KeyboardInterrupt):
        _report("interrupted")
        return INTERRUPT_STATUS
    except click.ClickException as error:
        _report(f"{error.format_message()} (--help lists the options)")
        return UserError.exit_status
    except MxhwError as error:
        if debug:
            traceback.print_exc()
        _report(str(error))
        return error.exit_status
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug or not has_debug else "; run with --debug for the traceback"
        _report(f"internal error: {type(error).__name__}: {error}{hint}")
        return _INTERNAL_STATUS
