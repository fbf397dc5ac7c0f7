"""Real decoders behind the host controller: other rows, and vocabularies that fill no beat."""

import pytest
import torch

from mxhw.boards.wrapper import HostedDecoder
from mxhw.compiler.binder import bind
from mxhw.compiler.elaborate import elaborate
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.compiler.simulate import reset_caches
from mxhw.cosim.engine import make_engine
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import LlamaDecode
from mxhw.sw.host.client import EngineTransport, MxhwClient
from tests import tiny

TOKENS = [1, 40, 7]


def golden(graph, tokens, count):
    """Greedy tokens and the logits of each, as fixed-point integers."""
    reset_caches(graph)
    known, chosen, vectors = list(tokens), [], []
    for position in range(len(tokens) + count - 1):
        choice, fixed = graph(torch.tensor([known[position]]), torch.tensor([position]))
        if position >= len(tokens) - 1:
            known.append(int(choice))
            chosen.append(int(choice))
            vectors.append(fixed.flatten().tolist())
    return chosen, vectors


@pytest.mark.parametrize(
    ("rows", "vocabulary"),
    [
        (2, 65),
        pytest.param(4, 67, marks=pytest.mark.slow),
        pytest.param(8, 66, marks=pytest.mark.slow),
        pytest.param(8, 41, marks=pytest.mark.slow),
    ],
)
def test_text_and_logits_are_golden(rows, vocabulary):
    config = LlamaConfig(
        vocabulary_size=vocabulary,
        dim=32,
        hidden=32,
        layers=1,
        heads=1,
        kv_heads=1,
        head_size=32,
        context=32,
    )
    graph = lower(LlamaDecode(tiny.llama(config, gain=2.0)), LoweringOptions())
    design = HostedDecoder(
        decoder=elaborate(bind(graph, LoweringOptions(), rows=rows)),
        vocabulary=vocabulary,
        context=32,
        model_hash=bytes(8),
        clock_hz=4_000_000,
        baud=1_000_000,
    )
    chosen, vectors = golden(graph, TOKENS, 6)
    with tiny.quick_build(), make_engine(design, "cxxrtl", inner_signals=False) as sim:
        client = MxhwClient(EngineTransport(sim, read_cycles=4000), timeout_s=0)
        client.prompt(TOKENS)
        tokens = client.generate(6, logits=True).tokens
    assert [item.token for item in tokens] == chosen
    for item, expected in zip(tokens, vectors, strict=True):
        assert [round(value * 4096) for value in item.logits] == expected
