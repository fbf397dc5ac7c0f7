"""Tables as PyTorch modules, and multi-range scaling."""

import numpy as np
import pytest
import torch

from mxhw.lut import PwlFunction, fit, multi_range_values
from mxhw.lut.metric import table_values
from mxhw.lut.scaling import sub_range

GELU = fit("gelu")


@pytest.mark.parametrize("scale", [0, 3, 6])
def test_forward_is_the_table(scale):
    codes = np.arange(-128, 128)
    module = PwlFunction(GELU, scale=scale)
    got = module(torch.tensor(codes / 2**scale, dtype=torch.float32))
    assert (got.double().numpy() == table_values(GELU, codes, scale)).all()


def test_inputs_are_rounded_and_saturated():
    module = PwlFunction(GELU, scale=3)
    x = torch.tensor([0.3, 0.3125, 0.4375, 100.0, -100.0])
    codes = np.array([2, 2, 4, 127, -128])
    assert (module(x).double().numpy() == table_values(GELU, codes, 3)).all()


def test_gradient_is_the_slope():
    module = PwlFunction(GELU, scale=4)
    x = torch.tensor([-3.0, -0.01, 0.3, 2.0, 3.9, 50.0], requires_grad=True)
    module(x).sum().backward()
    slopes = [0, 41, 41, 71, 64]
    assert x.grad[:5].tolist() == [slope / 64 for slope in slopes]
    assert x.grad[5] == 0


def test_learnt_scale():
    module = PwlFunction(GELU)
    assert module.scale == 3
    assert "gelu, entries=8, scale=3" in repr(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=20.0)
    x = torch.linspace(-1, 1, 999)
    errors = []
    for _ in range(60):
        loss = (module(x) - torch.nn.functional.gelu(x)).square().mean()
        errors.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert module.scale > 3
    assert errors[-1] < errors[0]
    with torch.no_grad():
        module.log2_scale.fill_(-40.0)
    assert module.scale == 6


def test_fine_tuning_recovers_a_coarse_table():
    torch.manual_seed(0)
    coarse = fit("gelu", entries=2, scales=(3,))
    x = torch.randn(512, 4)
    y = torch.nn.functional.gelu(x @ torch.randn(4, 4))
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), PwlFunction(coarse, scale=3), torch.nn.Linear(16, 4)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = (model(x) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
    assert set(model.state_dict()) >= {"1.slopes", "1.intercepts", "1.breakpoints"}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"table": 3}, TypeError, "Table of a module must be a PwlTable, not 3"),
        (
            {"scale": 7},
            ValueError,
            "Scale of a module must be one of 0, 1, 2, 3, 4, 5, 6, not 7",
        ),
        (
            {"code_bits": 25},
            ValueError,
            "Code width of a module must be between 4 and 24, not 25",
        ),
        (
            {"code_bits": "8"},
            TypeError,
            "Code width of a module must be an integer, not '8'",
        ),
    ],
)
def test_module_errors(arguments, kind, message):
    with pytest.raises(kind) as caught:
        PwlFunction(**{"table": GELU, **arguments})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "function", "step"),
    [("div", np.reciprocal, 8), ("rsqrt", lambda x: x**-0.5, 16)],
)
def test_relative_error_is_the_same_in_every_range(name, function, step):
    table = fit(name, entries=16, storage="per-entry", breakpoint_mode="ceil", scales=(8,))
    codes = np.arange(1, 1 << 16)
    x = codes / 32
    error = np.abs(multi_range_values(table, codes, 5) / function(x) - 1)
    inside = (x >= 4 / step) & (x < 4)
    assert error.max() <= error[inside].max() + 0.01
    assert (
        multi_range_values(table, codes[inside], 5) == table_values(table, codes[inside], 5)
    ).all()
    # A factor of one sub-range changes the value by exactly its power.
    power = step if name == "div" else step**0.5
    near = np.flatnonzero(inside)
    assert (
        multi_range_values(table, codes[near] * step, 5) * power
        == table_values(table, codes[near] * step, 5 + step.bit_length() - 1)
    ).all()


def test_numbers_of_sub_ranges():
    table = fit("div")
    assert sub_range(table, np.array([16, 127, 128, 1023, 1024, 15, 1]), 5).tolist() == [
        0,
        0,
        1,
        1,
        2,
        -1,
        -2,
    ]


def test_scaling_errors():
    with pytest.raises(
        ValueError, match=r"^Multi-range scaling must be of div or rsqrt, not 'gelu'$"
    ):
        multi_range_values(GELU, np.array([1]), 0)
    with pytest.raises(ValueError, match=r"^Code of multi-range scaling must be positive, not 0$"):
        multi_range_values(fit("div"), np.array([3, 0]), 5)
    short = fit("div", range=(1, 4))
    message = r"^Range of a table for multi-range scaling must span a factor of 8, not 1 to 4$"
    with pytest.raises(ValueError, match=message):
        multi_range_values(short, np.array([1]), 5)
