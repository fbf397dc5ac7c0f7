import click
import pytest

from mxhw.cli import run_command

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
