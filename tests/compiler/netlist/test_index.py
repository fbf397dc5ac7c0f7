import copy

from mxhw.compiler.netlist.index import Index
from tests.compiler.netlist.gates import ccu2c, flip_flop, lut4, module


def cells():
    return {
        "table": lut4(0x8000, [1, 2, "0", 1], output=50),
        "register": flip_flop(50, di=50),
        "adder": ccu2c([0x96AA, 0x96AA], [50, 3, "1", "1", 7, 4, "1", "1"]),
    }


def contents(index):
    readers = {bit: sorted(pins) for bit, pins in index.readers.items() if pins}
    return dict(index.drivers), readers, index.ports


def test_drivers_readers_and_ports():
    index = Index(module(cells(), outputs=[80, "1"]))
    assert index.drivers == {
        50: ("table", "Z"),
        7: ("register", "Q"),
        80: ("adder", "S0"),
        81: ("adder", "S1"),
        82: ("adder", "COUT"),
    }
    assert index.readers == {
        1: [("table", "A"), ("table", "D")],
        2: [("table", "B")],
        3: [("adder", "B0")],
        4: [("adder", "B1")],
        6: [("register", "CLK")],
        7: [("adder", "A1")],
        50: [("register", "DI"), ("register", "LSR"), ("adder", "A0")],
    }
    assert index.ports == {80}
    assert [bit for bit in (*range(1, 9), 50, 80, 81, "1") if index.is_read(bit)] == [
        *(1, 2, 3, 4, 6, 7),
        *(50, 80),
    ]


def test_a_port_of_both_directions_reads():
    pad = {"type": "IO", "port_directions": {"P": "inout"}, "connections": {"P": [1, "x"]}}
    index = Index(module({"pad": pad}))
    assert index.readers == {1: [("pad", "P")]}
    assert index.drivers == {}


def test_changes_leave_the_index_of_the_changed_module():
    changed = module(cells())
    index = Index(changed)
    index.connect("register", "LSR", [1])
    index.connect("adder", "A0", ["1"])
    index.connect("table", "M", [2])
    # The outputs of two bits change places, by way of both at one.
    index.connect("adder", "S0", [81], output=True)
    index.connect("adder", "S1", [80], output=True)
    assert contents(index) == contents(Index(copy.deepcopy(changed)))
    assert changed["cells"]["table"]["port_directions"]["M"] == "input"
    index.remove("table")
    assert set(changed["cells"]) == {"register", "adder"}
    assert contents(index) == contents(Index(changed))
