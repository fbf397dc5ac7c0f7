"""Files that some tests read and that do not come with the sources."""

import os
from pathlib import Path

import pytest

__all__ = ["data_file"]


def data_file(name: str) -> Path:
    """The file of that name in the folder of the environment variable MXHW_DATA, or a skip."""
    folder = os.environ.get("MXHW_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"needs the environment variable MXHW_DATA: a folder with {name}")
    return Path(folder) / name
