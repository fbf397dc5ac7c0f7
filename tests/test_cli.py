import subprocess
import sys

import click
import pytest

from mxhw import build, run
from mxhw.cli import run_command
from mxhw.errors import UserError

DEBUG = click.Option(["--debug"], is_flag=True, expose_value=False)


def fail():
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("options", "arguments", "hint"),
    [
        ([DEBUG], [], "; run with --debug for the traceback"),
        ([DEBUG], ["--debug"], ""),
        ([], [], ""),
    ],
)
def test_an_unexpected_error_is_one_line(options, arguments, hint, capsys):
    status = run_command(click.Command("fail", callback=fail, params=options), "fail", arguments)
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert lines[-1] == f"mxhw: error: internal error: ZeroDivisionError: division by zero{hint}"
    assert (lines[0] == "Traceback (most recent call last):") == bool(arguments)


def test_a_terminal_obeys_no_message(capsys):
    def refuse():
        raise UserError("File \x1b[2J\x07.gguf must be\n  another")

    assert run_command(click.Command("fail", callback=refuse), "fail", []) == 1
    assert capsys.readouterr().err == "mxhw: error: File  [2J .gguf must be\n  another\n"


def test_commands_mean_a_design_by_the_same_options():
    def options(command):
        return {option.name: option.to_info_dict() for option in command.params}

    build_options, run_options = options(build.command), options(run.command)
    for name in ("format_", "clock", "context", "tokenizer", "table_budget"):
        assert build_options[name] == run_options[name]


def test_a_reader_that_goes_ends_a_command_without_a_word():
    program = [sys.executable, "-m", "mxhw.build", "--help"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1
