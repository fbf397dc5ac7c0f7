"""One call that fits a table by any method."""

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from mxhw.lut.functions import Function, as_function
from mxhw.lut.table import BREAKPOINT_MODES, PwlTable

__all__ = ["METHODS", "fit"]

METHODS = {
    "optimal": ("mxhw.lut.optimal", "fit_optimal"),
    "genetic": ("mxhw.lut.genetic", "fit_genetic"),
    "nn-lut": ("mxhw.lut.nn_lut", "fit_nn_lut"),
}
"""Module and function of every method."""

_TAILS = ("fixed", "free")
_MOST_BITS = 16


def fit(
    function: str | Function | Callable[[np.ndarray], np.ndarray],
    *,
    entries: int = 8,
    method: str = "optimal",
    bits: int = 8,
    range: Sequence[float] | None = None,
    scales: Sequence[int] | None = None,
    breakpoint_mode: str = "round",
    **settings: Any,
) -> PwlTable:
    """Fit a piecewise-linear table to a function.

    Parameters
    ----------
    function : str, Function or callable
        A name of ``mxhw.lut.FUNCTIONS``, or a callable on float64 arrays, with a ``range``.
    entries : int
        Segments, 2 to 64.
    method : str
        ``optimal``: the exact optimum; ``genetic``: GQA-LUT (arXiv 2403.19591); ``nn-lut``:
        the hidden layer of a small network (arXiv 2112.02191).
    bits : int
        Width of slopes and intercepts, 4 to 16.
    range : (float, float), optional
        Another range than the function's own.
    scales : sequence of int, optional
        Exponents ``j`` of the input scales ``2**-j`` that the error is measured at.
    breakpoint_mode : str
        How breakpoints become integers of a scale: ``round`` (ties to even) or ``ceil``.
    settings
        Of the method. All have ``tails``: ``fixed``, by default, makes the outer segments the
        function's asymptotes, where it has them, so that every input beyond the range has its
        exact value; ``free``. ``optimal``: ``storage`` (``published``, ``best`` or ``per-entry``
        exponents). The others: see :func:`~mxhw.lut.genetic.fit_genetic` and
        :func:`~mxhw.lut.nn_lut.fit_nn_lut`.

    Returns
    -------
    PwlTable

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the function is not finite over its range, or its coefficients do
        not fit the bits.
    """
    if method not in METHODS:
        raise ValueError(f"Method must be one of {', '.join(METHODS)}, not '{method}'")
    _check_integer(entries, "Entries", 2, 64)
    _check_integer(bits, "Bits", 4, _MOST_BITS)
    if breakpoint_mode not in BREAKPOINT_MODES:
        raise ValueError(f"Breakpoint mode must be round or ceil, not '{breakpoint_mode}'")
    if settings.get("tails", "fixed") not in _TAILS:
        raise ValueError(f"Tails must be fixed or free, not '{settings['tails']}'")
    module, name = METHODS[method]
    try:
        fitter = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Method '{method}' needs the package {error.name}: pip install 'mxhw[lut]'"
        ) from None
    known = [
        parameter.name
        for parameter in inspect.signature(fitter).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    ]
    for setting in settings:
        if setting not in known:
            raise TypeError(
                f"Setting of method '{method}' must be one of {', '.join(known)}, not '{setting}'"
            )
    return fitter(
        as_function(function, range, scales),
        entries=entries,
        bits=bits,
        breakpoint_mode=breakpoint_mode,
        **settings,
    )


def _check_integer(value: object, name: str, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} of a fit must be an integer, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} of a fit must be between {low} and {high}, not {value}")
