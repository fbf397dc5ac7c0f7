# amaranth: UnusedElaboratable=no
"""The Verilog of every unit: proved equal to its RTLIL, and simulated against golden."""

import random
import re

import pytest
from amaranth.back import rtlil, verilog

from mxhw.cosim._design import Design
from mxhw.cosim.cxxrtl import emit_verilog
from mxhw.formats import parse_format
from mxhw.sw.golden.elementwise import multiply, requantize
from mxhw.sw.golden.pointwise import add
from tests.arith import (
    test_accumulate,
    test_dot,
    test_dot_product,
    test_elementwise,
    test_fixed_dot,
    test_quantize,
    test_systolic,
)
from tests.arith.units import FLOAT, SMALL, UNITS
from tests.support import check_stream
from tests.yosys import run_yosys

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


def dot_streams(name, count=40, **options):
    format = parse_format(name)
    vectors = test_dot_product.random_vectors(format, format, count, 3, seed=5)
    return test_dot_product.payloads(format, format, vectors, **options)


def quantizer_streams(format):
    rng = random.Random(6)
    blocks = [test_quantize.random_block(rng, kind, 8, 8, False) for kind in range(60)]
    return test_quantize.payloads(blocks, [format], 4, False)


def elementwise_streams(name):
    source = {"requantizer": parse_format("mxint6_b8"), "multiply mxfp8": FLOAT}.get(name, SMALL)
    x, y = (test_elementwise.vectors(source, 24, seed) for seed in (1, 2))
    if name == "requantizer":
        result, rows = requantize(x, SMALL), test_elementwise.beats(x, 4)
    else:
        result = (add if name == "add" else multiply)(x, y, source)
        beats = (test_elementwise.beats(operand, 4) for operand in (x, y))
        rows = [{"x": a, "y": b} for a, b in zip(*beats, strict=True)]
    return rows, test_elementwise.beats(result, 4)


STREAMS = {
    "fifo": lambda: ([*range(32)] * 4, [*range(32)] * 4),
    "accumulator": lambda: test_accumulate.payloads(test_accumulate.random_sums(60, 9, 5), 2),
    "block dot": lambda: test_dot.random_pairs(SMALL, SMALL, 60),
    "dot mxint4": lambda: dot_streams("mxint4_b8", nan=True),
    "dot mxint4, pairs": lambda: dot_streams("mxint4_b8"),
    "dot mxfp4": lambda: dot_streams("mxfp4_b8"),
    "dot mxfp8": lambda: dot_streams("mxfp8_b8"),
    "fixed dot": lambda: test_fixed_dot.vectors([7, 7], 40, 4, 3),
    "systolic array": lambda: test_systolic.tiles(SMALL, SMALL, 2, 1, 12, most=2),
    "quantizer": lambda: quantizer_streams(SMALL),
    "quantizer mxfp8": lambda: quantizer_streams(FLOAT),
    "requantizer": lambda: elementwise_streams("requantizer"),
    "add": lambda: elementwise_streams("add"),
    "multiply": lambda: elementwise_streams("multiply"),
    "multiply mxfp8": lambda: elementwise_streams("multiply mxfp8"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != "accumulator" else ()) for name in UNITS],
)
def test_verilog_equals_golden(name):
    """Exported, read again, translated to native code: the streams are those of golden."""
    rows, expected = STREAMS[name]()
    check_stream(UNITS[name](), {"i": rows}, {"o": expected}, engine="verilog")


def test_it_is_the_verilog_that_runs(monkeypatch):
    """A fault put into the exported text shows in the simulation."""
    text = emit_verilog(Design(UNITS["fixed dot"]()))
    faulty = re.sub(r" \+ ", " - ", text, count=1)
    assert faulty != text
    monkeypatch.setattr("mxhw.cosim.cxxrtl.emit_verilog", lambda design: faulty)
    rows, expected = STREAMS["fixed dot"]()
    with pytest.raises(AssertionError, match="^Transfer .* is "):
        check_stream(UNITS["fixed dot"](), {"i": rows}, {"o": expected}, engine="verilog")
