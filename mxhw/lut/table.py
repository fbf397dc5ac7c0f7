"""Piecewise-linear tables with free breakpoints and quantised coefficients, and their files."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from mxhw.errors import UserError

__all__ = ["BREAKPOINT_MODES", "MAX_ENTRIES", "PwlTable", "read_table", "write_table"]

BREAKPOINT_MODES = ("round", "ceil")
MAX_ENTRIES = 256

_MOST_BITS = 32
_MOST_FRAC = 62
_MOST_POINT = 1 << 53
_LARGEST_FILE = 1 << 20


@dataclasses.dataclass(frozen=True)
class PwlTable:
    """``y = slope * x + intercept`` of the segment that ``x`` lies in.

    Entry ``i`` has the slope ``slopes[i] * 2**-slope_frac`` and the intercept
    ``intercepts[i] * 2**-intercept_frac``; it serves the inputs from breakpoint ``i - 1`` on and
    below breakpoint ``i``. At the input scale ``2**-j`` a breakpoint ``p`` is the integer
    ``round(p * 2**j)``, ties to even, or ``ceil(p * 2**j)``, as ``breakpoint_mode`` says.

    Members
    -------
    function : str
    range : (float, float)
    scales : tuple of int
        Exponents ``j`` of the input scales.
    breakpoint_mode : str
        ``round`` or ``ceil``.
    breakpoints : tuple of int
        Ascending, one less than the entries, with ``breakpoint_frac`` fraction bits.
    slopes, intercepts : tuple of int
        Two's complement of ``bits`` bits.
    slope_frac, intercept_frac : int or tuple of int
        Fraction bits of all entries, or of each.
    bits : int
        2 to 32.
    mean_squared_error : float
    settings : dict
        Method and settings that made the table.

    Raises
    ------
    TypeError, ValueError
        If a member breaks one of these rules.
    """

    function: str
    range: tuple[float, float]
    scales: tuple[int, ...]
    breakpoint_mode: str
    breakpoints: tuple[int, ...]
    breakpoint_frac: int
    slopes: tuple[int, ...]
    slope_frac: int | tuple[int, ...]
    intercepts: tuple[int, ...]
    intercept_frac: int | tuple[int, ...]
    bits: int
    mean_squared_error: float
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check(self)

    @property
    def entries(self) -> int:
        """Segments."""
        return len(self.slopes)

    @property
    def slope_fracs(self) -> tuple[int, ...]:
        """Fraction bits of each slope."""
        return _each(self.slope_frac, self.entries)

    @property
    def intercept_fracs(self) -> tuple[int, ...]:
        """Fraction bits of each intercept."""
        return _each(self.intercept_frac, self.entries)


def _each(frac: int | tuple[int, ...], entries: int) -> tuple[int, ...]:
    return frac if isinstance(frac, tuple) else (frac,) * entries


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_integers(values: object, name: str) -> None:
    if not isinstance(values, tuple) or not all(_is_integer(value) for value in values):
        raise TypeError(f"{name} of a table must be integers, not {_short(values)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check(table: PwlTable) -> None:
    """Raise the error of the first rule that a table breaks."""
    if not isinstance(table.function, str) or not table.function:
        raise TypeError(f"Function of a table must be a name, not {_short(table.function)}")
    _check_range_and_scales(table)
    if table.breakpoint_mode not in BREAKPOINT_MODES:
        raise ValueError(
            f"Breakpoint mode of a table must be round or ceil, not {table.breakpoint_mode!r}"
        )
    if not _is_integer(table.bits):
        raise TypeError(f"Bits of a table must be an integer, not {table.bits!r}")
    if not 2 <= table.bits <= _MOST_BITS:
        raise ValueError(f"Bits of a table must be between 2 and {_MOST_BITS}, not {table.bits}")
    for name in ("breakpoints", "slopes", "intercepts"):
        _check_integers(getattr(table, name), name.capitalize())
    entries = len(table.slopes)
    if not 1 <= entries <= MAX_ENTRIES:
        raise ValueError(f"Entries of a table must be between 1 and {MAX_ENTRIES}, not {entries}")
    for name, count in (("breakpoints", entries - 1), ("intercepts", entries)):
        if len(getattr(table, name)) != count:
            raise ValueError(
                f"Table of {entries} slopes must have {count} {name}, "
                f"not {len(getattr(table, name))}"
            )
    if any(a > b for a, b in zip(table.breakpoints, table.breakpoints[1:], strict=False)):
        raise ValueError("Breakpoints of a table must ascend")
    if any(abs(point) > _MOST_POINT for point in table.breakpoints):
        raise ValueError("Breakpoints of a table must be below 2**53")
    limit = 1 << (table.bits - 1)
    for name in ("slopes", "intercepts"):
        for value in getattr(table, name):
            if not -limit <= value < limit:
                raise ValueError(
                    f"{name.capitalize()} of a table must fit {table.bits} bits, not be {value}"
                )
    _check_fracs(table, entries)
    if not isinstance(table.mean_squared_error, float) or not (
        0 <= table.mean_squared_error < math.inf
    ):
        raise ValueError(
            "Mean squared error of a table must be a finite number of at least 0, "
            f"not {table.mean_squared_error!r}"
        )
    if not isinstance(table.settings, dict):
        raise TypeError(f"Settings of a table must be a dictionary, not {_short(table.settings)}")


def _check_range_and_scales(table: PwlTable) -> None:
    ends = table.range
    if (
        not isinstance(ends, tuple)
        or len(ends) != 2
        or not all(isinstance(end, float) and math.isfinite(end) for end in ends)
        or ends[0] >= ends[1]
    ):
        raise ValueError(f"Range of a table must be two ascending numbers, not {_short(ends)}")
    _check_integers(table.scales, "Scales")
    if not table.scales or any(not 0 <= scale <= _MOST_FRAC for scale in table.scales):
        raise ValueError(
            f"Scales of a table must be exponents of 0 to {_MOST_FRAC}, not {list(table.scales)}"
        )


def _check_fracs(table: PwlTable, entries: int) -> None:
    for name in ("breakpoint_frac", "slope_frac", "intercept_frac"):
        value = getattr(table, name)
        title = name.replace("_frac", "").capitalize() + " fraction bits"
        values: tuple[Any, ...] = (
            value if isinstance(value, tuple) and name != "breakpoint_frac" else (value,)
        )
        for frac in values:
            if not isinstance(frac, int) or isinstance(frac, bool):
                raise TypeError(f"{title} of a table must be integers, not {_short(value)}")
        if max(map(abs, values), default=0) > _MOST_FRAC:
            raise ValueError(
                f"{title} of a table must be at most {_MOST_FRAC}, not {_short(value)}"
            )
        if isinstance(value, tuple) and len(value) != entries:
            raise ValueError(
                f"{title} of a table must be one number or {entries}, not {len(value)}"
            )


def write_table(table: PwlTable, path: Path | str) -> None:
    """Write a table as JSON: the members of :class:`PwlTable`, each under its name."""
    text = json.dumps(dataclasses.asdict(table), indent=2, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_table(path: Path | str) -> PwlTable:
    """Read and check a table that :func:`write_table` or another program wrote.

    Raises
    ------
    UserError
        If the file cannot be read, is no JSON object with exactly the members of a table, or
        breaks a rule of :class:`PwlTable`.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise UserError(f"Table '{path}' must be at most {_LARGEST_FILE} bytes, not {size}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Table '{path}' cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"Table '{path}' must be JSON: {error}") from None
    names = [field.name for field in dataclasses.fields(PwlTable)]
    if not isinstance(content, dict):
        raise UserError(f"Table '{path}' must be a JSON object, not {_short(content)}")
    missing = [name for name in names if name not in content]
    unknown = [name for name in content if name not in names]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise UserError(f"Table '{path}' {wrong}")
    try:
        return PwlTable(**{name: _from_json(name, content[name]) for name in names})
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"Table '{path}' is wrong: {error}") from None


def _from_json(name: str, value: Any) -> Any:
    """Tuples for lists, and floats where JSON may have written an integer."""
    if name == "range" and isinstance(value, list):
        return tuple(float(end) if _is_integer(end) else end for end in value)
    if name == "mean_squared_error" and _is_integer(value):
        return float(value)
    return tuple(value) if isinstance(value, list) else value
