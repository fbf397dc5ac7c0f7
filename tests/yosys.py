"""Scripts for Yosys in tests."""

import subprocess
import sys
from pathlib import Path

__all__ = ["run_yosys"]


def run_yosys(folder: Path, script: str) -> tuple[int, str]:
    """Run a script of a folder, in a process of its own: exit status and output."""
    result = subprocess.run(
        [sys.executable, "-m", "mxhw.compiler._yosys", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr
