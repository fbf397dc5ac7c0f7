"""Entries of tables: the least area within a bound of the error."""

import numpy as np
import pytest
import torch

from mxhw.lut.choice import TABLES, choose_tables, largest_table_error, table_luts
from mxhw.lut.uniform import VALUE_FRACTION_BITS

EXACT = {
    "exp2": lambda code: 2.0 ** (code / 4096),
    "reciprocal": lambda code: 32768 / (32768 + code),
    "rsqrt": lambda code: ((1 + code % 32768 / 32768) * 2.0 ** (code // 32768)) ** -0.5,
}


@pytest.mark.parametrize("index_bits", [3, 4, 5])
@pytest.mark.parametrize("function", TABLES)
def test_largest_error_is_that_of_every_code(function, index_bits):
    table = TABLES[function](index_bits)
    codes = np.arange(1 << table.input_bits)
    values = table.evaluate(torch.from_numpy(codes)).numpy()
    error = np.abs(values / 2**VALUE_FRACTION_BITS / EXACT[function](codes) - 1).max()
    assert largest_table_error(function, index_bits) == pytest.approx(error, rel=1e-9)
    # What multiplies by a table's value has room for 1 and no more.
    if function != "exp2":
        assert values.max() == 1 << VALUE_FRACTION_BITS


@pytest.mark.parametrize("largest", [2.9e-4, 5e-4, 1e-3, 3e-3, 1.0])
def test_least_area_of_all_that_are_accurate_enough(largest):
    use = choose_tables(("exp2", "reciprocal"), largest)
    assert use.error <= largest
    assert set(use.index_bits) == {"exp2", "reciprocal"}
    for first in (3, 4, 5):
        for second in (3, 4, 5):
            error = largest_table_error("exp2", first) + largest_table_error("reciprocal", second)
            luts = table_luts("exp2", first) + table_luts("reciprocal", second)
            assert error > largest or (luts, error) >= (use.luts, use.error)


def test_a_tighter_bound_takes_more_entries():
    bits = [choose_tables(("rsqrt",), bound).index_bits["rsqrt"] for bound in (1e-3, 5e-4)]
    assert bits == [4, 5]


def test_a_bound_that_no_table_keeps():
    message = (
        "Tables of exp2 and reciprocal must be allowed a relative error of at least 0.00028, "
        "not 1e-05"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose_tables(("exp2", "reciprocal"), 1e-5)
