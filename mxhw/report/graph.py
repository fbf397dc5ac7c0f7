"""The dataflow graph as a picture: repeated layers are drawn once, nodes get places, edges ways."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout

__all__ = ["Box", "Picture", "Repetition", "Wire", "draw_graph", "find_repetition"]

WIDTH, HEIGHT = 166, 50
"""Size of a node."""
_SPACE_ACROSS, _SPACE_DOWN = 24, 54
_TRUNK = 24
"""Length of an edge's straight beginning, where its label stands."""
_MARGIN = 14
_SHEET = 1.25
"""Height over width of what a sheet of paper has room for."""
_CUT = 10
"""Distance of a cut from the nodes below it, so that arrows keep their heads."""


@dataclasses.dataclass(frozen=True)
class Repetition:
    """A run of nodes that occurs several times, one after the other.

    Members
    -------
    start, length, count : int
        Number of its first node, its nodes, and how often it occurs; the count is 1 if nothing
        repeats.
    """

    start: int
    length: int
    count: int

    def place(self, index: int) -> tuple[int, int]:
        """Number of the node that is drawn for a node, and its occurrence."""
        inside = index - self.start
        if self.count == 1 or not 0 <= inside < self.length * self.count:
            skipped = (self.count - 1) * self.length
            return (index if inside < 0 or self.count == 1 else index - skipped), 0
        return self.start + inside % self.length, inside // self.length


@dataclasses.dataclass(frozen=True)
class Box:
    """A node in the picture; ``x`` and ``y`` are its upper left corner.

    ``members`` are the numbers of the nodes that it stands for, one for each occurrence.
    """

    x: float
    y: float
    members: tuple[int, ...]
    repeated: bool


@dataclasses.dataclass(frozen=True)
class Wire:
    """An edge: the path through the picture, its nodes, its end, and where its label stands.

    The edges from one node share their beginning, and only the first has a label.
    """

    path: str
    source: int
    target: int
    end: tuple[float, float]
    label: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn graph.

    Members
    -------
    width, height : float
    boxes : list of Box
        By number of the node that is drawn.
    wires : list of Wire
    frame : (float, float, float, float) or None
        Left, top, width and height of what is repeated.
    pages : list of (float, float)
        Top and bottom of the parts that a sheet of paper holds at a size that can be read.
    repetition : Repetition
    """

    width: float
    height: float
    boxes: dict[int, Box]
    wires: list[Wire]
    frame: tuple[float, float, float, float] | None
    pages: list[tuple[float, float]]
    repetition: Repetition


def _inputs(nodes: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Numbers of the nodes that each node reads."""
    numbers = {node["name"]: index for index, node in enumerate(nodes)}
    return [[numbers[name] for name in node["inputs"] if name in numbers] for node in nodes]


def find_repetition(nodes: Sequence[Mapping[str, Any]]) -> Repetition:
    """The run of nodes whose repetition covers most of the graph, the shortest of equals.

    Two nodes are equal if operator, formats, shapes and the distances to their inputs are.
    """
    inputs = _inputs(nodes)
    keys = [
        (
            node["operator"],
            node["format"],
            tuple(node["shape"]),
            str(node["weight"]),
            tuple(index - other for other in inputs[index]),
        )
        for index, node in enumerate(nodes)
    ]
    best = Repetition(0, len(nodes), 1)
    covered = 0
    for length in range(2, len(keys) // 2 + 1):
        run = 0
        for index in range(len(keys) - length + 1):
            same = index + length < len(keys) and keys[index] == keys[index + length]
            if same:
                run += 1
                continue
            count = run // length + 1
            if count > 1 and count * length > covered:
                covered = count * length
                best = Repetition(index - run, length, count)
            run = 0
    return best


class _Vertex(Vertex):
    """A vertex whose place in a set follows from its number, so that a layout can be repeated."""

    def __hash__(self) -> int:
        return hash(self.data)


class _Edge(Edge):
    """An edge, likewise."""

    def __hash__(self) -> int:
        return hash(self.data)


class _View:
    """What the layout wants to know of a vertex, and where it puts the place."""

    def __init__(self) -> None:
        self.w, self.h = WIDTH, HEIGHT
        self.xy = (0.0, 0.0)


class _Way:
    """Where the layout puts the points of an edge."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def setpath(self, points: list[tuple[float, float]]) -> None:
        """Take the points from the layout."""
        self.points = list(points)


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """A path that leaves and enters every point vertically."""
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for next_x, next_y in rest:
        if abs(next_x - x) < 0.5:
            parts.append(f"V{next_y:.1f}")
        else:
            middle = (y + next_y) / 2
            parts.append(
                f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y:.1f}"
            )
        x, y = next_x, next_y
    return "".join(parts)


def _lay_out(
    count: int, edges: Sequence[tuple[int, int]]
) -> tuple[list[tuple[float, float]], list[list[tuple[float, float]]]]:
    """Centres of vertices, and the inner points of edges, layer by layer from the top."""
    vertices = [_Vertex(index) for index in range(count)]
    for vertex in vertices:
        vertex.view = _View()
    ways = []
    drawn = []
    for number, (source, target) in enumerate(edges):
        edge = _Edge(vertices[source], vertices[target], data=number)
        edge.view = _Way()
        ways.append(edge.view)
        drawn.append(edge)
    graph = Graph(vertices, drawn)
    left = 0.0
    for component in graph.C:
        layout = SugiyamaLayout(component)
        layout.xspace, layout.yspace = _SPACE_ACROSS, _SPACE_DOWN
        layout.dw, layout.dh = 14, HEIGHT
        layout.init_all(optimize=True)
        layout.draw(24)
        members = list(component.sV)
        offset = left - min(v.view.xy[0] for v in members) + WIDTH / 2
        for vertex in members:
            vertex.view.xy = (vertex.view.xy[0] + offset, vertex.view.xy[1])
        for edge in component.sE:
            edge.view.points = [(x + offset, y) for x, y in edge.view.points]
        left = max(v.view.xy[0] for v in members) + WIDTH / 2 + _SPACE_ACROSS
    return [vertex.view.xy for vertex in vertices], [way.points for way in ways]


def draw_graph(nodes: Sequence[Mapping[str, Any]]) -> Picture:
    """Give every node of a graph a place; a run of nodes that repeats is drawn once.

    Parameters
    ----------
    nodes : sequence of mapping
        As :func:`mxhw.compiler.describe.describe_graph` gives them.
    """
    repetition = find_repetition(nodes)
    places = [repetition.place(index) for index in range(len(nodes))]
    members: dict[int, list[int]] = {}
    for index, (drawn, _) in enumerate(places):
        members.setdefault(drawn, []).append(index)
    inputs = _inputs(nodes)
    edges = sorted(
        {
            (places[source][0], places[target][0])
            for target, sources in enumerate(inputs)
            for source in sources
            # Of the way from one occurrence to the next only its last end is drawn.
            if places[target][1] == 0 or places[source][1] == places[target][1]
        }
        | {
            (places[source][0], places[target][0])
            for target, sources in enumerate(inputs)
            for source in sources
            if places[source][1] == repetition.count - 1 and places[target][1] == 0
        }
    )
    edges = [(source, target) for source, target in edges if source < target]
    centres, inner = _lay_out(len(members), edges)
    bends = [x for way in inner for x, _ in way[1:-1]]
    left = min([x - WIDTH / 2 for x, _ in centres] + bends) - _MARGIN
    right = max([x + WIDTH / 2 for x, _ in centres] + bends) + _MARGIN
    top = min(y for _, y in centres) - HEIGHT / 2 - _MARGIN
    boxes = {}
    for drawn, (x, y) in enumerate(centres):
        repeated = len(members[drawn]) > 1
        corner = (x - WIDTH / 2 - left, y - HEIGHT / 2 - top)
        boxes[drawn] = Box(*corner, tuple(members[drawn]), repeated)
    wires = _wires(edges, inner, boxes, left, top)
    inside = [box for box in boxes.values() if box.repeated]
    frame = None
    if inside:
        top_side = min(box.y for box in inside) - 24
        bottom = max(box.y for box in inside) + HEIGHT + 24
        frame = (2.0, top_side, right - left - 4, bottom - top_side)
    height = max(box.y for box in boxes.values()) + HEIGHT + _MARGIN + 18
    pages = _paper(right - left, height, sorted({box.y for box in boxes.values()}))
    return Picture(right - left, height, boxes, wires, frame, pages, repetition)


def _paper(width: float, height: float, rows: Sequence[float]) -> list[tuple[float, float]]:
    """Parts of about equal height that fill sheets, cut above rows of nodes."""
    count = math.ceil(height / (_SHEET * width))
    cuts = [0.0]
    for part in range(1, count):
        wanted = height * part / count
        cut = min(rows, key=lambda row: abs(row - wanted)) - _CUT
        if cut > cuts[-1]:
            cuts.append(cut)
    return list(itertools.pairwise([*cuts, height]))


def _wires(
    edges: Sequence[tuple[int, int]],
    inner: Sequence[Sequence[tuple[float, float]]],
    boxes: Mapping[int, Box],
    left: float,
    top: float,
) -> list[Wire]:
    """Edges from the lower side of a node to the upper side of another; ends stand side by side."""
    by_target: dict[int, list[int]] = {}
    for number, (_, target) in enumerate(edges):
        by_target.setdefault(target, []).append(number)
    ends: dict[int, float] = {}
    for target, numbers in by_target.items():
        # From left to right, so that the ends do not cross.
        def origin(number: int) -> float:
            points = inner[number][1:-1]
            return points[-1][0] - left if points else boxes[edges[number][0]].x + WIDTH / 2

        order = sorted(numbers, key=origin)
        step = min(30.0, WIDTH / (len(order) + 1))
        for place, number in enumerate(order):
            ends[number] = boxes[target].x + WIDTH / 2 + step * (place - (len(order) - 1) / 2)
    wires = []
    labelled: set[int] = set()
    for number, (source, target) in enumerate(edges):
        start = (boxes[source].x + WIDTH / 2, boxes[source].y + HEIGHT)
        points = [(x - left, y - top) for x, y in inner[number][1:-1]]
        end = (ends[number], boxes[target].y)
        label = None
        if source not in labelled:
            labelled.add(source)
            label = (start[0], start[1] + 17)
        trunk = (start[0], start[1] + _TRUNK)
        path = f"M{start[0]:.1f} {start[1]:.1f}" + _curve([trunk, *points, end]).replace(
            "M", "L", 1
        )
        wires.append(Wire(path, source, target, end, label))
    return wires
