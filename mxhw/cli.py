"""What the commands have in common: one-line errors and exit statuses.

Exit status: 0 if all went well, 1 for a request that cannot be served, 2 for a step that failed, 3
for a missing tool, 130 for an interrupt.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from mxhw.errors import MxhwError, UserError

__all__ = ["INTERRUPT_STATUS", "Interrupted", "model_options", "run_command"]

INTERRUPT_STATUS = 130
_INTERNAL_STATUS = 2


def _check_budget(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value < float("inf"):
        raise UserError(f"Table budget must be above 0, not {value:g}")
    return value


_MODEL_OPTIONS = (
    click.option(
        "--format",
        "format_",
        metavar="W[/A]",
        default="mxint8",
        show_default=True,
        help="MX formats of weights and activations. One name sets the weights, and the "
        "activations too if it is MXINT of at most 8 bits; else they are mxint8.",
    ),
    click.option(
        "--table-budget",
        metavar="X",
        type=float,
        callback=_check_budget,
        default=0.1,
        show_default=True,
        help="Largest error of a node's function tables, in half steps of the activation format; "
        "it decides how many entries they get.",
    ),
    click.option(
        "--clock",
        metavar="MHZ",
        type=float,
        help="Clock of the design on the board; by default the board's, 65 or 95, or 58 where "
        "weights do not all fit block RAM.",
    ),
    click.option(
        "--context",
        metavar="N",
        type=click.IntRange(min=8),
        help="Positions to build for, where MODEL is a path; by default those of the model, at "
        "most 1024, or as many as the board holds.",
    ),
    click.option(
        "--tokenizer",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Tokenizer of a llama2.c model, where it is not beside the model.",
    ),
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is built of a model: every command means one design by them."""
    for option in reversed(_MODEL_OPTIONS):
        function = option(function)
    return function


class Interrupted(MxhwError):
    """The user ended the command."""

    exit_status = INTERRUPT_STATUS


def _report(message: str) -> None:
    # Names of files and what is in them can hold anything; a terminal must not obey it.
    shown = (letter if letter.isprintable() or letter == "\n" else " " for letter in message)
    click.echo(f"mxhw: error: {''.join(shown)}", err=True)


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
