"""Write the page of a build folder again: ``python -m mxhw.report FOLDER``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mxhw.cli import run_command
from mxhw.compiler.workspace import MARKER
from mxhw.errors import UserError
from mxhw.report import PAGE_FILE, read_folder, render

__all__ = ["command", "main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help=f"File; by default FOLDER/{PAGE_FILE}."
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def command(folder: Path, out: Path | None) -> None:
    """Write the page of a build FOLDER, from the facts that its steps left."""
    if not (folder / MARKER).is_file():
        raise UserError(f"Folder {folder} is not a build of mxhw")
    target = out or folder / PAGE_FILE
    content = render(read_folder(folder))
    try:
        target.write_text(content, "utf-8")
    except OSError as error:
        raise UserError(f"File {target} cannot be written: {error.strerror}") from error
    click.echo(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(command, "python -m mxhw.report", arguments)


if __name__ == "__main__":
    sys.exit(main())
