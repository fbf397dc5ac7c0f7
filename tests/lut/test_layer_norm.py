# amaranth: UnusedElaboratable=no
"""The factor of a layer normalisation against golden, and golden against float64."""

import random

import pytest
import torch

from mxhw.lut import LayerNormFactor
from mxhw.sw.golden.layer_norm import layer_norm_factor
from tests.support import check_stream, measure_latency_and_interval

STALLS = [(1.0, 1.0), (0.6, 0.5)]


def vectors(bits, dim, seed):
    """Vectors at both ends and in between: constant, extreme, one-hot, random at all scales."""
    generator = torch.Generator().manual_seed(seed)
    top = (1 << (bits - 1)) - 1
    rows = [torch.zeros(dim), torch.full((dim,), top), torch.full((dim,), -top - 1)]
    rows.append(torch.where(torch.arange(dim) % 2 == 0, top, -top - 1))
    rows.append(torch.where(torch.arange(dim) == 0, 1, 0))
    rows.append(torch.where(torch.arange(dim) < dim // 3, top, -top))
    for spread in range(1, bits):
        limit = 1 << (spread - 1)
        rows.append(torch.randint(-limit, limit, (dim,), generator=generator))
    return torch.stack([row.to(torch.int64) for row in rows])


def payloads(codes, exponents):
    return [
        {"total": total, "squares": squares, "exponent": exponent}
        for total, squares, exponent in zip(
            codes.sum(-1).tolist(), (codes**2).sum(-1).tolist(), exponents, strict=True
        )
    ]


def golden(codes, exponents, **options):
    factor = layer_norm_factor(
        codes.sum(-1), (codes**2).sum(-1), torch.tensor(exponents), **options
    )
    pairs = zip(factor.mantissa.tolist(), factor.exponent.tolist(), strict=True)
    return [{"mantissa": mantissa, "exponent": exponent} for mantissa, exponent in pairs]


@pytest.mark.parametrize(
    ("bits", "dim", "epsilon", "index_bits"),
    [(8, 64, 1e-5, 5), (16, 96, 1e-6, 3), (16, 4096, 1e-5, 5), (4, 2, 3.0, 4)],
)
def test_hardware_is_golden(bits, dim, epsilon, index_bits):
    codes = vectors(bits, dim, bits)
    generator = random.Random(dim)
    exponents = [
        generator.choice((-256, 255, -7, -14, generator.randrange(-40, 20))) for _ in codes
    ]
    options = {"code_bits": bits, "dim": dim, "epsilon": epsilon, "index_bits": index_bits}
    unit = LayerNormFactor(**options)
    want = golden(codes, exponents, **options)
    check_stream(unit, {"i": payloads(codes, exponents)}, {"o": want}, stalls=STALLS)


# Largest relative errors of an RMSNorm's factor, and 10 % more.
LIMITS = {3: 2.6e-3 * 1.1, 4: 9.4e-4 * 1.1, 5: 4.1e-4 * 1.1}


@pytest.mark.parametrize("index_bits", LIMITS)
@pytest.mark.parametrize("dim", [64, 100, 768])
def test_relative_error(dim, index_bits):
    generator = torch.Generator().manual_seed(dim)
    exponent = -12
    codes = (torch.randn(200, dim, generator=generator) * 3000 + 500).round().long()
    factor = layer_norm_factor(
        codes.sum(-1),
        (codes**2).sum(-1),
        torch.full((200,), exponent),
        code_bits=16,
        dim=dim,
        epsilon=1e-5,
        index_bits=index_bits,
    )
    values = torch.ldexp(codes.double(), torch.tensor(exponent))
    exact = (values.var(-1, correction=0) + 1e-5) ** -0.5
    assert (factor.to_float() / exact - 1).abs().max() <= LIMITS[index_bits]


def test_epsilon_alone():
    # Of a constant vector only the epsilon is left.
    options = {"code_bits": 8, "dim": 64, "epsilon": 2.0**-10}
    codes = torch.full((3, 64), 77)
    factor = layer_norm_factor(
        codes.sum(-1), (codes**2).sum(-1), torch.tensor([-8, -12, -16]), **options
    )
    assert factor.to_float().tolist() == pytest.approx([32.0] * 3, rel=4.1e-4)


@pytest.mark.parametrize("dim", [64, 96])
def test_timing(dim):
    unit = LayerNormFactor(code_bits=8, dim=dim, epsilon=1e-5)
    inputs = [{"total": n, "squares": n * n, "exponent": 0} for n in range(40)]
    timing = measure_latency_and_interval(unit, {"i": inputs}, "o", 40, groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)
    assert (unit.code_bits, unit.dim) == (8, dim)
    assert (unit.latency, unit.multipliers) == ((10, 2) if dim == 64 else (12, 4))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"code_bits": 1},
            ValueError,
            "Code width of a layer norm must be between 2 and 24, not 1",
        ),
        ({"dim": 2.0}, TypeError, "Dimension of a layer norm must be an integer, not 2.0"),
        ({"epsilon": 0}, ValueError, "Epsilon of a layer norm must be above 0, not 0"),
        (
            {"code_bits": 24, "dim": 1 << 10},
            ValueError,
            "Variance of a layer norm must have at most 62 bits, not 69",
        ),
    ],
)
def test_errors(change, kind, message):
    with pytest.raises(kind) as caught:
        LayerNormFactor(**{"code_bits": 8, "dim": 64, "epsilon": 1e-5, **change})
    assert str(caught.value) == message
