# amaranth: UnusedElaboratable=no
import random
import re

import pytest
from amaranth.hdl import signed

from mxhw.cosim.engine import SimulationTimeout, StreamContractError, make_engine
from mxhw.errors import UserError
from tests.cosim.cosim_units import (
    Adder,
    Asserts,
    Broken,
    Buffer,
    Crossed,
    Hides,
    Mac,
    Queue,
    Table,
)
from tests.support import check_stream, measure_latency_and_interval, run_stream, unpack_lanes

ENGINES = ("pysim", "cxxrtl")


def mac_reference(rows, length):
    results, total = [], 0
    for index, row in enumerate(rows):
        lanes = unpack_lanes(row, 8, 64, signed=True)
        total += sum(a * b for a, b in zip(lanes[:32], lanes[32:], strict=True))
        if index % length == length - 1:
            results.append(total & 0xFFFF_FFFF)
            total = 0
    return results


@pytest.mark.parametrize("stalls", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.4), (0.6, 0.6)])
def test_engines_agree_on_queue(stalls):
    logs = []
    for engine in ENGINES:
        with make_engine(Queue(16), engine) as sim:
            sim.probe("front.o")
            sim.put("i", range(100, 180), valid_probability=stalls[0], seed=3)
            rows = sim.get("o", 50, ready_probability=stalls[1], seed=4)
            sim.run(7)
            sim.reset()
            sim.put("i", range(10))
            rows += sim.get("o", 10)
            logs.append(
                (
                    rows,
                    sim.cycles,
                    sim.take("front.o"),
                    *(sim.transfer_cycles(name) for name in ("i", "o", "front.o")),
                )
            )
    assert logs[0] == logs[1]
    assert logs[0][0] == [*range(100, 150), *range(10)]


def test_engines_agree_on_pipelined_mac():
    rng = random.Random(1)
    rows = [rng.getrandbits(512) for _ in range(64)]
    logs = []
    for engine in ENGINES:
        with make_engine(Mac(), engine) as sim:
            sim.put("i", rows, valid_probability=0.7, seed=1)
            out = sim.get("o", 16, ready_probability=0.5, seed=2)
            logs.append((out, sim.cycles, sim.transfer_cycles("o")))
    assert logs[0] == logs[1]
    assert logs[0][0] == mac_reference(rows, 4)


def test_same_seed_stalls_streams_differently(engine):
    with make_engine(Queue(8), engine) as sim:
        sim.put("i", range(100), valid_probability=0.5, seed=9)
        sim.get("o", 100, ready_probability=0.5, seed=9)
        waits = [
            b - a for a, b in zip(sim.transfer_cycles("i"), sim.transfer_cycles("o"), strict=True)
        ]
    assert len(set(waits)) > 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("valid", r"^Stream 'o' dropped 'valid' before its transfer, in cycle 4$"),
        ("payload", r"^Stream 'o' changed its payload before its transfer, in cycle 4$"),
    ],
)
def test_contract_violation(engine, what, message):
    with (
        make_engine(Broken(what), engine) as sim,
        pytest.raises(StreamContractError, match=message),
    ):
        sim.run(10)


def test_contract_violation_of_probe(engine):
    message = r"^Stream 'inner\.o' dropped 'valid' before its transfer, in cycle 4$"
    with make_engine(Hides(), engine, probes=["inner.o"]) as sim:
        sim.probe("inner.o")
        with pytest.raises(StreamContractError, match=message):
            sim.run(10)
    with make_engine(Hides(), engine, probes=["inner.o"]) as sim:
        sim.probe("inner.o", check=False)
        sim.run(10)


def test_timeout_names_streams(engine):
    with make_engine(Queue(8), engine) as sim:
        sim.put("i", [1, 2, 3])
        message = (
            r"^Timeout after 40 cycles, in cycle 40: waiting for output 'o' \(3 of 5 transfers\); "
            r"other streams: input 'i' \(3 of 3 transfers\)$"
        )
        with pytest.raises(SimulationTimeout, match=message):
            sim.get("o", 5, timeout_cycles=40)
    with make_engine(Queue(8), engine) as sim:
        sim.put("i", range(20))
        message = (
            r"^Timeout after 30 cycles, in cycle 30: waiting for input 'i' \(5 of 20 transfers\)$"
        )
        with pytest.raises(SimulationTimeout, match=message):
            sim.run_until(timeout_cycles=30)


def test_run_until_finished_streams_runs_no_cycle(engine):
    with make_engine(Queue(8), engine) as sim:
        sim.run_until()
        assert sim.cycles == 0


def test_probe_named_before_and_after_build(engine):
    with make_engine(Queue(8), engine, probes=["front.o"]) as sim:
        sim.probe("front.o")
        sim.probe("front.i")
        sim.put("i", range(20), valid_probability=0.5)
        assert sim.get("o", 20, ready_probability=0.5) == list(range(20))
        assert sim.take("front.o") == list(range(20))
        assert sim.take("front.i") == list(range(20))
        assert sim.transfer_cycles("front.i") == sim.transfer_cycles("i")
        assert sim.transfers("front.o") == 20


def test_peek_and_poke(engine):
    with make_engine(Queue(8), engine) as sim:
        sim.poke("hold", 1)
        sim.put("i", [5, 6])
        sim.run(6)
        assert sim.peek("level") == 2
        assert sim.peek("o.valid") == 0
        assert sim.peek("front.o.valid") == 0
        assert sim.peek("front.o.payload") == 6
        sim.poke("hold", 0)
        assert sim.peek("o.valid") == 1
        assert sim.peek("o.payload") == 5
        assert sim.get("o", 2) == [5, 6]


def test_no_clock(engine):
    with make_engine(Adder(), engine) as sim:
        sim.poke("a", 200)
        sim.poke("b", 100)
        assert sim.peek("sum") == 300
        sim.run(3)
        assert sim.cycles == 3


def test_memory(engine):
    init = [3 * k - 20 for k in range(10)]
    with make_engine(Table(signed(16), init), engine) as sim:
        assert sim.memory_read("table") == [value & 0xFFFF for value in init]
        sim.memory_load("table", 2, [7, 8])
        assert sim.memory_read("table", 1, 4) == [init[1] & 0xFFFF, 7, 8, init[4] & 0xFFFF]
        sim.put("i", [0, 2, 3, 9, 12])
        assert sim.get("o", 5) == [init[0] & 0xFFFF, 7, 8, 7, 0]
        sim.reset()
        assert sim.memory_read("table", 2, 2) == [7, 8]


def test_wide_payload(engine):
    rng = random.Random(2)
    rows = [rng.getrandbits(1056) for _ in range(20)]
    check_stream(Queue(1056), {"i": rows}, {"o": rows}, engine=engine)
    table = Table(1056, rows)
    assert run_stream(table, {"i": range(20)}, {"o": 20}, engine=engine)["o"] == rows


def test_arrays_nested_and_constant_ports(engine):
    with make_engine(Crossed(), engine) as sim:
        sim.put("i[0]", [1, 2, 3])
        sim.put("i.1", [10, 20, 30])
        sim.put("bus.back", [7, 8])
        sim.put("i_fast", [1, 2, 3])
        assert sim.get("bus.data", 3) == [1, 2, 3]
        assert sim.get("o_copy", 2) == [7, 8]
        sim.run(5)
        assert sim.take("o_fast") == [11, 22, 33]
        assert sim.transfers("i_fast") == 3


def test_assertion(engine):
    with make_engine(Asserts(), engine) as sim:
        sim.put("i", [5, 6, 7])
        with pytest.raises(AssertionError, match=r"payload is 7"):
            sim.run(10)


def test_waveform_window(engine, tmp_path):
    path = tmp_path / "window.vcd"
    with make_engine(Queue(8), engine) as sim:
        sim.put("i", range(100))
        sim.waveform(path, 10, 15)
        sim.get("o", 50)
    text = path.read_text()
    unit = 1 if "1 ns" in text else 1_000_000
    # Amaranth's writer puts the values that it starts from at time 0.
    times = [int(time) for time in re.findall(r"^#([1-9]\d*)$", text, re.MULTILINE)]
    assert min(times) >= 10 * 1000 * unit
    assert max(times) <= 15 * 1000 * unit
    assert "front" in text
    assert "i__payload" in text


def test_waveform_does_not_change_the_run(engine, tmp_path):
    counts = []
    for window in (False, True):
        with make_engine(Queue(8), engine) as sim:
            sim.put("i", range(60), valid_probability=0.6)
            if window:
                sim.waveform(tmp_path / "run.vcd", 5, 30)
            sim.get("o", 60, ready_probability=0.6)
            counts.append((sim.cycles, sim.transfer_cycles("o")))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda sim: sim.put("x", [1]),
            r"^The simulation has no input stream 'x', only 'i'$",
        ),
        (
            lambda sim: sim.put("i", [1, 256]),
            r"^Payload 256 of stream 'i' is not in range\(0, 2\*\*8\)$",
        ),
        (
            lambda sim: sim.put("i", [-1]),
            r"^Payload -1 of stream 'i' is not in range\(0, 2\*\*8\)$",
        ),
        (
            lambda sim: sim.put("i", [1], valid_probability=0.0),
            r"^Parameter 'valid_probability' must be in \(0, 1\], not 0\.0$",
        ),
        (
            lambda sim: sim.collect("o", -1),
            r"^Count must be a non-negative integer, not -1$",
        ),
        (
            lambda sim: sim.run(-1),
            r"^Number of cycles must be a non-negative integer, not -1$",
        ),
        (
            lambda sim: sim.take("o", 2),
            r"^Stream 'o' has 0 payloads to take, not 2$",
        ),
        (
            lambda sim: sim.probe("front.x"),
            r"^The design has no stream 'front\.x' \(similar: 'front\.o', 'front\.i'\)$",
        ),
        (
            lambda sim: sim.peek("levle"),
            r"^The design has no signal 'levle' \(similar: 'level'",
        ),
        (
            lambda sim: sim.poke("i.valid", 1),
            r"^Signal 'i\.valid' is driven by the engine: use put\(\) or collect\(\)$",
        ),
        (
            lambda sim: sim.poke("level", 1),
            r"^The design has no input 'level' to poke$",
        ),
        (
            lambda sim: sim.memory_read("stor"),
            r"^The design has no memory 'stor' \(similar: 'store'\)$",
        ),
        (
            lambda sim: sim.memory_load("store", 3, [1, 2]),
            r"^Rows \[3, 5\) are outside memory 'store' of 4 rows$",
        ),
        (
            lambda sim: sim.waveform("x.vcd", 5, 5),
            r"^A waveform window must not be empty and must not begin before cycle 0, not be "
            r"\[5, 5\)$",
        ),
    ],
)
def test_error_messages(engine, call, message):
    with make_engine(Queue(8), engine) as sim, pytest.raises(UserError, match=message):
        call(sim)


def test_unknown_engine():
    with pytest.raises(
        UserError, match=r"^Engine must be 'cxxrtl', 'pysim' or 'verilog', not 'verilator'$"
    ):
        make_engine(Buffer(8), "verilator")


def test_latency_and_interval(engine):
    rows = [0] * 64
    timing = measure_latency_and_interval(Mac(), {"i": rows}, "o", 16, groups=16, engine=engine)
    assert (timing.latency, timing.interval) == (7, 4.0)
