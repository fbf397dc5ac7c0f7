import itertools

import pytest

from mxhw.compiler.describe import describe_graph
from mxhw.report.graph import HEIGHT, WIDTH, draw_graph, find_repetition
from tests import tiny


def node(name, *inputs, operator="linear", shape=(32,)):
    return {
        "name": name,
        "operator": operator,
        "format": "mxint8",
        "shape": list(shape),
        "weight": None,
        "inputs": list(inputs),
    }


@pytest.fixture(scope="module")
def nodes():
    return describe_graph(tiny.lowered(), tiny.CONFIG.context)["nodes"]


def test_layers_are_found(nodes):
    found = find_repetition(nodes)
    assert (found.start, found.count) == (1, 2)
    assert found.start + 2 * found.length == len(nodes) - 3
    assert nodes[found.start]["operator"] == "rms_norm"
    assert found.place(0) == (0, 0)
    assert found.place(1 + found.length) == (1, 1)
    assert found.place(len(nodes) - 1) == (found.length + 3, 0)


def test_nothing_repeats():
    nodes = [node("a"), node("b", "a", operator="silu"), node("c", "b", shape=(64,))]
    found = find_repetition(nodes)
    assert found.count == 1
    assert [found.place(index) for index in range(3)] == [(0, 0), (1, 0), (2, 0)]


def test_layers_that_differ_in_their_inputs_are_not_one():
    nodes = [node("a"), node("b", "a"), node("c", "b"), node("d", "a"), node("e", "d")]
    assert find_repetition(nodes).count == 1


def test_every_node_is_in_a_box(nodes):
    picture = draw_graph(nodes)
    members = sorted(itertools.chain(*(box.members for box in picture.boxes.values())))
    assert members == list(range(len(nodes)))
    for box in picture.boxes.values():
        assert 0 <= box.x <= picture.width - WIDTH
        assert 0 <= box.y <= picture.height - HEIGHT
        assert len({nodes[index]["operator"] for index in box.members}) == 1


def test_boxes_do_not_overlap(nodes):
    boxes = draw_graph(nodes).boxes.values()
    for one, other in itertools.combinations(boxes, 2):
        assert abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT


def test_edges_lead_down_and_each_node_that_is_read_has_one_label(nodes):
    picture = draw_graph(nodes)
    for wire in picture.wires:
        assert picture.boxes[wire.source].y < picture.boxes[wire.target].y
        assert wire.end[1] == picture.boxes[wire.target].y
    sources = {wire.source for wire in picture.wires}
    assert sorted(w.source for w in picture.wires if w.label) == sorted(sources)


def test_sheets_of_paper_cut_no_node(nodes):
    picture = draw_graph(nodes)
    pages = picture.pages
    assert len(pages) > 1
    assert (pages[0][0], pages[-1][1]) == (0, picture.height)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(pages))
    assert all(bottom - top < 1.5 * picture.width for top, bottom in pages)
    for box in picture.boxes.values():
        assert any(top <= box.y and box.y + HEIGHT <= bottom for top, bottom in pages)


def test_all_edges_of_a_layer_are_drawn(nodes):
    picture = draw_graph(nodes)
    names = {
        nodes[index]["name"]: drawn for drawn, b in picture.boxes.items() for index in b.members
    }
    drawn = {(wire.source, wire.target) for wire in picture.wires}
    found = picture.repetition
    for item in nodes[found.start : found.start + found.length]:
        for name in item["inputs"]:
            if name in names:
                assert (names[name], names[item["name"]]) in drawn


def test_separate_parts_stand_side_by_side():
    picture = draw_graph([node("a"), node("b", operator="silu"), node("c", "b", shape=(64,))])
    a, b, c = (picture.boxes[index] for index in range(3))
    assert abs(a.x - b.x) >= WIDTH
    assert b.y < c.y
    assert len(picture.wires) == 1


def test_a_picture_can_be_repeated(nodes):
    pictures = [draw_graph(nodes) for _ in range(10)]
    assert all(picture == pictures[0] for picture in pictures)
