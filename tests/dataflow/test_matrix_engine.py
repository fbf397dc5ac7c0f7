# amaranth: UnusedElaboratable=no
import random

import pytest
import torch
from amaranth.back import rtlil

from mxhw.arith.multiply import LutMultiplier
from mxhw.cosim.engine import make_engine
from mxhw.dataflow.engine import MatrixEngine
from mxhw.dataflow.link import payload_shape
from mxhw.formats import parse_format
from mxhw.sw.golden.linear import matrix_vector
from mxhw.sw.golden.tensor import MXTensor
from tests.support import check_stream, pack, port_of


def random_tensor(rng, format, rows, blocks, kind):
    """Random codes; scales close together, anywhere, or at both ends."""
    table = format.element.decode_table()
    codes = torch.tensor(
        [
            [rng.randrange(len(table)) for _ in range(blocks * format.block_size)]
            for _ in range(rows)
        ]
    )
    if kind == "extreme":
        codes[:] = int(table.argmax())
        codes[rng.randrange(rows)] = int(table.argmin())
    if format.element.is_integer:
        codes = torch.from_numpy(table)[codes]
    choices = {"close": range(120, 134), "any": range(255), "extreme": (0, 254)}[kind]
    scales = torch.tensor([[rng.choice(choices) for _ in range(blocks)] for _ in range(rows)])
    return MXTensor(codes, scales, format)


class Program:
    """Commands with their operands, and the results that the golden model gives."""

    def __init__(self, engine, seed=0):
        self.engine = engine
        self.rng = random.Random(seed)
        self.inputs = {"i_command": [], "i_x": [], "i_weights": []}
        self.outputs = {"o": []}
        size = engine.x_format.block_size
        self.elements = torch.zeros(engine.slots, size, dtype=torch.int64)
        self.scales = torch.zeros(engine.slots, dtype=torch.int64)

    def _command(self, **fields):
        self.inputs["i_command"].append({"load": 0, "groups": 0} | fields)

    def load(self, slot, blocks, kind="close"):
        """Load random activations."""
        self._command(load=1, slot=slot, blocks=blocks)
        format, lanes = self.engine.x_format, self.engine.x_lanes
        for block in range(slot, slot + blocks):
            x = random_tensor(self.rng, format, 1, 1, kind)
            self.elements[block] = x.elements[0]
            self.scales[block] = x.scales[0, 0]
            for part in x.elements[0].split(lanes):
                beat = {"elements": part.tolist(), "scale": int(x.scales)}
                self.inputs["i_x"].append(beat)

    def multiply(self, slot, blocks, groups, kind="close"):
        """Multiply by a random matrix."""
        self._command(slot=slot, blocks=blocks, groups=groups)
        if not blocks or not groups:
            return
        engine = self.engine
        held = slice(slot, slot + blocks)
        x = MXTensor(self.elements[held].flatten(), self.scales[held], engine.x_format)
        w = random_tensor(self.rng, engine.w_format, engine.rows * groups, blocks, kind)
        result = matrix_vector(x, w)
        blocked = w.elements.unflatten(-1, (blocks, -1))
        for group in range(groups):
            rows = range(group * engine.rows, (group + 1) * engine.rows)
            for block in range(blocks):
                self.inputs["i_weights"].append(
                    [
                        {
                            "elements": blocked[row, block].tolist(),
                            "scale": int(w.scales[row, block]),
                        }
                        for row in rows
                    ]
                )
            self.outputs["o"].append(
                {
                    "mantissas": [int(result.mantissa[row]) for row in rows],
                    "exponents": [int(result.exponent[row]) for row in rows],
                }
            )


def make(x_name, w_name, **options):
    return MatrixEngine(x_format=parse_format(x_name), w_format=parse_format(w_name), **options)


def mixed_program(engine):
    program = Program(engine)
    program.load(0, 4)
    program.multiply(0, 4, 3)
    # Overwrites slots whose products are still on their way.
    program.load(2, 2, "any")
    program.multiply(2, 2, 2, "any")
    program.multiply(0, 1, 6)
    program.multiply(1, 3, 0)
    program.load(0, 0)
    program.multiply(0, 0, 2)
    program.multiply(0, 4, 4, "any")
    program.load(0, 4, "extreme")
    program.multiply(0, 4, 3, "extreme")
    program.load(3, 1, "any")
    program.multiply(3, 1, 5, "any")
    return program


@pytest.mark.parametrize(
    ("x_name", "w_name", "options"),
    [
        ("mxint8_b8", "mxint8_b8", {"rows": 2, "slots": 4}),
        ("mxfp4_b8", "mxint5_b8", {"rows": 1, "slots": 5, "max_blocks": 4, "x_lanes": 2}),
        ("mxint8_b8", "mxfp6_e3m2_b8", {"rows": 1, "slots": 32, "max_blocks": 4, "x_lanes": 8}),
        (
            "mxfp4_b8",
            "mxfp4_b8",
            {"rows": 3, "slots": 4, "x_lanes": 1, "multiplier": LutMultiplier()},
        ),
    ],
)
def test_equals_golden(x_name, w_name, options):
    engine = make(x_name, w_name, **options)
    program = mixed_program(engine)
    check_stream(engine, program.inputs, program.outputs)


@pytest.mark.slow
def test_four_rows_of_mxint8_equal_golden():
    engine = make("mxint8", "mxint8")
    program = mixed_program(engine)
    check_stream(engine, program.inputs, program.outputs, engine="cxxrtl")


def transfer_cycles(program):
    """Cycles of the transfers of weights and of results, without stalls."""
    with make_engine(program.engine, "pysim") as sim:
        for name, rows in program.inputs.items():
            shape = payload_shape(port_of(program.engine, name))
            sim.put(name, [pack(shape, row) for row in rows])
        sim.collect("o", len(program.outputs["o"]))
        sim.run_until(timeout_cycles=10_000)
        return sim.transfer_cycles("i_weights"), sim.transfer_cycles("o")


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_timing(blocks, size):
    engine = make(f"mxint4_b{size}", f"mxint4_b{size}", rows=1, slots=4)
    program = Program(engine)
    program.load(0, blocks)
    program.multiply(0, blocks, 30)
    program.multiply(0, blocks, 5)
    weights, results = transfer_cycles(program)
    first = 30 * blocks
    # A word a cycle, and one cycle without a word between two commands.
    assert weights[:first] == list(range(weights[0], weights[0] + first * engine.interval))
    assert weights[first] == weights[first - 1] + 2
    assert results == [cycle + engine.latency for cycle in weights[blocks - 1 :: blocks]]
    assert engine.latency == 6 + size.bit_length() - 1


def test_properties_and_cost():
    engine = make("mxint8", "mxint8", rows=4, max_blocks=6)
    assert (engine.rows, engine.slots, engine.max_blocks, engine.x_lanes) == (4, 16, 6, 4)
    assert (engine.x_format, engine.w_format) == (parse_format("mxint8"), parse_format("mxint8"))
    assert engine.mantissa_bits == 8 + 8 + 5 + 8 + 3
    cost = engine.cost()
    assert cost["multipliers"] == 128
    assert cost["memory_bits"] == 16 * 264 + 4 * (32 + 12) * 16
    assert rtlil.convert(engine).count("cell $mul") == 128


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": 0}, ValueError, "Rows of an engine must be at least 1, not 0"),
        ({"rows": "4"}, TypeError, "Rows of an engine must be an integer, not '4'"),
        (
            {"slots": 4, "max_blocks": 6},
            ValueError,
            "Longest contraction of an engine must fit its 4 slots, not 6",
        ),
        (
            {"w_format": parse_format("mxint8_b16")},
            ValueError,
            "Formats of a dot product must have one block size, not 32 and 16",
        ),
        (
            {"x_lanes": 5},
            ValueError,
            "Lanes of a beat must divide the block size (32), not 5",
        ),
    ],
)
def test_errors(options, error, message):
    valid = {"x_format": parse_format("mxint8"), "w_format": parse_format("mxint8")}
    with pytest.raises(error) as caught:
        MatrixEngine(**(valid | options))
    assert str(caught.value) == message
