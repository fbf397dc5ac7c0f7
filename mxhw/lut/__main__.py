"""The command line: ``python -m mxhw.lut fit gelu --entries 8 --out gelu.json``.

Errors are one line; the exit status is 1 for a request that cannot be served, 3 for a missing
package, 130 for an interrupt.
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mxhw.cli import run_command
from mxhw.errors import ToolError, UserError

# What loads NumPy or a fitter is imported where it is used, so that help is immediate.

__all__ = ["command", "main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.pass_context
def command(context: click.Context) -> None:
    """Fit piecewise-linear tables to functions, and draw them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _function(name: str) -> Any:
    """A registered name, or the callable of ``MODULE:NAME``."""
    if ":" not in name:
        return name
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"Function '{name}' cannot be imported: {error}") from None
    if not callable(found):
        raise UserError(f"Function '{name}' must be callable, not {type(found).__name__}")
    return found


def _scales(text: str | None) -> tuple[int, ...] | None:
    """Exponents from ``0-6`` or ``0,2,5``."""
    if text is None:
        return None
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            if not 0 <= first <= last <= 64:
                raise ValueError
            return tuple(range(first, last + 1))
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"Scales must be like 0-6 or 0,2,5, not '{text}'") from None


@command.command()
@click.argument("function")
@click.option("--entries", type=int, default=8, show_default=True, help="Segments, 2 to 64.")
@click.option(
    "--method",
    default="optimal",
    show_default=True,
    help="optimal (the exact optimum), genetic (GQA-LUT) or nn-lut (a network's hidden layer).",
)
@click.option("--bits", type=int, default=8, show_default=True, help="Width of coefficients.")
@click.option(
    "--range",
    "range_",
    nargs=2,
    type=float,
    help="Inputs that count; needed for MODULE:NAME.",
)
@click.option(
    "--scales",
    metavar="LIST",
    help="Input scales 2**-j at which the error is measured: 0-6, or 0,2,5.",
)
@click.option(
    "--breakpoint-mode",
    default="round",
    show_default=True,
    help="How breakpoints become integers of a scale: round or ceil.",
)
@click.option(
    "--storage",
    help="optimal: published exponents, the best common ones, or those of each entry (per-entry).",
)
@click.option("--tails", help="fixed (outer segments are the asymptotes) or free.")
@click.option("--fitness", help="genetic: published or quantised.")
@click.option("--seed", type=int, help="genetic, nn-lut.")
@click.option("--generations", type=int, help="genetic.")
@click.option("--steps", type=int, help="nn-lut: batches of training.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table here as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def fit(
    function: str,
    range_: tuple[float, float] | None,
    scales: str | None,
    out: Path | None,
    quiet: bool,
    generations: int | None,
    **options: Any,
) -> None:
    """Fit a table to FUNCTION: a name (gelu, hswish, exp, div, rsqrt, silu, sigmoid, tanh,
    softplus, erf, sin, cos, exp2, log2), or MODULE:NAME for any callable on NumPy arrays.
    """
    from mxhw.lut.fitting import fit as fit_table
    from mxhw.lut.functions import as_function
    from mxhw.lut.table import write_table

    chosen = {name: value for name, value in options.items() if value is not None}
    start = time.monotonic()
    errors = Console(stderr=True)
    hidden = quiet or not errors.is_terminal
    with Progress(console=errors, transient=True, disable=hidden) as progress:
        task = progress.add_task(f"Fitting {function}", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        try:
            target = as_function(_function(function), range_, _scales(scales))
            if generations is not None:
                if chosen["method"] != "genetic":
                    raise UserError("Generations are a setting of the method 'genetic'")
                from mxhw.lut.genetic import published_settings

                settings = published_settings(target.name, chosen["entries"])
                chosen["genetic"] = dataclasses.replace(settings, generations=generations)
            if chosen["method"] != "optimal":
                chosen["progress"] = report
            table = fit_table(target, **chosen)
        except ModuleNotFoundError as error:
            raise ToolError(str(error)) from None
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None
    if out is not None:
        try:
            write_table(table, out)
        except OSError as error:
            raise UserError(f"Table '{out}' cannot be written: {error.strerror}") from None
    if not quiet:
        _print_table(table, target, time.monotonic() - start, out)


def _print_table(table: Any, function: Any, seconds: float, out: Path | None) -> None:
    from mxhw.lut.metric import largest_error, mean_squared_errors

    console = Console(highlight=False)
    console.print(
        f"{table.function} from {table.range[0]:g} to {table.range[1]:g}: {table.entries} entries "
        f"of {table.bits} bits in {seconds:.1f} s"
    )
    rows = Table(box=None, pad_edge=False)
    for title in ("from", "slope", "intercept"):
        rows.add_column(title, justify="right")
    points = [f"{point / 2**table.breakpoint_frac:g}" for point in table.breakpoints]
    lines = zip(
        ["", *points],
        table.slopes,
        table.slope_fracs,
        table.intercepts,
        table.intercept_fracs,
        strict=True,
    )
    for point, slope, slope_frac, intercept, intercept_frac in lines:
        rows.add_row(point, f"{slope} / 2^{slope_frac}", f"{intercept} / 2^{intercept_frac}")
    console.print(rows)
    each = ", ".join(f"{error:.2e}" for error in mean_squared_errors(table, function))
    console.print(f"mean squared error {table.mean_squared_error:.3e}; by scale {each}")
    console.print(f"largest error {largest_error(table, function):.2e}")
    if out is not None:
        console.print(f"written to {out}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Picture, .png, .svg or .pdf; by default beside the table.",
)
@click.option("--function", metavar="MODULE:NAME", help="What a table of a callable stands for.")
def plot(file: Path, out: Path | None, function: str | None) -> None:
    """Draw function, table and error of the table in FILE."""
    from mxhw.lut.functions import FUNCTIONS, as_function
    from mxhw.lut.table import read_table

    table = read_table(file)
    if function is None and table.function not in FUNCTIONS:
        raise UserError(
            f"Function '{table.function}' of the table is not a known one; name it with --function"
        )
    try:
        from mxhw.lut.plotting import plot_table, write_picture
    except ModuleNotFoundError as error:
        raise ToolError(f"Plots need the package {error.name}: pip install 'mxhw[lut]'") from None
    try:
        target = as_function(_function(function or table.function), table.range, table.scales)
        figure = plot_table(table, target)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    path = out or file.with_suffix(".png")
    write_picture(figure, path)
    Console(highlight=False).print(f"drawn in {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(command, "python -m mxhw.lut", arguments)


if __name__ == "__main__":
    sys.exit(main())
