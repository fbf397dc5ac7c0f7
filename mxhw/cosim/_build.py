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

from mxhw.cosim import _bits, _split, _translate, _words
from mxhw.errors import BuildError, ToolError

__all__ = ["build_library", "default_build_dir", "find_compiler"]

#: CXXRTL_NDEBUG: an address beyond a memory reads 0, as it does in Amaranth's simulator.
FLAGS = ("-std=c++14", "-O2", "-fPIC", "-fno-semantic-interposition", "-w", "-DCXXRTL_NDEBUG")
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


def _digest(compiler: list[str], *parts: str) -> str:
    digest = hashlib.sha256()
    for part in (*parts, *compiler, _version(tuple(compiler)), *FLAGS, _yosys_version()):
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
    sources = [Path(module.__file__ or "") for module in (_bits, _split, _translate, _words)]
    translation = [path.read_text() for path in (_DRIVER, *sources)]
    key = _digest(compiler, text, *translation, str(level))
    library = folder / f"{key}.so"
    if library.exists():
        return library
    driver = _build_driver(compiler, include, folder)
    with tempfile.TemporaryDirectory(prefix=f"{key[:12]}-", dir=folder) as work:
        source = Path(work, "design.v" if verilog else "design.il")
        source.write_text(text)
        progress("Translating the design to C++ (Yosys)")
        translate = [sys.executable, "-m", "mxhw.cosim._translate"]
        command = [*translate, source.name, "design.cc", str(level)]
        _call(command, work, "Yosys could not translate the design to C++")
        units = _split.split(_words.rewrite(Path(work, "design.cc").read_text()))
        for name, unit in units.items():
            Path(work, name).write_text(unit)
        names = [name for name in units if name.endswith(".cc")]
        jobs = os.cpu_count() or 1
        noun = "unit" if len(names) == 1 else "units"
        progress(f"Compiling {len(names)} {noun} of C++ ({shlex.join(compiler)}, {jobs} at a time)")

        def compile_one(name: str) -> str:
            cold = len(names) > 1 and name == _split.COLD
            return _compile(compiler, include, name, work, *(["-O0"] if cold else []))

        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, names))
        result = Path(work, "design.so")
        command = [*compiler, *FLAGS, "-shared", *objects, str(driver), "-o", result.name]
        _call(command, work, "The linker failed")
        # Another process may build the same library: the last one to finish wins, atomically.
        os.replace(result, library)
    return library


def _build_driver(compiler: list[str], include: Path, folder: Path) -> Path:
    """The object file of the part that is the same for all designs."""
    text = _DRIVER.read_text()
    target = folder / f"driver-{_digest(compiler, text)}.o"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="driver-", dir=folder) as work:
            Path(work, _DRIVER.name).write_text(text)
            os.replace(Path(work, _compile(compiler, include, _DRIVER.name, work)), target)
    return target


def _compile(compiler: list[str], include: Path, name: str, work: str, *options: str) -> str:
    target = name.removesuffix(".cc") + ".o"
    command = [*compiler, *FLAGS, *options, "-I", str(include), "-c", name, "-o", target]
    _call(command, work, "The C++ compiler failed")
    return target


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
