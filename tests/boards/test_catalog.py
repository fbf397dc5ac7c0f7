import re

import pytest

from mxhw.boards.catalog import (
    BOARDS,
    DEFAULT_BOARD,
    Resources,
    Toolchain,
    check,
    find_board,
)
from mxhw.boards.platforms import create_platform
from mxhw.boards.wrapper import achievable_hz
from mxhw.errors import ToolError, UserError


@pytest.mark.parametrize("name", BOARDS)
def test_board_agrees_with_its_platform(name):
    board = BOARDS[name]
    platform = create_platform(board)
    assert platform.default_clk_frequency == board.clock_hz
    assert platform.device.upper().removesuffix("I") == board.device.name.upper()
    assert (("uart", 0) in platform.resources) == board.has_uart
    wanted = board.design_clock_mhz * 1e6
    assert achievable_hz(board, round(wanted)) == pytest.approx(wanted, rel=0.01)
    if board.toolchain == Toolchain.TRELLIS:
        assert platform.toolchain == "Trellis"
        assert platform.family == board.device.family
    else:
        assert platform.toolchain == "Vivado"


def test_default_board():
    assert next(iter(BOARDS)) == DEFAULT_BOARD
    assert find_board("ULX3S_85F") is BOARDS["ulx3s-85f"]


def test_unknown_board():
    with pytest.raises(
        UserError, match=r"^There is no board 'ulx3s': did you mean 'ulx3s-\d+f', .* or '.*'\?$"
    ):
        find_board("ulx3s")
    with pytest.raises(
        UserError, match=r"^There is no board 'xyzzy': the boards are 'ulx3s-85f', .*'arty-a7-100'$"
    ):
        find_board("xyzzy")


def test_missing_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "amaranth_boards.ulx3s", None)
    with pytest.raises(
        ToolError,
        match=re.escape(
            "Board 'ulx3s-85f' needs the package amaranth-boards (0.0.21 or later): "
            "pip install amaranth-boards"
        ),
    ):
        create_platform(BOARDS["ulx3s-85f"])


def test_check():
    design = Resources(luts=25_000, flip_flops=20_000, block_rams=190, multipliers=128)
    assert check(BOARDS["ulx3s-85f"], design) == []
    assert check(BOARDS["orangecrab-85f"], design) == ["has no serial port to talk to the host"]
    assert check(BOARDS["orangecrab-85f"], design, needs_uart=False) == []
    assert check(BOARDS["ulx3s-25f"], design) == [
        "has 24,288 4-input lookup tables, but 25,000 are needed: 712 too few",
        "has 56 block RAMs (DP16KD), but 190 are needed: 134 too few",
        "has 28 multipliers (MULT18X18D), but 128 are needed: 100 too few",
    ]
    assert check(BOARDS["arty-a7-100"], Resources(block_rams=136)) == [
        "has 135 block RAMs (RAMB36E1), but 136 are needed: 1 too few"
    ]
