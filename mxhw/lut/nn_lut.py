"""NN-LUT: a table from a network with one hidden layer of ReLU (arXiv 2112.02191). A baseline.

A hidden neuron bends the output where its input crosses zero, so that a network of ``N - 1``
neurons is a piecewise-linear function of ``N`` segments. It is trained in floating point; slopes
and intercepts are rounded afterwards.

With fixed tails the network is held to the function's asymptotes while it is trained: before each
step the output weights move to the nearest ones whose outer segments are the asymptotes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from mxhw.lut.functions import Function, Line
from mxhw.lut.optimal import (
    Solution,
    candidates,
    fixed_values,
    lines_fit,
    make_table,
    no_tails,
    set_outer_lines,
)
from mxhw.lut.table import PwlTable

__all__ = ["fit_nn_lut"]

_BATCH = 1024
_RATE = 1e-2
_DAMPING = 1e-6
"""Keeps the projection finite where no neuron reaches an outer segment."""


def _held(
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    offset: torch.Tensor,
    lines: tuple[Line | None, Line | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest output weights and bias for which the outer segments are given lines."""
    rows, wanted = [], []
    # Far to the left the neurons of negative weight are active, far to the right the others.
    for line, active in zip(lines, (weight < 0, weight > 0), strict=True):
        if line is not None:
            rows.append(torch.cat([active * weight, torch.zeros(1)]))
            rows.append(torch.cat([active * bias, torch.ones(1)]))
            wanted += line
    if not rows:
        return out, offset
    matrix, both = torch.stack(rows), torch.cat([out, offset[None]])
    gram = matrix @ matrix.T + _DAMPING * torch.eye(len(rows))
    step = torch.linalg.solve(gram, torch.tensor(wanted) - matrix @ both)
    both = both + matrix.T @ step
    return both[:-1], both[-1]


def _train(
    function: Function,
    neurons: int,
    steps: int,
    seed: int,
    lines: tuple[Line | None, Line | None],
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Input weights, input biases, output weights and output bias of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    low, high = function.range
    grid = torch.linspace(low, high, 16 * _BATCH)
    target = torch.from_numpy(function(grid.double().numpy())).float()
    sign = torch.randint(0, 2, (neurons,), generator=generator) * 2.0 - 1
    bend = low + (high - low) * torch.rand(neurons, generator=generator)
    weight = sign.clone().requires_grad_()
    bias = (-sign * bend).requires_grad_()
    out = (0.1 * torch.randn(neurons, generator=generator)).requires_grad_()
    offset = target.mean().clone().requires_grad_()
    parameters = [weight, bias, out, offset]
    optimizer = torch.optim.Adam(parameters, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):
        chosen = torch.randint(0, len(grid), (_BATCH,), generator=generator)
        hidden = torch.relu(grid[chosen, None] * weight + bias)
        final, rest = _held(weight, bias, out, offset, lines)
        loss = (hidden @ final + rest - target[chosen]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and step % 100 == 0:
            progress(step, steps)
    with torch.no_grad():
        parameters[2:] = _held(weight, bias, out, offset, lines)
    trained = [parameter.detach().double().numpy() for parameter in parameters]
    return trained[0], trained[1], trained[2], float(trained[3])


def fit_nn_lut(
    function: Function,
    *,
    entries: int,
    bits: int,
    breakpoint_mode: str,
    tails: str = "fixed",
    seed: int = 0,
    steps: int = 3000,
    progress: Callable[[int, int], None] | None = None,
) -> PwlTable:
    """A table from a trained network, in the published storage.

    Parameters
    ----------
    function, entries, bits, breakpoint_mode
        See :func:`mxhw.lut.fit`.
    tails : str
        ``fixed``: outer segments are the function's asymptotes; ``free``, as published.
    seed : int
    steps : int
        Batches of 1,024 points; Adam, absolute error, cosine schedule.
    progress : callable, optional
        Called with the step and the number of steps.

    Raises
    ------
    TypeError, ValueError
        If a setting is wrong, or the coefficients or asymptotes do not fit the bits.
    """
    for name, value, least in (("Seed", seed, 0), ("Steps", steps, 1)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    frac = function.coefficient_frac + bits - 8
    values = fixed_values(bits, frac)
    lines = function.outer_lines(tails)
    if not lines_fit(lines, values, values):
        raise ValueError(no_tails(function))
    weight, bias, out, offset = _train(function, entries - 1, steps, seed, lines, progress)
    low, high = function.range
    bends = np.clip(-bias / np.where(weight == 0, 1e-30, weight), low - 1, high + 1)
    order = np.argsort(bends)
    weight, bias, out, bends = weight[order], bias[order], out[order], bends[order]
    # A neuron of positive weight is active right of its bend, one of negative weight left of it.
    segment = np.arange(entries)[:, None]
    active = np.where(
        weight > 0, segment > np.arange(entries - 1), segment <= np.arange(entries - 1)
    )
    found = candidates(function, breakpoint_mode)
    slopes, intercepts = set_outer_lines(
        active @ (out * weight), active @ (out * bias) + offset, lines
    )
    points = found.confine(found.encode(bends), lines)
    solution = Solution(math.nan, points, found.frac, tuple(slopes), tuple(intercepts))
    return make_table(
        function,
        solution,
        bits=bits,
        fracs=(frac, frac),
        breakpoint_mode=breakpoint_mode,
        settings={"method": "nn-lut", "tails": tails, "seed": seed, "steps": steps},
    )
