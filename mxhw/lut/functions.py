"""Functions that tables are fitted to: range, input scales, storage and asymptotes of each."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["FUNCTIONS", "Function", "Line", "as_function"]

Line = tuple[float, float]
"""Slope and intercept."""

_ALL_SCALES = tuple(range(7))
_FAR = 10_000.0
_MOST_SCALE = 15
_PROBES = 1025


@dataclasses.dataclass(frozen=True)
class Function:
    """A function on a range, with the scales of its integer inputs.

    Members
    -------
    name : str
    evaluate : callable
        Float64 array to float64 array.
    range : (float, float)
        Inputs that count, both ends included.
    scales : tuple of int
        Exponents ``j``: inputs are integers times ``2**-j``.
    coefficient_frac : int
        Fraction bits of 8-bit slopes and intercepts in the published storage.
    left, right : (slope, intercept) or None
        Asymptote below and above the range.
    chord_ends : (float, float)
        Where the published method ends the chords of the outer segments.
    """

    name: str
    evaluate: Callable[[np.ndarray], np.ndarray]
    range: tuple[float, float]
    scales: tuple[int, ...] = _ALL_SCALES
    coefficient_frac: int = 6
    left: Line | None = None
    right: Line | None = None
    chord_ends: tuple[float, float] = (-_FAR, _FAR)

    def outer_lines(self, tails: str) -> tuple[Line | None, Line | None]:
        """What the outer segments must be: the asymptotes there are for ``fixed`` tails."""
        return (self.left, self.right) if tails == "fixed" else (None, None)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values at ``x`` in float64.

        Raises
        ------
        ValueError
            If the callable gives another shape, or values that are not finite.
        """
        x = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            y = np.asarray(self.evaluate(x), dtype=np.float64)
        if y.shape != x.shape:
            raise ValueError(
                f"Function '{self.name}' must give one value an input, "
                f"not shape {y.shape} for {x.shape}"
            )
        wrong = ~np.isfinite(y)
        if wrong.any():
            raise ValueError(
                f"Function '{self.name}' must be finite over its range, "
                f"but is {y[wrong].flat[0]} at {x[wrong].flat[0]:g}"
            )
        return y


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _registry() -> dict[str, Function]:
    zero, one, identity = (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)
    unit = {"range": (0.0, 1.0), "scales": (8,), "chord_ends": (0.0, 1.0)}
    functions = [
        Function("gelu", _gelu, (-4.0, 4.0), left=zero, right=identity),
        Function(
            "hswish",
            lambda x: x * np.clip(x + 3, 0, 6) / 6,
            (-4.0, 4.0),
            left=zero,
            right=identity,
        ),
        Function("exp", np.exp, (-8.0, 0.0), left=zero, chord_ends=(-16.0, 0.0)),
        Function(
            "div",
            np.reciprocal,
            (0.5, 4.0),
            scales=(5,),
            coefficient_frac=5,
            chord_ends=(0.5, 4.0),
        ),
        Function(
            "rsqrt",
            lambda x: 1 / np.sqrt(x),
            (0.25, 4.0),
            scales=tuple(range(6)),
            coefficient_frac=5,
            chord_ends=(0.25, 4.0),
        ),
        Function("silu", lambda x: x * _sigmoid(x), (-8.0, 8.0), left=zero, right=identity),
        Function("sigmoid", _sigmoid, (-8.0, 8.0), left=zero, right=one),
        Function("tanh", np.tanh, (-4.0, 4.0), left=(0.0, -1.0), right=one),
        Function("softplus", lambda x: np.logaddexp(0, x), (-8.0, 8.0), left=zero, right=identity),
        Function("erf", _erf, (-4.0, 4.0), left=(0.0, -1.0), right=one),
        Function("sin", lambda x: np.sin(x * (math.pi / 2)), **unit),
        Function("cos", lambda x: np.cos(x * (math.pi / 2)), **unit),
        Function("exp2", np.exp2, **unit),
        Function("log2", np.log2, (1.0, 2.0), scales=(8,), chord_ends=(1.0, 2.0)),
    ]
    return {function.name: function for function in functions}


FUNCTIONS = _registry()
"""The functions by name. ``sin`` and ``cos`` take quarter turns from 0 to 1."""


def as_function(
    function: str | Function | Callable[[np.ndarray], np.ndarray],
    range: Sequence[float] | None = None,
    scales: Sequence[int] | None = None,
) -> Function:
    """A function by name, or any callable on a range.

    Parameters
    ----------
    function : str, Function or callable
        A name of :data:`FUNCTIONS`, or what maps a float64 array to one of the same shape.
    range : (float, float), optional
        Needed for a callable. Another range than the registered one has no asymptotes.
    scales : sequence of int, optional
        Exponents ``j`` of the input scales ``2**-j``; 0 to 6 for a callable.

    Raises
    ------
    TypeError, ValueError
        If the name is unknown, the range or a scale wrong, or the function not finite over it.
    """
    if isinstance(function, str):
        if function not in FUNCTIONS:
            raise ValueError(
                f"Function must be one of {', '.join(FUNCTIONS)}, or a callable, not '{function}'"
            )
        result = FUNCTIONS[function]
    elif isinstance(function, Function):
        result = function
    elif callable(function):
        if range is None:
            raise ValueError("Range of a callable must be given")
        name = getattr(function, "__name__", type(function).__name__)
        ends = _check_range(range)
        result = Function(name, function, ends, chord_ends=ends)
    else:
        raise TypeError(f"Function must be a name or a callable, not {function!r}")
    if scales is not None:
        result = dataclasses.replace(result, scales=_check_scales(scales))
    if range is not None:
        ends = _check_range(range)
        if ends != result.range:
            result = dataclasses.replace(result, range=ends, left=None, right=None, chord_ends=ends)
    result(np.linspace(*result.range, _PROBES))
    return result


def _check_range(range: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in range)
    except (TypeError, ValueError):
        raise TypeError(f"Range of a function must be two numbers, not {range!r}") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"Range of a function must be finite, not {low:g} to {high:g}")
    if low >= high:
        raise ValueError(f"Range of a function must ascend, not {low:g} to {high:g}")
    return low, high


def _check_scales(scales: Sequence[int]) -> tuple[int, ...]:
    result = tuple(scales)
    for scale in result:
        if not isinstance(scale, int) or isinstance(scale, bool):
            raise TypeError(f"Scale exponent must be an integer, not {scale!r}")
        if not 0 <= scale <= _MOST_SCALE:
            raise ValueError(f"Scale exponent must be between 0 and {_MOST_SCALE}, not {scale}")
    if not result or len(set(result)) != len(result):
        raise ValueError(f"Scale exponents must be different and at least one, not {list(scales)}")
    return tuple(sorted(result))
