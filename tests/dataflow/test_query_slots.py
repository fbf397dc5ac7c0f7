# amaranth: UnusedElaboratable=no
import pytest
import torch

from mxhw.dataflow.query_slots import QuerySlots
from mxhw.formats import parse_format
from mxhw.sw.golden.attention import only_slot
from mxhw.sw.golden.tensor import MXTensor
from tests.support import STALLS, check_stream, measure_latency_and_interval

MXINT8 = parse_format("mxint8")


def beats(block, lanes):
    codes = block.elements.tolist()
    scale = int(block.scales[0])
    return [
        {"elements": codes[start : start + lanes], "scale": scale}
        for start in range(0, len(codes), lanes)
    ]


def blocks(count):
    generator = torch.Generator().manual_seed(1)
    elements = torch.randint(-127, 128, (count, 32), generator=generator)
    scales = torch.randint(0, 255, (count, 1), generator=generator)
    return MXTensor(elements, scales, MXINT8)


@pytest.mark.parametrize(("lanes", "slots"), [(4, 4), (8, 4), (2, 2), (4, 1), (8, 2)])
def test_every_head_alone(lanes, slots):
    queries = blocks(5)
    expected = [
        beat
        for index in range(5)
        for slot in range(slots)
        for beat in beats(only_slot(queries[index], slot, slots), lanes)
    ]
    check_stream(
        QuerySlots(format=MXINT8, lanes=lanes, slots=slots),
        {"i": [beat for index in range(5) for beat in beats(queries[index], lanes)]},
        {"o": expected},
        stalls=STALLS,
    )


def test_timing():
    unit = QuerySlots(format=MXINT8, lanes=4, slots=4)
    rows = [beat for index in range(6) for beat in beats(blocks(6)[index], 4)]
    timing = measure_latency_and_interval(unit, {"i": rows}, "o", 6 * unit.interval, groups=6)
    assert timing.interval == unit.interval == 32
    assert unit.cost() == {"multipliers": 0, "memory_bits": 8 * 40}


@pytest.mark.parametrize("slots", [0, 3, 16])
def test_errors(slots):
    message = rf"^Slots of a query must be whole beats of 4 of its 32 elements, not {slots} slots$"
    with pytest.raises(ValueError, match=message):
        QuerySlots(format=MXINT8, lanes=4, slots=slots)
