# amaranth: UnusedElaboratable=no
import pytest
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from mxhw.arith.decode import decode
from mxhw.formats import parse_format
from tests.support import check_stream


class Decoder(wiring.Component):
    def __init__(self, format):
        self.format = format
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(format.element.bits))),
                "o": Out(stream.Signature(signed(format.element.significand_bits))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        significand = decode(self.format, self.i.payload)
        assert significand.shape() == signed(self.format.element.significand_bits)
        m.d.comb += [
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            self.o.payload.eq(significand),
        ]
        return m


@pytest.mark.parametrize("name", ["mxint2", "mxint8", "mxint12", "mxfp4", "mxfp6", "mxfp6_e3m2"])
def test_all_codes(name):
    format = parse_format(name)
    codes = list(range(1 << format.element.bits))
    expected = format.element.decode_table().tolist()
    check_stream(Decoder(format), {"i": codes}, {"o": expected}, stalls=[(1, 1)])


@pytest.mark.parametrize(
    ("name", "bits"), [("mxfp8_e4m3", 19), ("mxfp8_e5m2", 33), ("mxint19", 19)]
)
def test_wide_formats_are_refused(name, bits):
    message = rf"^Significands must have at most 18 bits, not {bits} \(format {name}\)$"
    with pytest.raises(ValueError, match=message):
        decode(parse_format(name), unsigned(8))


def test_wrong_type():
    with pytest.raises(TypeError, match=r"^Format to decode must be a BlockFormat, not 'mxint8'$"):
        decode("mxint8", unsigned(8))
