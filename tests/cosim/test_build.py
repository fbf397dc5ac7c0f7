# amaranth: UnusedElaboratable=no
import importlib.util
import os
import random
import stat
import sys

import pytest

from mxhw.cosim import _build, _split
from mxhw.cosim._design import Design
from mxhw.cosim.cxxrtl import emit_rtlil
from mxhw.cosim.engine import make_engine
from mxhw.errors import BuildError, ToolError
from tests.cosim.cosim_units import Buffer, Mac, Queue, Table


def run(component, build_dir, payloads, count, **options):
    with make_engine(component, "cxxrtl", build_dir=build_dir, **options) as sim:
        sim.put("i", payloads, valid_probability=0.7)
        return sim.get("o", count, ready_probability=0.7), sim.cycles, sim.peek("o.payload")


def test_second_build_uses_cache(tmp_path):
    folder = tmp_path / "cache"
    steps = []
    first = run(Buffer(5), folder, range(20), 20, on_progress=steps.append)
    assert [step.split(" (")[0] for step in steps] == [
        "Converting the design to RTLIL",
        "Translating the design to C++",
        "Compiling 1 unit of C++",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.glob("*.so"))) == 1
    assert len(list(folder.iterdir())) == 2  # the other one is the driver of all designs
    steps.clear()
    assert run(Buffer(5), folder, range(20), 20, on_progress=steps.append) == first
    assert steps == ["Converting the design to RTLIL"]


def test_contents_of_memories_need_no_build(tmp_path):
    rows = run(Table(16, [1, 2, 3, 4]), tmp_path, range(4), 4)[0]
    assert rows == [1, 2, 3, 4]
    assert run(Table(16, [5, 6, 7, 8]), tmp_path, range(4), 4)[0] == [5, 6, 7, 8]
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_rtlil_has_no_contents_and_design_keeps_them():
    component = Table(16, [0xABC, 2, 3])
    design = Design(component)
    assert "meminit" not in emit_rtlil(design)
    assert list(design.find_memory("table")._data._init._raw) == [0xABC, 2, 3]


def test_split_design_gives_the_same(tmp_path, monkeypatch):
    rng = random.Random(3)
    rows = [rng.getrandbits(128) for _ in range(40)]
    whole = run(Mac(8), tmp_path, rows, 10)
    monkeypatch.setattr(_split, "SMALL_CHARACTERS", 0)
    monkeypatch.setattr(_split, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(_split, "UNIT_CHARACTERS", 8000)
    folder = tmp_path / "split"
    steps = []
    assert run(Mac(8), folder, rows, 10, on_progress=steps.append) == whole
    assert steps[-1].startswith("Compiling ")
    assert not steps[-1].startswith("Compiling 1 unit")
    with make_engine(Queue(16), "cxxrtl", build_dir=folder) as sim:
        sim.probe("front.i")
        sim.put("i", range(30), valid_probability=0.5)
        assert sim.get("o", 30, ready_probability=0.5) == list(range(30))
        assert sim.take("front.i") == list(range(30))


def test_compiler_order(monkeypatch, tmp_path):
    for name in ("g++", "clang++"):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert _build.find_compiler() == [str(tmp_path / "g++")]
    monkeypatch.setenv("CXX", "clang++ -m64")
    assert _build.find_compiler() == ["clang++", "-m64"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = r"^C\+\+ compiler 'no-such-compiler' named by \$CXX was not found$"
    with pytest.raises(ToolError, match=message):
        _build.find_compiler()


def test_no_compiler_names_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        r"^No C\+\+ compiler was found for simulation in native code: install one, or the Python "
        r"package 'ziglang' \(pip install ziglang\)$"
    )
    with pytest.raises(ToolError, match=message):
        make_engine(Buffer(3), "cxxrtl", build_dir=tmp_path)


def test_failing_compiler_shows_its_output(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho out of order\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    message = r"^The C\+\+ compiler failed \(exit status 3\):\nout of order$"
    with pytest.raises(BuildError, match=message):
        make_engine(Buffer(3), "cxxrtl", build_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_zig(monkeypatch, tmp_path):
    pytest.importorskip("ziglang")
    monkeypatch.setattr(_build.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert _build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]
    # The cache of the compiler itself, where it takes its place from the environment.
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", os.fspath(tmp_path / "zig"))
    assert run(Buffer(5), tmp_path / "cache", range(20), 20)[0] == list(range(20))
