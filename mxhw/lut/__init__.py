"""Nonlinear functions: piecewise-linear tables, their fits, and the units that look them up."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxhw.lut.exp2 import Exp2, Power
    from mxhw.lut.fitting import fit
    from mxhw.lut.float_unit import FloatPwlUnit, FloatTableWord, LoadableFloatPwlUnit
    from mxhw.lut.functions import FUNCTIONS, Function
    from mxhw.lut.layer_norm import LayerNormFactor, Moments
    from mxhw.lut.metric import mean_squared_error, mean_squared_errors
    from mxhw.lut.module import PwlFunction
    from mxhw.lut.online_softmax import Numerator, OnlineSoftmax, Score
    from mxhw.lut.pwl import FunctionUnit, UniformPwl
    from mxhw.lut.pwl_unit import LoadablePwlUnit, PwlUnit, ScaledCode, TableWord
    from mxhw.lut.reciprocal import Reciprocal, Scaled
    from mxhw.lut.rotation import Angle, Rotation
    from mxhw.lut.rsqrt import Rsqrt, Total
    from mxhw.lut.scaling import multi_range_values
    from mxhw.lut.sigmoid import FixedSilu, Product, Sigmoid
    from mxhw.lut.table import PwlTable, read_table, write_table
    from mxhw.lut.uniform import UniformTable, exp2_table, reciprocal_table, rsqrt_table, sine_table

# Some of the modules load PyTorch, which takes a second: each is imported when it is used.
_MODULES = {
    "exp2": ("Exp2", "Power"),
    "fitting": ("fit",),
    "float_unit": ("FloatPwlUnit", "FloatTableWord", "LoadableFloatPwlUnit"),
    "functions": ("FUNCTIONS", "Function"),
    "layer_norm": ("LayerNormFactor", "Moments"),
    "metric": ("mean_squared_error", "mean_squared_errors"),
    "module": ("PwlFunction",),
    "online_softmax": ("Numerator", "OnlineSoftmax", "Score"),
    "pwl": ("FunctionUnit", "UniformPwl"),
    "pwl_unit": ("LoadablePwlUnit", "PwlUnit", "ScaledCode", "TableWord"),
    "reciprocal": ("Reciprocal", "Scaled"),
    "rotation": ("Angle", "Rotation"),
    "rsqrt": ("Rsqrt", "Total"),
    "scaling": ("multi_range_values",),
    "sigmoid": ("FixedSilu", "Product", "Sigmoid"),
    "table": ("PwlTable", "read_table", "write_table"),
    "uniform": ("UniformTable", "exp2_table", "reciprocal_table", "rsqrt_table", "sine_table"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "FUNCTIONS",
    "Angle",
    "Exp2",
    "FixedSilu",
    "FloatPwlUnit",
    "FloatTableWord",
    "Function",
    "FunctionUnit",
    "LayerNormFactor",
    "LoadableFloatPwlUnit",
    "LoadablePwlUnit",
    "Moments",
    "Numerator",
    "OnlineSoftmax",
    "Power",
    "Product",
    "PwlFunction",
    "PwlTable",
    "PwlUnit",
    "Reciprocal",
    "Rotation",
    "Rsqrt",
    "Scaled",
    "ScaledCode",
    "Score",
    "Sigmoid",
    "TableWord",
    "Total",
    "UniformPwl",
    "UniformTable",
    "exp2_table",
    "fit",
    "mean_squared_error",
    "mean_squared_errors",
    "multi_range_values",
    "read_table",
    "reciprocal_table",
    "rsqrt_table",
    "sine_table",
    "write_table",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
