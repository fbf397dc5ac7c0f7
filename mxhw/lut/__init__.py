"""Units that look functions up: powers of two, reciprocals, inverse roots."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxhw.lut.exp2 import Exp2, Power
    from mxhw.lut.pwl import FunctionUnit, UniformPwl
    from mxhw.lut.reciprocal import Reciprocal, Scaled
    from mxhw.lut.rsqrt import Rsqrt, Total
    from mxhw.lut.uniform import UniformTable, exp2_table, reciprocal_table, rsqrt_table

# Some of the modules load PyTorch, which takes a second: each is imported when it is used.
_MODULES = {
    "exp2": ("Exp2", "Power"),
    "pwl": ("FunctionUnit", "UniformPwl"),
    "reciprocal": ("Reciprocal", "Scaled"),
    "rsqrt": ("Rsqrt", "Total"),
    "uniform": ("UniformTable", "exp2_table", "reciprocal_table", "rsqrt_table"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Exp2",
    "FunctionUnit",
    "Power",
    "Reciprocal",
    "Rsqrt",
    "Scaled",
    "Total",
    "UniformPwl",
    "UniformTable",
    "exp2_table",
    "reciprocal_table",
    "rsqrt_table",
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
