"""Write the page of a build folder again: ``python -m mxhw.report FOLDER``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mxhw.compiler.workspace import MARKER
from mxhw.errors import MxhwError, UserError
from mxhw.report import PAGE_FILE, read_folder, render

__all__ = ["command", "main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help=f"File; by default FOLDER/{PAGE_FILE}."
)
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
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command.main(list(arguments), prog_name="python -m mxhw.report", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"mxhw: error: {error.format_message()} (--help lists the options)", err=True)
        return UserError.exit_status
    except MxhwError as error:
        click.echo(f"mxhw: error: {error}", err=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
