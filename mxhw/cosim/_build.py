"""From a design to a shared library: translation, compilation and the cache of the results."""

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mxhw.cosim import _split, _translate
from mxhw.errors import BuildError, ToolError

__all__ = ["build_library", "default_build_dir", "find_compiler"]

FLAGS = ("-std=c++14", "-O3", "-fPIC", "-shared", "-fno-semantic-interposition", "-w")
_DRIVER = Path(__file__).with_name("driver.cc")


def default_build_dir() -> Path:
    """Return the user's cache folder for built simulators, made with mode 0700."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mxhw" / "cosim"


def find_compiler() -> list[str]:
    """Return the command of a C++ compiler.

    The first found of ``$CXX``, ``c++``, ``g++``, ``clang++`` and the one in package ``ziglang``.

    Raises
    ------
    ToolError
        If there is none.
    """
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise ToolError(f"C++ compiler '{named[0]}' named by $CXX was not found")
        return named
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    raise ToolError(
        "No C++ compiler was found for simulation in native code: install one, or the Python "
        "package 'ziglang' (pip install ziglang)"
    )


def runtime_include() -> Path:
    """Return the folder of the CXXRTL headers that come with Yosys.

    Raises
    ------
    ToolError
        If package ``pyosys`` is not installed.
    """
    spec = importlib.util.find_spec("pyosys")
    if spec is None or spec.origin is None:
        raise ToolError(
            "Yosys was not found for simulation in native code: install the Python package "
            "'pyosys' (pip install pyosys)"
        )
    return Path(spec.origin).parent / "share" / "include" / "backends" / "cxxrtl" / "runtime"


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return result.stdout


def _digest(text: str, compiler: list[str], level: int) -> str:
    digest = hashlib.sha256()
    translation = [Path(module.__file__ or "") for module in (_split, _translate)]
    for part in (
        text,
        *(path.read_text() for path in (_DRIVER, *translation)),
        *compiler,
        _version(tuple(compiler)),
        *FLAGS,
        str(level),
        _yosys_version(),
    ):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


@functools.cache
def _yosys_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pyosys")
    except PackageNotFoundError:
        return ""


def build_library(
    text: str,
    build_dir: str | os.PathLike[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
    *,
    inner_signals: bool = True,
    verilog: bool = False,
) -> Path:
    """Build the simulator of a design and return its shared library.

    The library is kept under the SHA-256 of all that it is made of, and built only once.

    Parameters
    ----------
    text : str
        The design in RTLIL, without the contents of its memories, or in Verilog, with them.
    build_dir : path, optional
        Folder of the results; by default a private cache folder of the user.
    on_progress : callable, optional
        Called with a line of text before each slow step.
    inner_signals : bool
        Keep inner signals reachable by name; costs most of the compiler's time in a large design.
    verilog : bool
        The text is Verilog.

    Raises
    ------
    ToolError
        If there is no C++ compiler or no Yosys.
    BuildError
        If Yosys or the compiler fails; the message ends with their output.
    """
    progress = on_progress or (lambda text: None)
    compiler = find_compiler()
    include = runtime_include()
    folder = Path(build_dir) if build_dir is not None else default_build_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    level = _translate.INNER_LEVEL if inner_signals else _translate.STATE_LEVEL
    key = _digest(text, compiler, level)
    library = folder / f"{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(prefix=f"{key[:12]}-", dir=folder) as work:
        source = Path(work, "design.v" if verilog else "design.il")
        source.write_text(text)
        progress("Translating the design to C++ (Yosys)")
        translate = [sys.executable, "-m", "mxhw.cosim._translate"]
        command = [*translate, source.name, "design.cc", str(level)]
        _call(command, work, "Yosys could not translate the design to C++")
        units = _split.split(Path(work, "design.cc").read_text(), _DRIVER.read_text())
        jobs = os.cpu_count() or 1
        sources = [name for name in units if name.endswith(".cc")]
        noun = "unit" if len(sources) == 1 else "units"
        progress(
            f"Compiling {len(sources)} {noun} of C++ ({shlex.join(compiler)}, {jobs} at a time)"
        )
        for name, unit in units.items():
            Path(work, name).write_text(unit)
        result = Path(work, "design.so")
        if len(sources) == 1:
            command = [*compiler, *FLAGS, "-I", str(include), *sources, "-o", result.name]
            _call(command, work, "The C++ compiler failed")
        else:
            _compile_units(compiler, include, sources, work, result, jobs)
        # Another process may build the same library: the last one to finish wins, atomically.
        os.replace(result, library)
    return library


def _compile_units(
    compiler: list[str], include: Path, sources: list[str], work: str, result: Path, jobs: int
) -> None:
    flags = [flag for flag in FLAGS if flag != "-shared"]

    def compile_one(name: str) -> str:
        target = name.removesuffix(".cc") + ".o"
        command = [*compiler, *flags, "-I", str(include), "-c", name, "-o", target]
        _call(command, work, "The C++ compiler failed")
        return target

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sources))
    command = [*compiler, *FLAGS, *objects, "-o", result.name]
    _call(command, work, "The linker failed")


def _call(command: list[str], work: str, failure: str) -> None:
    result = subprocess.run(
        command,
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        tail = "\n".join(result.stdout.strip().splitlines()[-12:])
        raise BuildError(f"{failure} (exit status {result.returncode}):\n{tail}")
