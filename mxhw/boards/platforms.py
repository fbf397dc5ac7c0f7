"""Amaranth platforms of the boards."""

import importlib
from typing import Any

from mxhw.boards.catalog import Board
from mxhw.errors import ToolError

__all__ = ["create_platform"]


def create_platform(board: Board) -> Any:
    """Return a new platform object for a board; each serves one build.

    Raises
    ------
    ToolError
        If amaranth-boards is missing or does not know the board.
    """
    try:
        module = importlib.import_module(f"amaranth_boards.{board.module}")
        platform = getattr(module, board.platform)
    except (ImportError, AttributeError) as error:
        raise ToolError(
            f"Board '{board.name}' needs the package amaranth-boards (0.0.21 or later): "
            f"pip install amaranth-boards"
        ) from error
    return platform()
