"""From a top level to a bitstream: plan, synthesis, place and route, packing.

Platforms, constraints and commands are those of Amaranth's build plans; this module runs the
commands one by one with tools from PyPI, reports how far they are, and reads their results. Every
step takes the build folder, in which its results appear only when they are complete: the tools work
in a private folder inside it.
"""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxhw.boards.catalog import Board, Resources, Toolchain
from mxhw.boards.platforms import create_platform
from mxhw.compiler._tools import (
    OnProgress,
    Progress,
    ProgressParser,
    being_prepared,
    find_tool,
    run_tool,
)
from mxhw.compiler.netlist import improve
from mxhw.compiler.netlist.cells import UnitOf, assign_cells, count_by_unit
from mxhw.compiler.netlist.document import read_netlist, top_module
from mxhw.compiler.netlist.floorplan import Floorplan, read_floorplan
from mxhw.compiler.netlist.resources import (
    count_cells,
    resources_of_cells,
    resources_of_utilisation,
)
from mxhw.compiler.netlist.timing import TimingReport, read_route_report
from mxhw.dataflow.copies import COPY_ATTRIBUTE
from mxhw.elaboration import fast_elaboration
from mxhw.errors import BuildError, UserError

__all__ = [
    "PLACE_AND_ROUTE_OPTIONS",
    "OnProgress",
    "Progress",
    "Routing",
    "Synthesis",
    "TimingReport",
    "being_prepared",
    "build_bitstream",
    "make_plan",
    "pack_bitstream",
    "place_and_route",
    "synthesise",
    "write_vendor_project",
]

TOP = "top"
"""Name of the top level, which names the files."""

PREPARE_SCRIPT = "\n".join(
    (
        "hierarchy -top top",
        "proc",
        "flatten",
        "opt_clean -purge",
        f"select -set copies w:* a:{COPY_ATTRIBUTE} %i %ci1:+[Q] c:* %i",
        "setattr -set keep 1 @copies",
    )
)
"""What Yosys does before synthesis: the names of unread fields (``payload[0]``) collide with those
that technology mapping gives to single bits, and end it; and registers that are copies on purpose
must stay."""

PLACE_AND_ROUTE_OPTIONS = ("--placer", "static", "--router", "router2")
"""Options that were found to be the fastest for a design that fills the block RAMs: the default
placer takes twice as long, and router1 several times as long."""


_PATIENCE = (
    (
        re.compile(r"^Info: iter=(\d+) steplen="),
        1000,
        "the cells of the placement still lie on each other",
    ),
    (
        re.compile(r"^Info:\s+iter=(\d+) wires=\d+ overused=[1-9]"),
        250,
        "wires of the routing are still used twice",
    ),
)
"""Lines of nextpnr that count iterations, how many it gets, and what is wrong then: placements take
some 600 and routings some 60, and neither ends by itself."""


@dataclass(frozen=True)
class Synthesis:
    """Result of a synthesis: the netlist, its cells by type, what they take, and the time.

    If units were asked for, also what each of them takes.
    """

    netlist: Path
    cells: dict[str, int]
    resources: Resources
    seconds: float
    units: dict[str, Resources] | None = None


@dataclass(frozen=True)
class Routing:
    """Result of place and route: the configuration, what the design takes, its timing, the time.

    If units were asked for, also where they were placed.
    """

    configuration: Path
    utilisation: dict[str, tuple[int, int]]
    resources: Resources
    timing: TimingReport
    seconds: float
    floorplan: Floorplan | None = None


def make_plan(top: Any, board: Board, **overrides: Any) -> Any:
    """Return Amaranth's build plan of a top level for a board; needs no tools but Amaranth's own.

    Parameters
    ----------
    top : :class:`amaranth.hdl.Elaboratable`
        The top level; it requests its pins from the platform.
    board : Board
        The board.
    overrides
        Overrides of the platform, such as ``synth_opts``.
    """
    platform = create_platform(board)
    overrides = {"script_after_read": PREPARE_SCRIPT, **overrides}
    with fast_elaboration():
        return platform.build(top, name=TOP, do_build=False, emit_src=False, **overrides)


def synthesise(
    plan: Any,
    build_dir: str | os.PathLike[str],
    *,
    unit_of: UnitOf | None = None,
    on_progress: OnProgress | None = None,
) -> Synthesis:
    """Synthesise a plan for an ECP5: writes ``top.il``, ``top.json`` and ``synthesis.log``.

    Parameters
    ----------
    plan
        The plan of the design.
    unit_of : callable, optional
        Maps the hierarchy of a name to a unit: the cells are then also counted by unit.

    Raises
    ------
    ToolError
        If Yosys is missing.
    BuildError
        If Yosys reports an error.
    """
    started = time.monotonic()
    tool = find_tool("yosys")
    files = {name: text for name, text in plan.files.items() if not name.startswith("build_")}
    with _workspace(build_dir, files) as work:
        run_tool(
            [*tool.command, f"{TOP}.ys"],
            tool=tool,
            step="synthesis",
            cwd=work.path,
            log=work.path / "synthesis.log",
            parser=ProgressParser("synthesis", on_progress),
        )
        netlist = work.path / f"{TOP}.json"
        document = read_netlist(netlist)
        module = top_module(document)
        improve(module, _die(plan))
        netlist.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
        cells = count_cells(module)
        units = None
        if unit_of is not None:
            by_unit = count_by_unit(module, assign_cells(module, unit_of))
            units = {name: resources_of_cells(counts) for name, counts in by_unit.items()}
        work.keep(f"{TOP}.il", f"{TOP}.json", "synthesis.log")
    return Synthesis(
        netlist=Path(build_dir) / f"{TOP}.json",
        cells=cells,
        resources=resources_of_cells(cells),
        seconds=time.monotonic() - started,
        units=units,
    )


def place_and_route(
    plan: Any,
    build_dir: str | os.PathLike[str],
    *,
    options: tuple[str, ...] = PLACE_AND_ROUTE_OPTIONS,
    seed: int = 1,
    unit_of: UnitOf | None = None,
    on_progress: OnProgress | None = None,
) -> Routing:
    """Place and route ``top.json`` of the build folder.

    Writes ``top.config``, ``top.lpf``, ``timing.json`` (nextpnr's report) and ``route.log``. A
    clock that is too slow is not an error: :attr:`TimingReport.met` tells.

    Parameters
    ----------
    plan
        The plan of the design: its constraints, device and package are used.
    options : tuple of str
        Options for nextpnr.
    seed : int
        Seed of the placer.
    unit_of : callable, optional
        Maps the hierarchy of a name to a unit: the result then says where the units are, if the
        clocks are met.

    Raises
    ------
    UserError
        If the design has not been synthesised.
    ToolError
        If nextpnr is missing.
    StuckError
        If nextpnr was ended because it got no further.
    BuildError
        If nextpnr reports an error, such as a design that does not fit.
    """
    started = time.monotonic()
    netlist = Path(build_dir) / f"{TOP}.json"
    if not netlist.is_file():
        raise UserError(f"There is no netlist '{netlist}' to place: synthesise first")
    tool = find_tool("nextpnr-ecp5")
    arguments = _without(_command(plan, "nextpnr-ecp5"), flags=("--quiet",), options=("--log",))
    with _workspace(build_dir, {f"{TOP}.lpf": plan.files[f"{TOP}.lpf"]}) as work:
        work.borrow(netlist)
        run_tool(
            [
                *tool.command,
                *arguments,
                "--timing-allow-fail",
                "--seed",
                str(seed),
                "--report",
                "timing.json",
                *(() if unit_of is None else ("--write", "placed.json")),
                *options,
            ],
            tool=tool,
            step="place and route",
            cwd=work.path,
            log=work.path / "route.log",
            parser=ProgressParser("place and route", on_progress),
            stuck=_out_of_patience,
        )
        utilisation, timing = read_route_report(work.path / "timing.json")
        # Of a placement that is too slow nothing is kept, and reading it takes seconds.
        floorplan = None
        if unit_of is not None and timing.met:
            floorplan = read_floorplan(work.path / "placed.json", unit_of)
        work.keep(f"{TOP}.config", f"{TOP}.lpf", "timing.json", "route.log")
    return Routing(
        configuration=Path(build_dir) / f"{TOP}.config",
        utilisation=utilisation,
        resources=resources_of_utilisation(utilisation),
        timing=timing,
        seconds=time.monotonic() - started,
        floorplan=floorplan,
    )


def _out_of_patience(line: str) -> str | None:
    for pattern, most, what in _PATIENCE:
        match = pattern.search(line)
        if match is not None and int(match[1]) >= most:
            return f"after {match[1]} iterations {what}"
    return None


def pack_bitstream(
    plan: Any, build_dir: str | os.PathLike[str], *, on_progress: OnProgress | None = None
) -> Path:
    """Pack ``top.config`` of the build folder: write ``top.bit``, compressed, and return its path.

    Raises
    ------
    UserError
        If the design has not been placed and routed.
    ToolError
        If ecppack is missing.
    BuildError
        If ecppack reports an error.
    """
    configuration = Path(build_dir) / f"{TOP}.config"
    if not configuration.is_file():
        raise UserError(f"There is no configuration '{configuration}' to pack: place it first")
    tool = find_tool("ecppack")
    arguments = _without(
        _command(plan, "ecppack"), flags=("--compress", "--verbose"), options=("--svf",)
    )
    with _workspace(build_dir, {}) as work:
        work.borrow(configuration)
        run_tool(
            [*tool.command, "--compress", *arguments],
            tool=tool,
            step="packing",
            cwd=work.path,
            log=work.path / "pack.log",
            parser=ProgressParser("packing", on_progress),
        )
        work.keep(f"{TOP}.bit")
    return Path(build_dir) / f"{TOP}.bit"


def build_bitstream(
    top: Any,
    board: Board,
    build_dir: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> tuple[Synthesis, Routing, Path]:
    """Run all steps for a board that PyPI has the tools for.

    Raises
    ------
    UserError
        If the board's device needs the vendor's tools.
    ToolError, BuildError
        As the steps.
    """
    if board.toolchain != Toolchain.TRELLIS:
        raise UserError(
            f"Board '{board.name}' needs the vendor's tools: only a project can be written for it"
        )
    plan = make_plan(top, board)
    synthesis = synthesise(plan, build_dir, on_progress=on_progress)
    routing = place_and_route(plan, build_dir, on_progress=on_progress)
    return synthesis, routing, pack_bitstream(plan, build_dir, on_progress=on_progress)


def write_vendor_project(
    plan: Any,
    build_dir: str | os.PathLike[str],
    *,
    estimate: bool = True,
    on_progress: OnProgress | None = None,
) -> tuple[list[Path], Resources | None]:
    """Write the complete project for the vendor's tools: Verilog, constraints and scripts.

    Returns the files, and an estimate of what the design takes: that of Yosys' own synthesis for
    7-series devices, not of the vendor's.

    Parameters
    ----------
    plan
        The plan of the design.
    estimate : bool
        Also synthesise the design.

    Raises
    ------
    ToolError, BuildError
        If the estimate is wanted, and Yosys is missing or reports an error.
    """
    script = (
        f"read_verilog {TOP}.v\n{PREPARE_SCRIPT}\n"
        f"synth_xilinx -family xc7 -abc9 -noiopad -top {TOP}\n"
        f"write_json {TOP}.json\n"
    )
    resources = None
    with _workspace(build_dir, {**plan.files, "estimate.ys": script}) as work:
        names = list(plan.files)
        if estimate:
            tool = find_tool("yosys")
            run_tool(
                [*tool.command, "estimate.ys"],
                tool=tool,
                step="synthesis",
                cwd=work.path,
                log=work.path / "estimate.log",
                parser=ProgressParser("synthesis", on_progress),
            )
            module = top_module(read_netlist(work.path / f"{TOP}.json"))
            resources = resources_of_cells(count_cells(module))
            names.append("estimate.log")
        work.keep(*names)
    return [Path(build_dir) / name for name in plan.files], resources


# Commands of a plan.


def _command(plan: Any, tool: str) -> list[str]:
    commands = json.loads(plan.files[f"build_{TOP}.json"])["commands"]
    for name, *arguments in commands:
        if name == tool:
            return arguments
    raise UserError(f"The build plan has no command for {tool}: the board has other tools")


def _die(plan: Any) -> str:
    """nextpnr's name of the die that a plan is for."""
    names = (argument[2:] for argument in _command(plan, "nextpnr-ecp5"))
    return next((name for name in names if name.endswith("k")), "")


def _without(
    arguments: list[str], *, flags: tuple[str, ...], options: tuple[str, ...]
) -> list[str]:
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if argument in options:
            next(rest, None)
        elif argument not in flags:
            kept.append(argument)
    return kept


# The build folder.


class _Workspace:
    def __init__(self, build_dir: Path, path: Path) -> None:
        self._build_dir = build_dir
        self.path = path

    def borrow(self, file: Path) -> None:
        """Make a file of the build folder available to the tools."""
        try:
            os.link(file, self.path / file.name)
        except OSError:
            shutil.copyfile(file, self.path / file.name)

    def keep(self, *names: str) -> None:
        """Move results to the build folder, each at once."""
        for name in names:
            source = self.path / name
            if not source.is_file():
                raise BuildError(f"The tool ended well, but did not write '{name}'")
            os.replace(source, self._build_dir / name)


@contextmanager
def _workspace(
    build_dir: str | os.PathLike[str], files: dict[str, str | bytes]
) -> Iterator[_Workspace]:
    root = Path(build_dir)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".mxhw-", dir=root, ignore_cleanup_errors=True
    ) as folder:
        work = _Workspace(root, Path(folder))
        for name, text in files.items():
            content = text.encode() if isinstance(text, str) else text
            (work.path / name).write_bytes(content)
        try:
            yield work
        except BuildError:
            # What the tool said is worth keeping.
            for log in work.path.glob("*.log"):
                os.replace(log, root / log.name)
            raise
