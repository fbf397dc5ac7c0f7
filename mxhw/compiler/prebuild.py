"""The simulator's compilation, started early in a process of its own.

Native code for the whole design takes longer than any other step before synthesis. It depends on
the plan alone, so a second core can begin with it while the golden model runs:
``python -m mxhw.compiler.prebuild SETTINGS`` (JSON) leaves the compiled simulator in the cache and
prints its path. If it fails, the simulation step compiles the design itself and tells why that
fails.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from mxhw.compiler.context import Context, Settings
from mxhw.compiler.progress import Progress, SilentProgress

__all__ = ["Prebuild", "main"]

_POLL_SECONDS = 0.2


class Prebuild:
    """A running compilation; use it as a context manager, which ends it.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        text = json.dumps(dataclasses.asdict(settings))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "mxhw.compiler.prebuild", text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
        )
        self._output: str | None = None

    def wait(self, progress: Progress) -> Path | None:
        """Wait for its end; the simulator's path, or None if it failed."""
        if self._process.poll() is None:
            progress.update("compiling the simulator (C++)")
        while self._process.poll() is None:
            time.sleep(_POLL_SECONDS)
        if self._output is None:
            self._output = self._process.communicate()[0]
        return Path(self._output.strip()) if self._process.returncode == 0 else None

    def stop(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()


def main(text: str) -> None:
    """Build the simulator of the design that the settings describe."""
    from mxhw.compiler.timeline import probe_names
    from mxhw.cosim._build import build_library
    from mxhw.cosim._design import Design
    from mxhw.cosim.cxxrtl import emit_rtlil

    context = Context(Settings(**json.loads(text)), Path(), SilentProgress())
    design = Design(context.component(), probe_names(context.decode))
    sys.stdout.write(f"{build_library(emit_rtlil(design), inner_signals=False)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
