"""Shape and constants of a Llama model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

__all__ = ["LlamaConfig"]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape and constants of a Llama model.

    Parameters
    ----------
    vocabulary_size : int
        Number of tokens.
    dim : int
        Width of the residual stream.
    hidden : int
        Width of the feed-forward network.
    layers : int
        Number of blocks.
    heads : int
        Number of query heads; a multiple of ``kv_heads``.
    kv_heads : int
        Number of key/value heads.
    head_size : int
        Width of a head; even, for the rotary pairs.
    context : int
        Largest number of positions.
    rope_theta : float
        Base of the rotary angles.
    norm_epsilon : float
        Added to the mean square in every norm.
    tied : bool
        Whether the output projection is the embedding table.
    qkv_bias : bool
        Whether the projections to queries, keys and values add a bias.

    Raises
    ------
    TypeError
        If a field has the wrong type.
    ValueError
        If a field is out of range or two fields contradict each other.
    """

    vocabulary_size: int = 512
    dim: int = 64
    hidden: int = 160
    layers: int = 5
    heads: int = 2
    kv_heads: int = 1
    head_size: int = 32
    context: int = 256
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            label = field.name.replace("_", " ").replace("kv", "key/value").capitalize()
            if field.type == "bool":
                if not isinstance(value, bool):
                    raise TypeError(f"{label} must be a boolean, not {value!r}")
            elif field.type == "int":
                if not isinstance(value, int) or isinstance(value, bool):
                    raise TypeError(f"{label} must be an integer, not {value!r}")
                if value <= 0:
                    raise ValueError(f"{label} must be positive, not {value!r}")
            else:
                if not isinstance(value, (int, float)) or isinstance(value, bool):
                    raise TypeError(f"{label} must be a number, not {value!r}")
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{label} must be positive and finite, not {value!r}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"Number of heads must be a multiple of the number of key/value heads "
                f"({self.kv_heads}), not {self.heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"Head size must be even, not {self.head_size}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LlamaConfig:
        """Make a configuration from a dictionary such as :meth:`to_dict` returns.

        Parameters
        ----------
        fields : dict
            Values by field name; fields left out have their defaults.

        Raises
        ------
        ValueError
            If a name is not a field's, or a value is out of range.
        TypeError
            If a value has the wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise ValueError(f"Field {name!r} is not one of a Llama configuration")
        return cls(**fields)
