# amaranth: UnusedElaboratable=no
import pytest
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.dataflow.link import link, payload_shape
from tests.support import check_stream


class Unit(wiring.Component):
    def __init__(self, i_shape, o_shape):
        super().__init__({"i": In(stream.Signature(i_shape)), "o": Out(stream.Signature(o_shape))})

    def elaborate(self, platform):
        m = Module()
        link(m, wiring.flipped(self.i), wiring.flipped(self.o))
        return m


def test_own_ports_are_linked(engine):
    check_stream(Unit(signed(8), signed(8)), {"i": [-1, 2]}, {"o": [-1, 2]}, engine=engine)


def test_payload_shape_keeps_structure():
    layout = data.StructLayout({"a": 4, "last": 1})
    unit = Unit(layout, 3)
    assert payload_shape(unit.i) is layout
    assert payload_shape(wiring.flipped(unit.i)) is layout
    assert payload_shape(unit.o) == 3


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (
            unsigned(8),
            signed(8),
            r"^Stream 'o' with payload shape unsigned\(8\) cannot be linked to 'i' with payload "
            r"shape signed\(8\)$",
        ),
        (
            data.StructLayout({"data": 8, "last": 1}),
            data.StructLayout({"data": 8, "first": 1}),
            r"^Stream 'o' with payload shape StructLayout\(\{'data': 8, 'last': 1\}\) cannot be "
            r"linked to 'i' with payload shape StructLayout\(\{'data': 8, 'first': 1\}\)$",
        ),
    ],
)
def test_different_shapes(left, right, message):
    with pytest.raises(TypeError, match=message):
        link(Module(), Unit(1, left).o, Unit(right, 1).i)


def test_number_equals_unsigned_shape():
    m = Module()
    link(m, Unit(1, 8).o, Unit(unsigned(8), 1).i)


def test_two_sinks():
    with pytest.raises(wiring.ConnectionError):
        link(Module(), Unit(8, 8).i, Unit(8, 8).i)


def test_no_stream():
    with pytest.raises(TypeError, match=r"^Linked object must be a stream, not 3$"):
        link(Module(), 3, Unit(8, 8).i)
