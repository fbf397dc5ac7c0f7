"""A picture of a table: the function, its segments, the error. Needs matplotlib."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mxhw.errors import UserError
from mxhw.lut.functions import Function, as_function
from mxhw.lut.metric import quantised_breakpoints, table_values
from mxhw.lut.table import PwlTable

__all__ = ["PICTURE_TYPES", "plot_table", "write_picture"]

PICTURE_TYPES = (".png", ".svg", ".pdf")

_POINTS = 2000
_FUNCTION, _TABLE, _FINEST, _COARSEST = "#8a94a3", "#2563c9", "#0f8a6d", "#c9660a"


def plot_table(table: PwlTable, function: Function | None = None) -> Figure:
    """Function and table above, the error at the finest and at the coarsest scale below.

    Parameters
    ----------
    table : PwlTable
    function : Function, optional
        What the table stands for; by default the registered one of its name.
    """
    function = function or as_function(table.function)
    figure = Figure(figsize=(8.0, 5.6), layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    _draw_values(upper, table, function)
    _draw_errors(lower, table, function)
    method = table.settings.get("method", "")
    figure.suptitle(
        f"{table.function}, {table.entries} entries of {table.bits} bits"
        f"{', ' + str(method) if method else ''}: "
        f"mean squared error {table.mean_squared_error:.2e}",
        fontsize=11,
    )
    return figure


def _draw_values(axes: Axes, table: PwlTable, function: Function) -> None:
    x = np.linspace(*table.range, _POINTS)
    axes.plot(x, function(x), color=_FUNCTION, linewidth=4.0, label=table.function)
    finest = max(table.scales)
    points = [point / 2**finest for point in quantised_breakpoints(table, finest)]
    ends = np.clip([table.range[0], *points, table.range[1]], *table.range)
    slopes = np.ldexp(np.array(table.slopes, float), -np.array(table.slope_fracs))
    intercepts = np.ldexp(np.array(table.intercepts, float), -np.array(table.intercept_fracs))
    for index, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
        line = np.array([start, stop])
        label = "table" if index == 0 else None
        y = slopes[index] * line + intercepts[index]
        axes.plot(line, y, color=_TABLE, linewidth=1.4, marker="o", markersize=3, label=label)
    axes.set_ylabel("value")
    axes.legend(frameon=False, loc="best")
    _finish(axes)


def _draw_errors(axes: Axes, table: PwlTable, function: Function) -> None:
    finest, coarsest = max(table.scales), min(table.scales)
    for scale, color in ((finest, _FINEST), (coarsest, _COARSEST)):
        low, high = (int(end * 2**scale) for end in table.range)
        codes = np.arange(low, high + 1)
        codes = codes[(codes >= table.range[0] * 2**scale) & (codes <= table.range[1] * 2**scale)]
        x = codes / 2**scale
        error = table_values(table, codes, scale) - function(x)
        label = f"scale $2^{{-{scale}}}$" if scale else "scale 1"
        if scale == finest:
            axes.plot(x, error, color=color, linewidth=1.0, label=label)
        else:
            axes.plot(x, error, "o", color=color, markersize=4, label=label)
        if finest == coarsest:
            break
    axes.axhline(0, color=_FUNCTION, linewidth=0.8)
    axes.set_xlabel("input")
    axes.set_ylabel("error")
    axes.legend(frameon=False, loc="best")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(color="#e4e9f1", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, as the name ends; the same figure gives the same bytes.

    Raises
    ------
    UserError
        If the name ends otherwise or the file cannot be written.
    """
    if path.suffix.lower() not in PICTURE_TYPES:
        raise UserError(f"Picture '{path}' must end in {', '.join(PICTURE_TYPES)}")
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    content = io.BytesIO()
    kind = path.suffix.lower()
    with matplotlib.rc_context({"svg.hashsalt": "mxhw", "svg.fonttype": "none"}):
        figure.savefig(content, format=kind[1:], dpi=120, metadata=date[kind])
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise UserError(f"Picture '{path}' cannot be written: {error.strerror}") from None
