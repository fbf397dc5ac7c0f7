import pytest
import torch

from mxhw import ops
from mxhw.compiler.float_reading import FLOAT_OPERATORS, FloatReading, measure_node_errors
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.formats import BlockFormat
from mxhw.models.llama import LlamaDecode
from tests import tiny

TOKENS = [3, 17, 5, 40, 41, 2, 63, 9]


@pytest.fixture(scope="module")
def model():
    return tiny.llama(gain=2.0)


def decode(model, weights=8):
    options = LoweringOptions(weight_format=BlockFormat.mxint(weights))
    return lower(LlamaDecode(model), options)


def test_every_operator_has_a_float_reading():
    assert set(FLOAT_OPERATORS) == set(ops.OPERATORS)


def test_float_reading_is_the_model(model):
    reading = FloatReading(decode(model, weights=4))
    for _ in range(2):
        reading.reset()
        rows = [
            reading.run(torch.tensor([token]), torch.tensor([position]))
            for position, token in enumerate(TOKENS)
        ]
        logits = torch.cat([row for _, row in rows])
        expected = model(torch.tensor([TOKENS]))[0].double()
        torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)
        assert torch.cat([token for token, _ in rows]).tolist() == logits.argmax(-1).tolist()


def test_errors_are_small_and_named_by_node(model):
    lowered = decode(model)
    calls = []
    errors = measure_node_errors(lowered, TOKENS, lambda *done: calls.append(done))
    nodes = {n.name: n.target for n in lowered.graph.nodes if n.op == "call_function"}
    assert list(errors) == list(nodes)
    assert calls[-1] == (len(TOKENS), len(TOKENS))
    for name, error in errors.items():
        assert 0 <= error.error < 0.08, name
        if nodes[name] in (ops.key_cache, ops.value_cache, ops.argmax):
            assert error.added is None
        else:
            assert 0 < error.added < 0.03, name
    additions = [errors[name].added for name, target in nodes.items() if target is ops.add]
    assert max(additions) < 1e-4


def test_narrow_weights_add_error_where_there_are_weights(model):
    wide, narrow = (measure_node_errors(decode(model, bits), TOKENS) for bits in (8, 4))
    assert narrow["linear"].added > 8 * wide["linear"].added
    assert narrow["softmax"].added < 2 * wide["softmax"].added


def test_measuring_leaves_the_caches_empty(model):
    lowered = decode(model)
    first = measure_node_errors(lowered, TOKENS)
    assert measure_node_errors(lowered, TOKENS) == first
