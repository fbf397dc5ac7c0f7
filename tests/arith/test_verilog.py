# amaranth: UnusedElaboratable=no
"""The Verilog of every unit is proved equal to the RTLIL that the simulators run."""

import pytest
from amaranth.back import rtlil, verilog

from mxhw.arith import (
    Accumulator,
    BlockDot,
    DotProduct,
    ElementwiseAdd,
    ElementwiseMultiply,
    FixedDotProduct,
    PackedPairMultiplier,
    Quantizer,
    Requantizer,
    StreamFifo,
    SystolicArray,
)
from mxhw.formats import FixedFormat, parse_format
from tests.yosys import run_yosys

SMALL = parse_format("mxint4_b8")
UNITS = {
    "fifo": lambda: StreamFifo(shape=5, depth=3),
    "accumulator": lambda: Accumulator(product_bits=9, max_terms=5, align_bits=2),
    "block dot": lambda: BlockDot(x_format=SMALL, w_format=SMALL),
    "dot mxint4": lambda: DotProduct(x_format=SMALL, w_format=SMALL, max_terms=3, nan=True),
    "dot mxint4, pairs": lambda: DotProduct(
        x_format=SMALL, w_format=SMALL, max_terms=3, multiplier=PackedPairMultiplier()
    ),
    "dot mxfp4": lambda: DotProduct(
        x_format=parse_format("mxfp4_b8"), w_format=parse_format("mxfp4_b8"), max_terms=3
    ),
    "dot mxfp8": lambda: DotProduct(
        x_format=parse_format("mxfp8_b8"), w_format=parse_format("mxfp8_b8"), max_terms=3
    ),
    "fixed dot": lambda: FixedDotProduct(
        x_format=FixedFormat(4), w_format=FixedFormat(4), lanes=4, max_terms=3
    ),
    "systolic array": lambda: SystolicArray(
        x_format=SMALL, w_format=SMALL, rows=2, columns=1, max_terms=2
    ),
    "quantizer": lambda: Quantizer(mantissa_bits=8, lanes=4, formats=SMALL),
    "requantizer": lambda: Requantizer(x_format=parse_format("mxint6_b8"), format=SMALL, lanes=4),
    "add": lambda: ElementwiseAdd(x_format=SMALL, y_format=SMALL, format=SMALL, lanes=4),
    "multiply": lambda: ElementwiseMultiply(x_format=SMALL, y_format=SMALL, format=SMALL, lanes=4),
}

SCRIPT = """
read_rtlil unit.il
prep -flatten -top top
memory_map
opt -noff
rename top gold
design -stash gold
read_verilog {file}
prep -flatten -top top
memory_map
opt -noff
rename top gate
design -stash gate
design -copy-from gold -as gold gold
design -copy-from gate -as gate gate
equiv_make gold gate equal
hierarchy -top equal
equiv_struct
equiv_simple -undef
equiv_induct -undef
equiv_status -assert
"""


def equal(unit, folder, edit=lambda text: text) -> bool:
    text = verilog.convert(unit, emit_src=False)
    (folder / "unit.v").write_text(edit(text))
    (folder / "unit.il").write_text(rtlil.convert(unit, emit_src=False))
    (folder / "unit.ys").write_text(SCRIPT.format(file="unit.v"))
    status, output = run_yosys(folder, "unit.ys")
    assert "Executing EQUIV_STATUS pass" in output, output[-2000:]
    return status == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_verilog_is_equal(name, tmp_path):
    assert equal(UNITS[name](), tmp_path)


@pytest.mark.slow
def test_a_difference_is_found(tmp_path):
    def edit(text):
        assert " + " in text
        return text.replace(" + ", " - ", 1)

    assert not equal(UNITS["fixed dot"](), tmp_path, edit)
