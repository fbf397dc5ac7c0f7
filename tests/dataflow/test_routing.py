# amaranth: UnusedElaboratable=no
import random
import re

import pytest
from amaranth import unsigned

from mxhw.dataflow.routing import StreamRegister, StreamRoute, StreamSelect
from tests.support import check_stream


def _schedule(ports, runs, seed):
    random.seed(seed)
    return [(random.randrange(ports), random.choice([0, 1, 2, 5])) for _ in range(runs)]


@pytest.mark.parametrize("parts", [None, [3, 3, 2], [1, 7]])
def test_select_follows_its_commands(parts):
    schedule = _schedule(3, 20, 1)
    inputs = {f"i.{port}": [] for port in range(3)}
    expected = []
    for port, count in schedule:
        run = [random.randrange(256) for _ in range(count)]
        inputs[f"i.{port}"] += run
        expected += run
    inputs["i_command"] = [{"port": port, "count": count} for port, count in schedule]
    unit = StreamSelect(shape=unsigned(8), ports=3, count_bits=4, parts=parts)
    check_stream(unit, inputs, {"o": expected})


def test_route_follows_its_commands():
    schedule = _schedule(3, 20, 2)
    expected = {f"o.{port}": [] for port in range(3)}
    inputs = []
    for port, count in schedule:
        run = [random.randrange(256) for _ in range(count)]
        expected[f"o.{port}"] += run
        inputs += run
    commands = [{"port": port, "count": count} for port, count in schedule]
    unit = StreamRoute(shape=unsigned(8), ports=3, count_bits=4)
    check_stream(unit, {"i": inputs, "i_command": commands}, expected)


@pytest.mark.parametrize("unit", [StreamSelect, StreamRoute])
def test_parameters_are_checked(unit):
    with pytest.raises(ValueError, match=r"^Number of ports must be a positive integer, not 0$"):
        unit(shape=unsigned(8), ports=0, count_bits=4)
    with pytest.raises(
        ValueError, match=r"^Width of the count must be a positive integer, not 'x'$"
    ):
        unit(shape=unsigned(8), ports=2, count_bits="x")


def test_parts_are_checked():
    for parts in ([4, 3], [8, 0], []):
        with pytest.raises(
            ValueError,
            match=r"^Parts of a payload must have positive widths that add up to its 8 bits, "
            rf"not {re.escape(repr(parts))}$",
        ):
            StreamSelect(shape=unsigned(8), ports=3, count_bits=4, parts=parts)


def test_register_passes_everything(engine):
    payloads = list(range(50))
    check_stream(StreamRegister(shape=unsigned(8)), {"i": payloads}, {"o": payloads}, engine=engine)
