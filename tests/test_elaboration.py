import gc

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from mxhw.elaboration import fast_elaboration


class Table(wiring.Component):
    def __init__(self, shape, depth, init):
        self._memory = memory.Memory(shape=shape, depth=depth, init=init)
        super().__init__({"address": In(range(max(depth, 1))), "data": Out(shape)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = self._memory
        port = self._memory.read_port()
        m.d.comb += [port.addr.eq(self.address), self.data.eq(port.data)]
        return m


@pytest.mark.parametrize(
    ("shape", "depth", "init"),
    [
        (unsigned(13), 5, [1, 0x1FFF, 0, 77]),
        (signed(8), 4, [-1, -128, 127]),
        (unsigned(300), 3, [1 << 299, (1 << 300) - 1, 5]),
        (unsigned(1), 1, [1]),
        (unsigned(4), 16, []),
        (unsigned(0), 4, []),
    ],
)
def test_text_is_amaranths(shape, depth, init):
    usual = rtlil.convert(Table(shape, depth, init))
    with fast_elaboration():
        fast = rtlil.convert(Table(shape, depth, init))
    assert fast == usual
    assert "meminit" in fast


def test_everything_is_as_before_afterwards():
    usual = rtlil.ModuleEmitter.emit_memory
    assert gc.isenabled()
    with fast_elaboration():
        assert not gc.isenabled()
        assert rtlil.ModuleEmitter.emit_memory is not usual
    with pytest.raises(TypeError), fast_elaboration():
        rtlil.convert(None, ports=())
    assert gc.isenabled()
    assert rtlil.ModuleEmitter.emit_memory is usual


def test_inside_another_one():
    with fast_elaboration():
        with fast_elaboration():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
