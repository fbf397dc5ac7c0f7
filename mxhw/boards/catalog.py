"""Boards that designs can be built for, and what fits on them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from mxhw.errors import UserError

__all__ = [
    "BOARDS",
    "DEFAULT_BOARD",
    "Board",
    "Device",
    "Resources",
    "Toolchain",
    "check",
    "find_board",
]


class Toolchain(Enum):
    """How far a build goes for a board."""

    TRELLIS = "trellis"
    """To a bitstream, with tools from PyPI."""

    VENDOR = "vendor project only"
    """To a complete project for the vendor's tools, which PyPI does not have."""


@dataclass(frozen=True)
class Resources:
    """What a design takes of a device: lookup tables, flip-flops, block RAMs, multipliers.

    They are counted in the units of the device: a carry cell of an ECP5 counts as two lookup
    tables, and a block RAM is one of :attr:`Device.block_ram_name`.
    """

    luts: int = 0
    flip_flops: int = 0
    block_rams: int = 0
    multipliers: int = 0


@dataclass(frozen=True)
class Device:
    """A device and its capacity."""

    name: str
    family: str
    capacity: Resources
    lut_inputs: int
    block_ram_name: str
    block_ram_bits: int
    multiplier_name: str


@dataclass(frozen=True)
class Board:
    """A board of amaranth-boards.

    Attributes
    ----------
    name, title : str
        Name on the command line, and for people.
    module, platform : str
        Module of amaranth-boards, and the platform class in it.
    clock_hz : int
        Frequency of the oscillator.
    has_uart : bool
        The board has a serial port that the platform class knows.
    loader : str, optional
        The board's name for ``openFPGALoader -b``.
    design_clock_mhz : float
        Clock that designs are built for unless another is asked for.
    """

    name: str
    title: str
    module: str
    platform: str
    device: Device
    toolchain: Toolchain
    clock_hz: int
    has_uart: bool = True
    loader: str | None = None
    design_clock_mhz: float = 65.0

    @property
    def capacity(self) -> Resources:
        """Capacity of the board's device."""
        return self.device.capacity


def _ecp5(name: str, luts: int, block_rams: int, multipliers: int) -> Device:
    return Device(
        name=name,
        family="ecp5",
        capacity=Resources(luts, luts, block_rams, multipliers),
        lut_inputs=4,
        block_ram_name="DP16KD",
        block_ram_bits=18 * 1024,
        multiplier_name="MULT18X18D",
    )


def _series7(name: str, luts: int, block_rams: int, multipliers: int) -> Device:
    return Device(
        name=name,
        family="series7",
        capacity=Resources(luts, 2 * luts, block_rams, multipliers),
        lut_inputs=6,
        block_ram_name="RAMB36E1",
        block_ram_bits=36 * 1024,
        multiplier_name="DSP48E1",
    )


# Capacities are those that nextpnr uses: the 12F is the same die as the 25F.
_LFE5_12 = _ecp5("LFE5U-12F", 24288, 56, 28)
_LFE5_25 = _ecp5("LFE5U-25F", 24288, 56, 28)
_LFE5_45 = _ecp5("LFE5U-45F", 43848, 108, 72)
_LFE5_85 = _ecp5("LFE5U-85F", 83640, 208, 156)
_LFE5UM_45 = _ecp5("LFE5UM-45F", 43848, 108, 72)
_LFE5UM5G_45 = _ecp5("LFE5UM5G-45F", 43848, 108, 72)
_LFE5UM5G_85 = _ecp5("LFE5UM5G-85F", 83640, 208, 156)
_XC7A35T = _series7("XC7A35T", 20800, 50, 90)
_XC7A100T = _series7("XC7A100T", 63400, 135, 240)

DEFAULT_BOARD = "ulx3s-85f"
"""Board that is meant where none is named."""


def _trellis(name, title, module, platform, device, clock_hz, **options) -> Board:
    return Board(name, title, module, platform, device, Toolchain.TRELLIS, clock_hz, **options)


def _ulx3s(size: int, device: Device) -> Board:
    return _trellis(
        f"ulx3s-{size}f",
        f"Radiona ULX3S with {device.name}",
        "ulx3s",
        f"ULX3S_{size}F_Platform",
        device,
        25_000_000,
        loader="ulx3s",
    )


def _arty(size: int, device: Device) -> Board:
    return Board(
        f"arty-a7-{size}",
        f"Digilent Arty A7-{size}T",
        "arty_a7",
        f"ArtyA7_{size}Platform",
        device,
        Toolchain.VENDOR,
        100_000_000,
        loader=f"arty_a7_{size}t",
    )


_BOARDS = (
    _ulx3s(85, _LFE5_85),
    _ulx3s(45, _LFE5_45),
    _ulx3s(25, _LFE5_25),
    _ulx3s(12, _LFE5_12),
    _trellis(
        "ecpix5-85f",
        "LambdaConcept ECPIX-5 with LFE5UM5G-85F",
        "ecpix5",
        "ECPIX585Platform",
        _LFE5UM5G_85,
        100_000_000,
        loader="ecpix5",
        design_clock_mhz=95.0,
    ),
    _trellis(
        "ecpix5-45f",
        "LambdaConcept ECPIX-5 with LFE5UM5G-45F",
        "ecpix5",
        "ECPIX545Platform",
        _LFE5UM5G_45,
        100_000_000,
        loader="ecpix5",
    ),
    _trellis(
        "versa-ecp5",
        "Lattice ECP5 Versa",
        "versa_ecp5",
        "VersaECP5Platform",
        _LFE5UM_45,
        100_000_000,
        loader="ecp5_versa",
    ),
    _trellis(
        "orangecrab-85f",
        "OrangeCrab r0.2 with LFE5U-85F",
        "orangecrab_r0_2",
        "OrangeCrabR0_2_85FPlatform",
        _LFE5_85,
        48_000_000,
        has_uart=False,
        loader="orangeCrab",
    ),
    _trellis(
        "colorlight-5a-75b",
        "Colorlight 5A-75B V7.0",
        "colorlight_5a75b_r7_0",
        "Colorlight_5A75B_R70Platform",
        _LFE5_25,
        25_000_000,
        loader="colorlight",
    ),
    _trellis(
        "icepi-zero",
        "Icepi Zero v1.3",
        "icepi_zero",
        "IcepiZero1_3Platform",
        _LFE5_25,
        50_000_000,
        loader="icepi-zero",
    ),
    _arty(35, _XC7A35T),
    _arty(100, _XC7A100T),
)

BOARDS: dict[str, Board] = {board.name: board for board in _BOARDS}
"""The boards by name, the default one first."""


def find_board(name: str) -> Board:
    """Return the board of that name.

    Raises
    ------
    UserError
        If there is none; names the nearest ones.
    """
    board = BOARDS.get(name.lower().replace("_", "-"))
    if board is not None:
        return board
    near = difflib.get_close_matches(name.lower(), BOARDS, n=3, cutoff=0.5)
    hint = f"did you mean {_either(near)}?" if near else f"the boards are {_either(BOARDS)}"
    raise UserError(f"There is no board '{name}': {hint}")


def _either(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def check(board: Board, resources: Resources, *, needs_uart: bool = True) -> list[str]:
    """Return the reasons why a design cannot be built for a board; none if it can.

    Parameters
    ----------
    board : Board
        The board.
    resources : Resources
        What the design takes, in units of the board's device.
    needs_uart : bool
        The design talks to a host.
    """
    reasons = []
    if needs_uart and not board.has_uart:
        reasons.append("has no serial port to talk to the host")
    device = board.device
    kinds = (
        (f"{device.lut_inputs}-input lookup tables", "luts"),
        ("flip-flops", "flip_flops"),
        (f"block RAMs ({device.block_ram_name})", "block_rams"),
        (f"multipliers ({device.multiplier_name})", "multipliers"),
    )
    for title, field in kinds:
        need = getattr(resources, field)
        have = getattr(board.capacity, field)
        if need > have:
            reasons.append(
                f"has {have:,} {title}, but {need:,} are needed: {need - have:,} too few"
            )
    return reasons
