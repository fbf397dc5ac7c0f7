"""What a build takes where a user did not say: positions of a model from outside, and the clock."""

import dataclasses
from pathlib import Path

from mxhw.compiler.context import Context, Settings
from mxhw.compiler.progress import Progress

__all__ = ["choose_context", "choose_defaults"]

_TABLES_CLOCK_MHZ = 58.0


def choose_defaults(
    settings: Settings, clock_mhz: float | None, progress: Progress
) -> tuple[Context, list[str]]:
    """A context with positions and a clock, and a sentence for each that is less than usual.

    The clock is the one asked for, or the board's (:attr:`Board.design_clock_mhz`), or a lower one
    where a part of the weights lies in lookup tables: these lie farther from the engine than block
    RAM does. Placements of stories260K on the ULX3S were routed for 59 to 68 MHz.
    """
    context = Context(settings, Path(), progress)
    fitting, fewer = choose_context(context)
    sentences = [] if fewer is None else [fewer]
    chosen = context.board.design_clock_mhz if clock_mhz is None else clock_mhz
    if clock_mhz is None and chosen > _TABLES_CLOCK_MHZ and _has_weights_in_tables(fitting):
        sentences.append(
            f"Clock is {_TABLES_CLOCK_MHZ:g} MHz instead of {chosen:g}, since a part of the "
            f"weights lies in lookup tables; --clock asks for another."
        )
        chosen = _TABLES_CLOCK_MHZ
    fitting.settings = dataclasses.replace(fitting.settings, clock_mhz=chosen)
    return fitting, sentences


def choose_context(context: Context) -> tuple[Context, str | None]:
    """The same with the positions that the board holds, and a sentence if these are fewer.

    Bundled models, and settings that name a number of positions, are left alone.
    """
    settings = context.settings
    if not settings.fingerprint or settings.context is not None:
        return context, None
    found, whole = context.fitting_context(), context.config.context
    if found == whole:
        return context, None
    settings = dataclasses.replace(settings, context=found)
    return Context(settings, context.folder, context.progress), (
        f"Context is {found} positions, the most that {settings.target} holds of the model's "
        f"{whole} in {settings.format}; --context asks for another number."
    )


def _has_weights_in_tables(context: Context) -> bool:
    # Bundled models fit. Lowering one that the board cannot hold takes long, for nothing.
    if not context.settings.fingerprint or not context.holds_weights():
        return False
    return context.binding.block_words is not None
