# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.dataflow.logits import LogitsRegroup, LogitsTap
from tests.support import check_stream


def test_copies_only_where_asked(engine):
    random.seed(3)
    beats = [[random.randrange(-1000, 1000) for _ in range(4)] for _ in range(8 * 5)]
    flags = [0, 1, 1, 0, 1]
    copied = [beat for index, beat in enumerate(beats) if flags[index // 8]]
    check_stream(
        LogitsTap(length=32, lanes=4),
        {"i": beats, "i_command": flags},
        {"o": beats, "o_copy": copied},
        engine=engine,
    )


def test_a_last_beat_may_be_partial(engine):
    beats = [[beat, 1, 2, 3] for beat in range(3 * 4)]
    check_stream(
        LogitsTap(length=10, lanes=4),
        {"i": beats, "i_command": [1, 0, 1, 0]},
        {"o": beats, "o_copy": beats[:3] + beats[6:9]},
        engine=engine,
    )


@pytest.mark.parametrize("length", [1, 3, 16, 17, 22, 24, 29])
@pytest.mark.parametrize(("lanes_in", "lanes_out"), [(2, 4), (8, 4), (1, 4), (4, 1), (4, 4)])
def test_regrouped_vectors(length, lanes_in, lanes_out):
    vectors = [[100 * vector - place for place in range(length)] for vector in range(4)]

    def beats(lanes):
        return [
            (vector[start : start + lanes] + [0] * lanes)[:lanes]
            for vector in vectors
            for start in range(0, length, lanes)
        ]

    unit = LogitsRegroup(length=length, lanes_in=lanes_in, lanes_out=lanes_out)
    check_stream(unit, {"i": beats(lanes_in)}, {"o": beats(lanes_out)})


def test_parameters_are_checked():
    message = r"^Length of a vector of logits must be at least 1, not 0$"
    with pytest.raises(ValueError, match=message):
        LogitsTap(length=0, lanes=4)
    with pytest.raises(ValueError, match=message):
        LogitsRegroup(length=0, lanes_in=2, lanes_out=4)
    for lanes in ((3, 4), (0, 4)):
        with pytest.raises(
            ValueError,
            match=rf"^Numbers of lanes must be positive and one a multiple of the other, not "
            rf"{lanes[0]} and {lanes[1]}$",
        ):
            LogitsRegroup(length=8, lanes_in=lanes[0], lanes_out=lanes[1])
