# amaranth: UnusedElaboratable=no
import pytest
import torch

from mxhw.arith.elementwise import ElementwiseAdd, ElementwiseMultiply, Requantizer
from mxhw.arith.multiply import LutMultiplier
from mxhw.formats import parse_format
from mxhw.sw.golden import MXTensor, quantize
from mxhw.sw.golden.elementwise import multiply, requantize
from mxhw.sw.golden.pointwise import add
from tests.support import check_stream, measure_latency_and_interval


def vectors(format, blocks, seed):
    """Blocks of all sizes, a zero block, a block of maxima, scales at both ends of the byte."""
    generator = torch.Generator().manual_seed(seed)
    size = format.block_size
    x = torch.randn(blocks, size, generator=generator, dtype=torch.float64)
    x = x * 2.0 ** torch.randint(-12, 13, (blocks, 1), generator=generator)
    x[1] = 0
    x[2] = 1.9
    x[3] *= 2.0**-140
    tensor = quantize(x.flatten(), format)
    scales = tensor.scales.clone()
    scales[4] = 254
    scales[5] = 0
    return MXTensor(tensor.elements, scales, format)


def beats(tensor, lanes):
    size = tensor.format.block_size
    elements = tensor.elements.tolist()
    return [
        {"elements": elements[start : start + lanes], "scale": int(tensor.scales[start // size])}
        for start in range(0, len(elements), lanes)
    ]


@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("mxint8_b8", "mxint4_b8"),
        ("mxfp4_b16", "mxint8_b8"),
        ("mxint16_b8", "mxint8_b32"),
        ("mxfp6_e3m2_b8", "mxint5_b16"),
        ("mxint8_b16", "mxfp4_b8"),
        ("mxfp6_e2m3_b8", "mxfp8_e4m3_b16_rceil"),
        ("mxfp8_e4m3_b8", "mxint8_b8"),
        ("mxfp8_e5m2_b8", "mxfp8_e4m3_b16"),
        ("mxint24_b8", "mxint8_b8"),
    ],
)
def test_requantizer(source, target, lanes):
    x_format, format = parse_format(source), parse_format(target)
    x = vectors(x_format, 32, 1)
    unit = Requantizer(x_format=x_format, format=format, lanes=lanes)
    expected = beats(requantize(x, format), lanes)
    check_stream(unit, {"i": beats(x, lanes)}, {"o": expected}, stalls=[(1, 1), (0.6, 0.6)])


@pytest.mark.parametrize("lanes", [2, 8])
@pytest.mark.parametrize(
    ("x_name", "y_name", "target"),
    [
        ("mxint8_b8", "mxint8_b8", "mxint8_b8"),
        ("mxint16_b8", "mxint8_b8", "mxint16_b8"),
        ("mxfp4_b16", "mxfp6_b16", "mxint8_b16"),
        ("mxint8_b8", "mxint4_b8", "mxint6_b16"),
        ("mxfp4_b8", "mxfp4_b8", "mxfp6_e3m2_b8"),
    ],
)
@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_sums_and_products(operation, x_name, y_name, target, lanes):
    check_operation(operation, x_name, y_name, target, lanes)


@pytest.mark.parametrize(
    "names",
    [
        ("mxfp8_e4m3_b8", "mxint8_b8"),
        ("mxfp8_e5m2_b8",) * 2,
        ("mxfp8_e4m3_b8", "mxfp8_e5m2_b8"),
        ("mxfp4_b8", "mxfp8_e4m3_b8"),
    ],
)
@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_wide_significands(operation, names):
    check_operation(operation, *names, "mxfp8_e4m3_b8", 4)


def test_products_of_many_pairs_of_float_codes():
    """Pairs of every third finite E4M3 code at scales of 1, in blocks with a single element."""
    format = parse_format("mxfp8_e4m3_b8")
    target = parse_format("mxint16_b8")
    codes = [code for code in range(0, 256, 3) if code & 0x7F != 0x7F]
    pairs = [(a, b) for a in codes for b in codes]
    x, y = (
        MXTensor(
            torch.tensor([[pair[index], *[0] * 7] for pair in pairs]).flatten(),
            torch.full((len(pairs),), 127),
            format,
        )
        for index in (0, 1)
    )
    unit = ElementwiseMultiply(x_format=format, y_format=format, format=target, lanes=8)
    rows = [{"x": a, "y": b} for a, b in zip(beats(x, 8), beats(y, 8), strict=True)]
    check_stream(unit, {"i": rows}, {"o": beats(multiply(x, y, target), 8)}, stalls=[(1, 1)])


def check_operation(operation, x_name, y_name, target, lanes):
    formats = {"x_format": parse_format(x_name), "y_format": parse_format(y_name)}
    format = parse_format(target)
    x, y = vectors(formats["x_format"], 16, 2), vectors(formats["y_format"], 16, 3)
    if operation == "add":
        unit = ElementwiseAdd(**formats, format=format, lanes=lanes)
        result = add(x, y, format)
        assert unit.cost()["multipliers"] == 0
    else:
        unit = ElementwiseMultiply(**formats, format=format, lanes=lanes)
        result = multiply(x, y, format)
        assert unit.cost()["multipliers"] == lanes
    rows = [{"x": a, "y": b} for a, b in zip(beats(x, lanes), beats(y, lanes), strict=True)]
    expected = beats(result, lanes)
    check_stream(unit, {"i": rows}, {"o": expected}, stalls=[(1, 1), (0.6, 0.6)])


def test_products_in_lookup_tables():
    format = parse_format("mxint4_b8")
    x, y = vectors(format, 8, 4), vectors(format, 8, 5)
    unit = ElementwiseMultiply(
        x_format=format, y_format=format, format=format, lanes=4, multiplier=LutMultiplier()
    )
    assert unit.cost()["multipliers"] == 0
    rows = [{"x": a, "y": b} for a, b in zip(beats(x, 4), beats(y, 4), strict=True)]
    check_stream(unit, {"i": rows}, {"o": beats(multiply(x, y, format), 4)}, stalls=[(0.8, 0.8)])


@pytest.mark.parametrize("kind", [Requantizer, ElementwiseAdd, ElementwiseMultiply])
def test_timing(kind):
    format = parse_format("mxint8_b8")
    x = vectors(format, 40, 6)
    names = (
        {"x_format": format} if kind is Requantizer else {"x_format": format, "y_format": format}
    )
    unit = kind(**names, format=format, lanes=4)
    rows = beats(x, 4) if kind is Requantizer else [{"x": b, "y": b} for b in beats(x, 4)]
    timing = measure_latency_and_interval(unit, {"i": rows}, "o", 80, groups=40)
    assert (timing.latency, timing.interval) == (unit.latency, unit.interval)


def test_errors():
    small, large = parse_format("mxint8_b8"), parse_format("mxint8_b16")
    with pytest.raises(ValueError, match="^Operands must have one block size, not 8 and 16$"):
        ElementwiseAdd(x_format=small, y_format=large, format=small, lanes=4)
    with pytest.raises(ValueError, match="^Significands must have at most 18 bits, not 19"):
        ElementwiseMultiply(
            x_format=parse_format("mxint19_b8"), y_format=small, format=small, lanes=4
        )
    with pytest.raises(ValueError, match=r"^Lanes of a beat must divide the block size \(8\), not"):
        Requantizer(x_format=small, format=small, lanes=3)
    with pytest.raises(TypeError, match="^Format to decode must be a BlockFormat, not 'mxint8'$"):
        ElementwiseMultiply(x_format="mxint8", y_format=small, format=small, lanes=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Requantizer, ElementwiseAdd, ElementwiseMultiply])
def test_as_native_code(kind):
    format = parse_format("mxint8_b8")
    x, y = vectors(format, 24, 7), vectors(format, 24, 8)
    if kind is Requantizer:
        unit = kind(x_format=format, format=format, lanes=4)
        rows, result = beats(x, 4), requantize(x, format)
    else:
        unit = kind(x_format=format, y_format=format, format=format, lanes=4)
        rows = [{"x": a, "y": b} for a, b in zip(beats(x, 4), beats(y, 4), strict=True)]
        result = (add if kind is ElementwiseAdd else multiply)(x, y, format)
    check_stream(unit, {"i": rows}, {"o": beats(result, 4)}, engine="cxxrtl")
