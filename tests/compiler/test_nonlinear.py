"""Function tables of a lowered model: chosen by the budget, followed by golden and hardware."""

import functools

import pytest
import torch

from mxhw import ops
from mxhw.compiler.binder import bind
from mxhw.compiler.compare import compare_decoder
from mxhw.compiler.elaborate import decoder_parameters, elaborate
from mxhw.compiler.estimate import estimate
from mxhw.compiler.float_reading import NONLINEAR, measure_node_errors
from mxhw.compiler.lower import lower
from mxhw.compiler.nonlinear import nonlinear_nodes
from mxhw.compiler.passes import LoweringOptions
from mxhw.compiler.report import nonlinear_shares
from mxhw.dataflow.decoder import TableBits
from mxhw.errors import UserError
from mxhw.formats import BlockFormat
from mxhw.lut.choice import table_luts
from mxhw.models.llama import LlamaDecode
from tests import tiny

TIGHT, LOOSE = LoweringOptions(table_budget=0.1), LoweringOptions(table_budget=0.25)


@functools.cache
def decode(options):
    """Shared by the tests: none may change it."""
    return lower(LlamaDecode(tiny.llama(gain=2.0)), options)


def test_the_budget_decides_and_the_hardware_follows():
    assert bind(decode(TIGHT), TIGHT).tables == TableBits(5, 5, 5, 5, 5)
    loose = bind(decode(LOOSE), LOOSE)
    assert loose.tables == TableBits(
        norm_rsqrt=4,
        softmax_exp2=5,
        attention_reciprocal=4,
        gated_exp2=5,
        gated_reciprocal=4,
    )
    assert decoder_parameters(loose).tables == loose.tables


def test_narrow_activations_need_no_more():
    narrow = BlockFormat.mxint(4)
    options = LoweringOptions(narrow, narrow, table_budget=0.0125)
    assert bind(decode(options), options).tables.norm_rsqrt == 4


def test_golden_uses_the_chosen_tables():
    readings = []
    for options in (TIGHT, LOOSE):
        graph = decode(options)
        rows = [graph(torch.tensor([7 * n]), torch.tensor([n]))[1] for n in range(8)]
        readings.append(torch.cat(rows))
    assert not torch.equal(*readings)
    assert (readings[0] - readings[1]).abs().max() < 0.02 * readings[0].abs().max()


def test_a_budget_that_cannot_be_kept():
    with pytest.raises(UserError) as caught:
        decode(LoweringOptions(table_budget=0.01))
    assert str(caught.value).startswith("Table budget of 0.01 is too small for ")
    assert str(caught.value).endswith(
        "Tables of rsqrt must be allowed a relative error of at least 0.00033, not 3.9e-05"
    )


def test_tables_of_one_unit_have_one_size():
    graph = decode.__wrapped__(TIGHT)
    last = [node for node in graph.graph.nodes if node.target is ops.rms_norm][-1]
    last.kwargs = {**last.kwargs, "rsqrt_bits": 3}
    with pytest.raises(UserError, match="function tables of one unit must have one size"):
        bind(graph, TIGHT)


def test_estimate_counts_the_tables():
    units = [estimate(bind(decode(options), options)).units for options in (TIGHT, LOOSE)]
    saved = {name: units[0][name].lut - units[1][name].lut for name in units[0]}
    reciprocal = table_luts("reciprocal", 5) - table_luts("reciprocal", 4)
    assert saved["attention"] == saved["gated"] == pytest.approx(reciprocal)
    assert saved["norm"] == pytest.approx(table_luts("rsqrt", 5) - table_luts("rsqrt", 4))
    assert saved["softmax"] == 0


def test_shares_of_error_and_area():
    graph = decode(LOOSE)
    nodes = nonlinear_nodes(graph, LOOSE)
    targets = {node.name: node.target for node in graph.graph.nodes}
    assert [row["node"] for row in nodes] == [n for n, t in targets.items() if t in NONLINEAR]
    errors = measure_node_errors(graph, [3, 17, 5, 40])
    for row in nodes:
        error = errors[row["node"]]
        # Cut codes add to what the tables do; a sum of probabilities has the error of its terms.
        assert 0 < error.function <= 2 * row["largest_error"] + 3e-4
        assert error.function < error.added
        if row["operator"] != "rope":
            assert row["largest_error"] <= row["allowed_error"] == pytest.approx(0.25 / 256)
    assert all(errors[n].function is None for n, t in targets.items() if t is ops.linear)

    measured = {n: {"added": e.added, "function": e.function} for n, e in errors.items()}
    units = {"norm": {"luts": 30}, "rope": {"luts": 10}, "engine": {"luts": 60}}
    rows = {row["node"]: row for row in nonlinear_shares(nodes, measured, units)}
    norm = next(row for row in rows.values() if row["operator"] == "rms_norm")
    error = errors[norm["node"]]
    assert norm["unit"] == "norm"
    assert norm["tables"] == {"rsqrt": 16}
    assert norm["error_share"] == pytest.approx((error.function / error.added) ** 2)
    power = sum((e.added or 0) ** 2 for e in errors.values())
    assert norm["error_share_of_all"] == pytest.approx(error.function**2 / power)
    assert (norm["luts"], norm["area_share"]) == (30, 0.3)
    rope = next(row for row in rows.values() if row["operator"] == "rope")
    assert rope["tables"] == {"angle": tiny.CONFIG.context * tiny.CONFIG.head_size // 2}
    assert sum(row["error_share_of_all"] for row in rows.values()) < 1


def test_shares_before_anything_was_measured():
    (row, *_) = nonlinear_shares(nonlinear_nodes(decode(TIGHT), TIGHT), {}, {})
    assert [row[key] for key in ("error", "error_share", "error_share_of_all")] == [None] * 3
    assert row["luts"] is None
    assert row["area_share"] is None


@pytest.mark.slow
def test_decoder_with_small_tables_equals_golden():
    graph = decode(LOOSE)
    with tiny.quick_build():
        result = compare_decoder(elaborate(bind(graph, LOOSE)), graph, [3, 17, 5, 40, 41, 2])
    assert result.difference is None
