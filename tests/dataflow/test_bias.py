# amaranth: UnusedElaboratable=no
import pytest
import torch
from amaranth.hdl import Array, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw import ops
from mxhw.dataflow.bias import Bias
from mxhw.formats import parse_format
from mxhw.sw.golden.tensor import MXTensor, quantize
from tests.support import check_stream, run_stream, unpack

WIDE, NARROW = parse_format("mxint16"), parse_format("mxint8")


class Turns(wiring.Component):
    """A bias unit behind a route that gives each beat to the port whose turn it is."""

    def __init__(self, unit, narrow):
        self._unit = unit
        self._narrow = narrow
        shape = unit.i_wide.payload.shape()
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o_wide": Out(stream.Signature(shape)),
                "o_narrow": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self._unit
        place = Signal(range(len(self._narrow)))
        narrow = Array(self._narrow)[place]
        m.d.comb += [
            unit.i_wide.payload.eq(self.i.payload),
            unit.i_narrow.payload.eq(self.i.payload),
            unit.i_wide.valid.eq(self.i.valid & ~narrow),
            unit.i_narrow.valid.eq(self.i.valid & narrow),
            self.i.ready.eq((unit.i_wide.ready & ~narrow) | (unit.i_narrow.ready & narrow)),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += place.eq(place + 1)
            with m.If(place == len(self._narrow) - 1):
                m.d.sync += place.eq(0)
        wiring.connect(m, unit.o_wide, wiring.flipped(self.o_wide))
        wiring.connect(m, unit.o_narrow, wiring.flipped(self.o_narrow))
        return m


def beats(vector, lanes):
    codes, scales = vector.elements.flatten().tolist(), vector.scales.flatten().tolist()
    return [
        {"elements": codes[start : start + lanes], "scale": scales[start // 32]}
        for start in range(0, len(codes), lanes)
    ]


def vector(blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(32 * blocks, generator=generator, dtype=torch.float64)
    # Exponents far apart, a block of zeros.
    values *= 2.0 ** torch.randint(-12, 13, (blocks,), generator=generator).repeat_interleave(32)
    if seed % 3 == 0:
        values[:32] = 0
    return quantize(values, WIDE)


def scenario(lanes, tokens):
    """Queries of two blocks and a key are wide, values narrow, for two layers."""
    vectors = [vector(blocks, 10 + index) for index, blocks in enumerate((2, 1, 1) * 2)]
    inputs = {"i_wide": [], "i_narrow": []}
    expected = {"o_wide": [], "o_narrow": []}
    for token in range(tokens):
        for index, constant in enumerate(vectors):
            kind, format = ("narrow", NARROW) if index % 3 == 2 else ("wide", WIDE)
            x = vector(constant.blocks, 100 + 10 * token + index)
            inputs[f"i_{kind}"] += beats(x, lanes)
            rows = MXTensor(x.elements[None], x.scales[None], WIDE)
            result = ops.bias(rows, constant, format=format.name)
            expected[f"o_{kind}"] += beats(result, lanes)
    return vectors, inputs, expected


@pytest.mark.parametrize("lanes", [4, 8])
def test_projections_of_tokens(lanes):
    vectors, inputs, expected = scenario(lanes, 3)
    unit = Bias(vectors=vectors, wide_format=WIDE, format=NARROW, lanes=lanes)
    block = 32 // lanes
    narrow = [0] * (3 * block) + [1] * block
    waiting = [iter(inputs["i_wide"]), iter(inputs["i_narrow"])]
    result = run_stream(
        Turns(unit, narrow),
        {"i": [next(waiting[port]) for _ in range(6) for port in narrow]},
        {name: len(rows) for name, rows in expected.items()},
        stalls=(0.7, 0.6),
        seed=3,
    )
    for name, rows in expected.items():
        shape = getattr(unit, name).payload.shape()
        assert [unpack(shape, raw) for raw in result[name]] == rows


def test_a_wide_projection_alone():
    constant = vector(2, 7)
    x = [vector(2, seed) for seed in (1, 2, 3)]
    expected = []
    for row in x:
        rows = MXTensor(row.elements[None], row.scales[None], WIDE)
        expected += beats(ops.bias(rows, constant, format=WIDE.name), 4)
    check_stream(
        Bias(vectors=[constant], wide_format=WIDE, format=NARROW, lanes=4),
        {"i_wide": [beat for row in x for beat in beats(row, 4)]},
        {"o_wide": expected},
    )


def test_errors():
    with pytest.raises(ValueError, match="^Biases must have at least one vector, not 0$"):
        Bias(vectors=[], wide_format=WIDE, format=NARROW, lanes=4)
