# amaranth: UnusedElaboratable=no
import random

import pytest

from mxhw.dataflow.logits import LogitsTap
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


def test_length_is_checked():
    message = r"^Length of a vector of logits must be a multiple of the lanes \(4\), not 30$"
    with pytest.raises(ValueError, match=message):
        LogitsTap(length=30, lanes=4)
