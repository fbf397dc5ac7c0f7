import json

from mxhw import ops
from mxhw.compiler.describe import NODE_UNITS, describe_graph
from mxhw.compiler.units import UNIT_TITLES, unit_of
from tests import tiny


def test_nodes_carry_formats_shapes_and_lines():
    lowered = tiny.lowered()
    graph = describe_graph(lowered, tiny.CONFIG.context)
    assert graph == json.loads(json.dumps(graph))
    assert graph["inputs"] == ["token", "position"]
    nodes = {node["name"]: node for node in graph["nodes"]}
    known = {*graph["inputs"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, node["name"]
        known.add(node["name"])
        assert node["source"].startswith("llama.py:")
        assert set(node["units"]) <= set(UNIT_TITLES)
    linear = nodes["linear"]
    assert linear["operator"] == "linear"
    assert linear["origin"] == "blocks.0.attention.wq"
    assert linear["code"].startswith("q = self.rope(self.wq(x)")
    assert (linear["format"], linear["shape"]) == ("mxint16", [128])
    assert linear["weight"] == {"format": "mxint8", "shape": [128, 64]}
    assert nodes["scores"]["format"] == "fixed 24.12"
    assert nodes["scores"]["shape"] == [4, 64]
    assert nodes["key_cache"]["shape"] == [64, 64]
    assert nodes["softmax"]["shape"] == [4, 64]
    assert nodes["argmax"]["format"] == "token"


def test_every_bound_operator_has_units():
    assert set(ops.OPERATORS) - set(NODE_UNITS) == {
        ops.bias,
        ops.silu,
        ops.requantize,
    }


def test_units_of_names():
    assert unit_of(["design", "decoder", "softmax", "maximum"]) == "softmax"
    assert unit_of(["design", "decoder", "key_commands", "level"]) == "commands"
    assert unit_of(["design", "decoder", "wide_route", "left"]) == "routes"
    assert unit_of(["design", "host", "receiver", "state"]) == "host"
    assert unit_of(["pll", "locked"]) == "link"
    assert unit_of(["design", "decoder", "i__payload"]) is None
    assert unit_of(["clk"]) is None
