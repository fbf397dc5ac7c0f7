"""Which binding a device gets: the widest engine that it holds, and then units as wide as pay."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from torch import fx

from mxhw.compiler.binder import bind
from mxhw.compiler.binding import FoldedBinding
from mxhw.compiler.context import REPORT_CONTEXT
from mxhw.compiler.estimate import Estimate, estimate
from mxhw.compiler.passes import LoweringOptions
from mxhw.errors import UserError

__all__ = ["ROW_CHOICES", "fit"]

ROW_CHOICES = (8, 4, 2)
"""Rows of an engine that :func:`fit` tries, largest first."""

_LARGEST_SHARE = 0.9
"""Of the lookup tables: what is beyond cannot be routed."""

_COMFORTABLE_SHARE = 0.4
"""Of the lookup tables: up to here wider units do not cost clock."""

_WIDENED = ("softmax_lanes", "attention_lanes", "gated_lanes")

_BLOCK_RAM_DEPTH = 2048
_HOPELESS = 4
"""Times the block RAM of a device: a large model is bound once, which takes long enough."""


@dataclasses.dataclass(frozen=True)
class _Device:
    multipliers: int
    luts: int
    block_rams: int

    def has_logic(self, figures: Estimate, share: float = _LARGEST_SHARE) -> bool:
        needs = figures.resources
        return needs["dsp"] <= self.multipliers and needs["lut"] <= share * self.luts

    def holds(self, figures: Estimate) -> bool:
        return self.has_logic(figures) and figures.resources["block_ram"] <= self.block_rams

    def is_hopeless(self, figures: Estimate) -> bool:
        """Only block RAM is short, but so much for the weights that nothing would help."""
        needed = figures.units["weights"].block_ram
        return self.has_logic(figures) and needed > _HOPELESS * self.block_rams


def fit(
    lowered: fx.GraphModule,
    options: LoweringOptions,
    *,
    multipliers: int,
    luts: int,
    block_rams: int,
    contexts: Sequence[int] = (),
) -> Estimate:
    """The binding that is fastest of those with the widest engine that a device holds.

    If none fits, the widest that only needs more block RAM, or else the narrowest.
    For every number of rows all weight words are tried in block RAM first, then without the zeros
    that fill blocks, and then with the words behind a whole depth of block RAMs in lookup tables.
    Units beside the engine are then made wider for as long as multipliers are left and no more
    than two fifths of the lookup tables are used; not where weights lie in lookup tables.

    Parameters
    ----------
    lowered : torch.fx.GraphModule
    options : LoweringOptions
    multipliers, luts, block_rams : int
        Capacity of the device. Nine tenths of the lookup tables are used at most, since the
        rest cannot be routed.
    contexts : sequence of int
        Numbers of positions to try in this order if the graph's own does not fit. The result is
        then of the sizes only: lower the model again for its context.

    Raises
    ------
    UserError
        If the graph cannot be bound to any engine.
    """
    device = _Device(multipliers, luts, block_rams)
    tried: list[Estimate] = []
    for binding in _bindings(lowered, options, device):
        tried.append(estimate(binding))
        if device.holds(tried[-1]):
            return _widen(tried[-1], device)
        if device.is_hopeless(tried[-1]):
            return tried[-1]
    for context, former in itertools.product(contexts, tried):
        if context % former.binding.shape.rows == 0:
            figures = estimate(former.binding.with_context(context))
            if device.holds(figures):
                return _widen(figures, device)
    for figures in tried:
        if figures.binding.block_words is None and device.has_logic(figures):
            return figures
    return min(tried, key=lambda figures: figures.binding.shape.rows)


def _bindings(
    lowered: fx.GraphModule, options: LoweringOptions, device: _Device
) -> Iterator[FoldedBinding]:
    """Bindings of every number of rows; of one number each has less block RAM than those before."""
    size = options.activation_format.block_size
    reason, bound = UserError("Model cannot be bound"), False
    for rows in ROW_CHOICES:
        if rows * size > device.multipliers and rows != ROW_CHOICES[-1]:
            continue
        try:
            whole = bind(lowered, options, rows=rows)
        except UserError as error:
            reason = error
            continue
        bound = True
        yield whole
        shared = bind(lowered, options, rows=rows, share_zeros=True)
        if len(shared.words) < len(whole.words):
            yield shared
        # Block RAMs are as deep as a power of two at every width but the largest.
        depth = len(shared.words) // _BLOCK_RAM_DEPTH * _BLOCK_RAM_DEPTH
        if 0 < depth < len(shared.words):
            yield dataclasses.replace(shared, block_words=depth)
    if not bound:
        raise reason


def _widen(figures: Estimate, device: _Device) -> Estimate:
    """The same engine with the units beside it as wide as make a token fastest."""
    binding = figures.binding
    if binding.block_words is not None:
        return figures
    context = min(REPORT_CONTEXT, binding.shape.context)
    best, cycles = figures, figures.cycles_per_token(context)
    choices = [
        [lanes for lanes in (1, 2, 4, 8) if getattr(binding, name) <= lanes <= binding.shape.lanes]
        for name in _WIDENED
    ]
    for lanes in itertools.product(*choices):
        chosen = dict(zip(_WIDENED, lanes, strict=True))
        wider = estimate(dataclasses.replace(binding, **chosen))
        if not device.has_logic(wider, _COMFORTABLE_SHARE):
            continue
        needed = wider.cycles_per_token(context)
        if (needed, wider.resources["lut"]) < (cycles, best.resources["lut"]):
            best, cycles = wider, needed
    return best
