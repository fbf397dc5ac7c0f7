# amaranth: UnusedElaboratable=no
import random

import pytest
import torch

from mxhw.dataflow.attention_output import AttentionOutput, total_bits
from mxhw.formats import BlockFormat, parse_format
from mxhw.lut.uniform import reciprocal_table
from mxhw.sw.golden.attention import Probabilities, values
from mxhw.sw.golden.tensor import MXTensor, Wide, quantize_wide
from tests.support import check_stream, measure_latency_and_interval

WIDE, NARROW = parse_format("mxint16"), parse_format("mxint8")


def beats(vector, lanes):
    elements = vector.elements.flatten().tolist()
    scales = vector.scales.flatten().tolist()
    size = vector.format.block_size
    return [
        {"elements": elements[start : start + lanes], "scale": scales[start // size]}
        for start in range(0, len(elements), lanes)
    ]


def golden(sums, totals, format, reciprocal_bits=5):
    """The second half of ``golden.attention.values``, in Python integers."""
    table = reciprocal_table(reciprocal_bits)
    blocks = []
    for row in range(len(totals)):
        length = totals[row].bit_length()
        top = totals[row] >> (length - 16)
        factor = int(table.evaluate(torch.tensor(top & 0x7FFF)))
        product = sums.significands()[row] * factor
        unit = (sums.exponents()[row] - 15 + 32 - length).unsqueeze(-1).expand_as(product)
        blocks.append(quantize_wide(Wide(product.flatten(), unit.flatten()), format))
    return MXTensor(
        torch.stack([block.elements for block in blocks]),
        torch.stack([block.scales for block in blocks]),
        format,
    )


def random_heads(rng, heads, head_size, wide, context):
    blocks = head_size // wide.block_size
    limit = wide.element.max_significand
    elements = [[rng.randrange(-limit, limit + 1) for _ in range(head_size)] for _ in range(heads)]
    elements[0] = [0] * head_size
    scales = [[rng.choice((0, 90, 120, 127, 254)) for _ in range(blocks)] for _ in range(heads)]
    most = context << 31
    totals = [rng.choice((1 << 31, most, rng.randrange(1 << 31, most + 1))) for _ in range(heads)]
    return MXTensor(torch.tensor(elements), torch.tensor(scales), wide), totals


@pytest.mark.parametrize(
    ("wide", "format", "head_size", "context", "lanes", "multipliers"),
    [
        (WIDE, NARROW, 32, 256, 4, 2),
        (WIDE, NARROW, 64, 32, 4, 4),
        (BlockFormat.mxint(12, 8), BlockFormat.mxint(6, 8), 16, 1, 4, 1),
    ],
)
def test_heads(wide, format, head_size, context, lanes, multipliers):
    sums, totals = random_heads(random.Random(head_size), 8, head_size, wide, context)
    unit = AttentionOutput(
        wide_format=wide,
        format=format,
        head_size=head_size,
        context=context,
        lanes=lanes,
        multipliers=multipliers,
    )
    check_stream(
        unit,
        {"i": beats(sums, lanes), "i_total": totals},
        {"o": beats(golden(sums, totals, format), lanes)},
    )


@pytest.mark.parametrize("reciprocal_bits", [3, 4])
def test_fewer_entries(reciprocal_bits):
    sums, totals = random_heads(random.Random(reciprocal_bits), 8, 32, WIDE, 256)
    unit = AttentionOutput(
        wide_format=WIDE,
        format=NARROW,
        head_size=32,
        context=256,
        reciprocal_bits=reciprocal_bits,
    )
    check_stream(
        unit,
        {"i": beats(sums, 4), "i_total": totals},
        {"o": beats(golden(sums, totals, NARROW, reciprocal_bits), 4)},
        stalls=[(0.7, 0.6)],
    )


@pytest.mark.parametrize("multipliers", [2, 4])
def test_heads_that_share_a_block(multipliers):
    generator = torch.Generator().manual_seed(5)
    slots, blocks = 4, 20
    elements = torch.randint(-32767, 32768, (blocks, 32), generator=generator)
    sums = MXTensor(elements, torch.randint(90, 130, (blocks, 1), generator=generator), WIDE)
    totals = torch.randint(1 << 31, 64 << 31, (blocks, slots), generator=generator)
    expected = []
    for block in range(blocks):
        length = [int(total).bit_length() for total in totals[block]]
        top = torch.tensor(
            [
                int(total) >> (bits - 16) & 0x7FFF
                for total, bits in zip(totals[block], length, strict=True)
            ]
        )
        factor = reciprocal_table().evaluate(top).repeat_interleave(8)
        unit = sums.exponents()[block] - 15 + 32 - torch.tensor(length).repeat_interleave(8)
        expected.append(quantize_wide(Wide(elements[block] * factor, unit), NARROW))
    unit = AttentionOutput(
        wide_format=WIDE, format=NARROW, head_size=8, context=64, multipliers=multipliers
    )
    check_stream(
        unit,
        {"i": beats(sums, 4), "i_total": totals.flatten().tolist()},
        {"o": [beat for block in expected for beat in beats(block, 4)]},
        stalls=[(1.0, 1.0), (0.7, 0.6)],
    )


def test_against_values():
    # The whole second half of attention: the sums are those of the golden product.
    generator = torch.Generator().manual_seed(0)
    numerators = torch.randint(0, 128, (2, 64), generator=generator)
    scales = torch.randint(118, 128, (2, 2), generator=generator)
    total = torch.randint(1 << 31, 60 << 31, (2,), generator=generator)
    cached = torch.randint(-127, 128, (64, 32), generator=generator)
    weights = Probabilities(MXTensor(numerators, scales, NARROW), total)
    result = values(weights, cached, NARROW, WIDE)
    # With a total of 2**31 the reciprocal is exactly 1: what remains is the sums, in the unit of a
    # cache of the wide format, which has 8 more fraction bits.
    one = torch.full_like(total, 1 << 31)
    wide = values(Probabilities(weights.numerators, one), cached, WIDE, WIDE)
    sums = MXTensor(wide.elements, wide.scales + 8, WIDE)
    check_stream(
        AttentionOutput(wide_format=WIDE, format=NARROW, head_size=32, context=64),
        {"i": beats(sums, 4), "i_total": total.tolist()},
        {"o": beats(result, 4)},
        stalls=[(1.0, 1.0)],
    )


def test_timing():
    sums, totals = random_heads(random.Random(1), 4, 32, WIDE, 64)
    unit = AttentionOutput(wide_format=WIDE, format=NARROW, head_size=32, context=64)
    timing = measure_latency_and_interval(
        unit, {"i": beats(sums, 4), "i_total": totals}, "o", 32, groups=4
    )
    assert timing.latency == unit.latency
    assert timing.interval == unit.interval == 16
    cost = unit.cost()
    assert (cost["multipliers"], cost["block_rams"]) == (3, 0)
    assert total_bits(256) == 40


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"format": 8},
            TypeError,
            "^Format of an attention output must be a block format, not 8$",
        ),
        (
            {"format": parse_format("mxfp4")},
            ValueError,
            "^Format of an attention output must have integer elements, not mxfp4_e2m1$",
        ),
        (
            {"wide_format": parse_format("mxint18")},
            ValueError,
            "^Sums of an attention output must have 4 to 17 bits, not 18$",
        ),
        (
            {"format": parse_format("mxint8_b16")},
            ValueError,
            "^Formats of an attention output must have one block size, not 32 and 16$",
        ),
        (
            {"head_size": 40},
            ValueError,
            r"^Head size of an attention output must be a multiple or an equal part of the block "
            r"size \(32\), not 40$",
        ),
        (
            {"context": 0},
            ValueError,
            "^Context of an attention output must be a positive integer, not 0$",
        ),
        (
            {"multipliers": 3},
            ValueError,
            r"^Multipliers of an attention output must divide the lanes \(4\), not 3$",
        ),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        AttentionOutput(
            **{"wide_format": WIDE, "format": NARROW, "head_size": 32, "context": 64, **changes}
        )
