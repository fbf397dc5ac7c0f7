# amaranth: UnusedElaboratable=no
import pytest
import torch

from mxhw.lut.pwl import DSP, LUT, UniformPwl, value_shape
from mxhw.lut.uniform import UniformTable, exp2_table, reciprocal_table, rsqrt_table
from tests.support import check_stream, measure_latency_and_interval, run_stream


@pytest.mark.parametrize("multiplier", [DSP, LUT])
def test_every_code_of_exp2(multiplier):
    table = exp2_table()
    codes = torch.arange(1 << table.input_bits)
    unit = UniformPwl(table=table, multiplier=multiplier)
    got = run_stream(unit, {"i": codes.tolist()}, {"o": len(codes)})
    assert got["o"] == table.evaluate(codes).tolist()


@pytest.mark.parametrize("table", [reciprocal_table, rsqrt_table])
def test_every_segment_of_longer_tables(table):
    # Every code of these runs in test_functions.py.
    table = table()
    codes = torch.arange(0, 1 << table.input_bits, 61)
    got = run_stream(UniformPwl(table=table), {"i": codes.tolist()}, {"o": len(codes)})
    assert got["o"] == table.evaluate(codes).tolist()


@pytest.mark.parametrize("index_bits", [3, 4])
def test_smaller_tables_under_stalls(index_bits):
    table = exp2_table(index_bits)
    codes = torch.arange(0, 1 << table.input_bits, 37)
    want = table.evaluate(codes).tolist()
    check_stream(UniformPwl(table=table), {"i": codes.tolist()}, {"o": want})


def test_slopes_of_both_signs():
    table = UniformTable("bump", 2, 3, 2, (10, 30, 40, 20), (7, 5, -7, -6))
    codes = torch.arange(32)
    want = table.evaluate(codes).tolist()
    for multiplier in (DSP, LUT):
        unit = UniformPwl(table=table, multiplier=multiplier)
        check_stream(unit, {"i": codes.tolist()}, {"o": want}, stalls=[(1, 1), (0.5, 0.5)])


@pytest.mark.parametrize("multiplier", [DSP, LUT])
def test_timing(multiplier):
    unit = UniformPwl(table=exp2_table(), multiplier=multiplier)
    timing = measure_latency_and_interval(unit, {"i": range(100)}, "o", 100, groups=100)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


def test_properties():
    unit = UniformPwl(table=exp2_table(), multiplier=LUT)
    assert unit.table is exp2_table()
    assert unit.multiplier is LUT
    assert unit.cost() == {"multipliers": 0, "memory_bits": 16 * 16, "block_rams": 0}
    assert UniformPwl(table=exp2_table()).cost()["multipliers"] == 1
    assert value_shape(exp2_table()).width == 16


def test_errors():
    with pytest.raises(TypeError, match=r"^Table must be a uniform table, not 3$"):
        UniformPwl(table=3)
    message = r"^Multiplier of a table must be a DspMultiplier or a LutMultiplier, not 'x'$"
    with pytest.raises(TypeError, match=message):
        UniformPwl(table=exp2_table(), multiplier="x")
    low = UniformTable("low", 1, 2, 2, (-1, 3), (0, 0))
    with pytest.raises(ValueError, match=r"^Values of table 'low' must not be negative$"):
        UniformPwl(table=low)
