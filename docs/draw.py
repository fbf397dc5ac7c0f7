"""Draw the data's way through the folded decoder: ``python docs/draw.py [--png FILE]``.

Writes ``docs/img/dataflow.svg``. Needs matplotlib (``pip install -e '.[train]'``). The picture has
a background of its own, so it reads on white and on dark pages.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

WIDTH, HEIGHT = 1300, 1020

NARROW, WIDE, FIXED = "#2563c9", "#0f8a6d", "#c9660a"
WORDS, EXACT, CONTROL = "#7b3fb5", "#3d4654", "#8a94a3"
INK, FAINT, PAPER = "#1b2430", "#5b6675", "#ffffff"

LEGEND = (
    (NARROW, "mxint8: beats of 4 elements"),
    (WIDE, "mxint16: beats of 4 elements"),
    (FIXED, "fixed point, 24 bits: beats of 4"),
    (WORDS, "packed words: 4 blocks of 32 mxint8"),
    (EXACT, "exact sums, before the one rounding"),
    (CONTROL, "commands, tokens, scales, totals"),
)

FILLS = {
    "memory": ("#f3ecfb", "#b897dd"),
    "matrix": ("#e4e9f1", "#7f8da1"),
    "pointwise": ("#eaf6f2", "#86c4b1"),
    "fixed": ("#fdf1e3", "#e2ae72"),
    "control": ("#f5f6f8", "#b3bbc7"),
    "queue": ("#ffffff", "#a9b3c0"),
    "route": ("#d9e0ea", "#7f8da1"),
}


class Box:
    """A unit: a rounded box around its centre, with a title and lines of detail."""

    def __init__(self, axes: Axes, kind: str, x: float, y: float, w: float, h: float):
        fill, edge = FILLS[kind]
        self.left, self.right, self.top, self.bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
        self.x, self.y = x, y
        style = "round,pad=0,rounding_size=7"
        axes.add_patch(
            FancyBboxPatch(
                (self.left, self.top),
                w,
                h,
                boxstyle=style,
                facecolor=fill,
                edgecolor=edge,
                linewidth=1.3,
                zorder=3,
            )
        )

    def label(self, axes: Axes, title: str, *lines: str, vertical: bool = False) -> "Box":
        """Write the title, and the lines below it."""
        rotation = 90 if vertical else 0
        step = 14
        y = self.y - step * len(lines) / 2
        common = {"ha": "center", "va": "center", "rotation": rotation, "zorder": 4}
        axes.text(self.x, y, title, fontsize=10.5, fontweight="bold", color=INK, **common)
        for number, line in enumerate(lines, 1):
            axes.text(self.x, y + number * step + 1, line, fontsize=8.2, color=FAINT, **common)
        return self


def unit(
    axes: Axes,
    kind: str,
    place: tuple[float, float],
    size: tuple[float, float],
    title: str,
    *lines: str,
    vertical: bool = False,
) -> Box:
    """A labelled box."""
    return Box(axes, kind, *place, *size).label(axes, title, *lines, vertical=vertical)


def wire(
    axes: Axes, points: list[tuple[float, float]], colour: str, *, width: float = 2.0, dashed=False
) -> None:
    """A line through the points with an arrow head at its end, over a halo of the background."""
    style = (0, (4, 3)) if dashed else "-"
    *body, end = points
    before = body[-1]
    for halo in (True, False):
        line = {
            "color": PAPER if halo else colour,
            "linewidth": width + 5 if halo else width,
            "zorder": 1.5 if halo else 2,
        }
        if len(body) > 1:
            xs, ys = zip(*body, strict=True)
            axes.plot(xs, ys, linestyle=style, solid_joinstyle="round", **line)
        axes.add_patch(
            FancyArrowPatch(
                before,
                end,
                arrowstyle="-" if halo else "-|>,head_length=6,head_width=3.2",
                shrinkA=0,
                shrinkB=0,
                linestyle=style,
                mutation_scale=1,
                **line,
            )
        )


def note(
    axes: Axes, x: float, y: float, text: str, colour: str, ha: str = "center", size: float = 8.4
) -> None:
    """A line's label."""
    axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va="center", zorder=5)


def draw(axes: Axes) -> None:
    """All units and streams."""
    left, right = 75, 1045
    norm_y, memory_y, engine_y, cache_y = 205, 300, 415, 540
    rope_y, softmax_y, sums_y, gated_y = 640, 735, 825, 910
    wide, tall = 170, 52

    operands = unit(
        axes, "route", (left, 557), (34, 760), "operand select: one of five", vertical=True
    )
    results = unit(
        axes, "route", (right, 557), (34, 760), "result routes: by the program", vertical=True
    )
    sequencer = unit(
        axes,
        "control",
        (560, 105),
        (1004, 60),
        "Sequencer",
        "runs the program of matrix steps once a token: "
        "load this operand, multiply by these words, send the result there",
    )
    host = unit(axes, "control", (1185, 105), (150, 60), "Host link", "serial, framed")

    residual = unit(
        axes, "pointwise", (850, norm_y), (wide, tall), "Residual", "the token's vector, adds"
    )
    norm = unit(axes, "pointwise", (430, norm_y), (wide, tall), "RMSNorm", "weights of every norm")
    weights = unit(
        axes, "memory", (540, memory_y), (210, tall), "Weight memory", "block RAM, a word a cycle"
    )
    embedding = unit(
        axes, "pointwise", (850, memory_y), (wide, tall), "Embedding", "cuts out the token's row"
    )
    queue = unit(axes, "queue", (220, engine_y), (134, tall), "Operands", "queue")
    engine = unit(
        axes,
        "matrix",
        (540, engine_y),
        (340, 92),
        "Matrix engine",
        "4 rows × 32 lanes: exact block dots, one",
        "aligner a row, sums over blocks in order",
    )
    quantizer = unit(
        axes,
        "pointwise",
        (880, engine_y - 27),
        (wide, 42),
        "Quantiser",
        "rounds once, 16 or 8 bits",
    )
    fixed = unit(
        axes, "fixed", (880, engine_y + 27), (wide, 42), "Fixed point", "scores and logits"
    )
    argmax = unit(
        axes,
        "fixed",
        (1185, engine_y),
        (150, 66),
        "Arg-max",
        "first of the largest,",
        "logits on request",
    )
    keys = unit(axes, "memory", (430, cache_y), (wide, tall), "Key cache", "rows are positions")
    values = unit(axes, "memory", (650, cache_y), (wide, tall), "Value cache", "stored transposed")
    rope = unit(axes, "pointwise", (430, rope_y), (wide, tall), "RoPE", "rotates pairs, tables")
    softmax = unit(
        axes, "fixed", (650, softmax_y), (wide, tall), "Softmax", "powers of two by table"
    )
    output = unit(
        axes, "pointwise", (650, sums_y), (wide, tall), "Attention output", "divides by the total"
    )
    gated = unit(
        axes, "pointwise", (650, gated_y), (wide, tall), "Gated SiLU", "gate and factor in turns"
    )
    queries = unit(axes, "queue", (210, rope_y), (110, 46), "All heads", "queue")
    attended = unit(axes, "queue", (210, sums_y), (110, 46), "All heads", "queue")

    # The loop: operand, engine, result.
    wire(axes, [(operands.right, engine_y), (queue.left, engine_y)], NARROW)
    wire(axes, [(queue.right, engine_y), (engine.left, engine_y)], NARROW)
    note(axes, 328, engine_y - 10, "mxint8 ×4", NARROW)
    for target in (quantizer, fixed):
        middle = 752
        wire(
            axes,
            [
                (engine.right, engine_y),
                (middle, engine_y),
                (middle, target.y),
                (target.left, target.y),
            ],
            EXACT,
        )
    note(axes, 731, engine_y - 10, "sums", EXACT)
    wire(axes, [(quantizer.right, quantizer.y), (results.left, quantizer.y)], WIDE)
    wire(axes, [(fixed.right, fixed.y), (results.left, fixed.y)], FIXED)

    # Weights.
    wire(axes, [(540, weights.bottom), (540, engine.top)], WORDS)
    note(axes, 550, 348, "weights, 4 × 32 mxint8", WORDS, "left")
    wire(axes, [(430, keys.top), (430, engine.bottom)], WORDS)
    note(axes, 440, 487, "keys, 4 × 32 mxint8", WORDS, "left")
    wire(axes, [(650, values.top), (650, engine.bottom)], WORDS)
    note(axes, 660, 487, "values, 4 × 32 mxint8", WORDS, "left")
    wire(axes, [(weights.right, memory_y), (embedding.left, memory_y)], WORDS)
    note(axes, 705, memory_y - 10, "table row", WORDS)

    # Residual stream and norm.
    wire(axes, [(850, embedding.top), (850, residual.bottom)], WIDE)
    wire(axes, [(results.left, norm_y), (residual.right, norm_y)], WIDE)
    note(axes, 981, norm_y - 10, "projections", WIDE)
    wire(axes, [(residual.left, norm_y), (norm.right, norm_y)], WIDE)
    note(axes, 640, norm_y - 10, "residual stream, mxint16 ×4", WIDE)
    wire(axes, [(norm.left, norm_y), (operands.right, norm_y)], NARROW)
    note(axes, 220, norm_y - 10, "normalised, mxint8 ×4", NARROW)

    # Attention.
    wire(axes, [(650, values.bottom), (650, softmax.top)], CONTROL)
    note(axes, 660, 690, "value scales", FAINT, "left")
    wire(axes, [(results.left, cache_y), (values.right, cache_y)], NARROW)
    note(axes, 880, cache_y - 10, "this position's value, mxint8 ×4", NARROW)
    wire(axes, [(results.left, rope_y), (rope.right, rope_y)], WIDE)
    note(axes, 880, rope_y - 10, "queries, then keys, mxint16 ×4", WIDE)
    wire(axes, [(430, rope.top), (430, keys.bottom)], NARROW)
    note(axes, 440, 590, "key", NARROW, "left")
    wire(axes, [(rope.left, rope_y), (queries.right, rope_y)], NARROW)
    note(axes, 302, rope_y - 10, "queries", NARROW)
    wire(axes, [(queries.left, rope_y), (operands.right, rope_y)], NARROW)
    wire(axes, [(results.left, softmax_y), (softmax.right, softmax_y)], FIXED)
    note(axes, 880, softmax_y - 10, "scores in base 2, fixed 24 ×4", FIXED)
    wire(axes, [(softmax.left, softmax_y), (operands.right, softmax_y)], NARROW)
    note(axes, 330, softmax_y - 10, "numerators, blocks along positions, mxint8 ×4", NARROW)
    wire(axes, [(650, softmax.bottom), (650, output.top)], CONTROL)
    note(axes, 660, 780, "total", FAINT, "left")
    wire(axes, [(results.left, sums_y), (output.right, sums_y)], WIDE)
    note(axes, 880, sums_y - 10, "sums of values, mxint16 ×4", WIDE)
    wire(axes, [(output.left, sums_y), (attended.right, sums_y)], NARROW)
    note(axes, 412, sums_y - 10, "attention, mxint8 ×4", NARROW)
    wire(axes, [(attended.left, sums_y), (operands.right, sums_y)], NARROW)

    # Feed-forward.
    wire(axes, [(results.left, gated_y), (gated.right, gated_y)], WIDE)
    note(axes, 880, gated_y - 10, "gate and factor, mxint16 ×4", WIDE)
    wire(axes, [(gated.left, gated_y), (operands.right, gated_y)], NARROW)
    note(axes, 330, gated_y - 10, "hidden vector, mxint8 ×4", NARROW)

    # The way out, and commands.
    wire(axes, [(results.right, engine_y), (argmax.left, engine_y)], FIXED)
    note(axes, 1086, engine_y - 10, "logits", FIXED)
    wire(axes, [(1150, argmax.top), (1150, host.bottom)], CONTROL)
    note(axes, 1142, 260, "chosen\ntoken", FAINT, "right")
    wire(axes, [(1220, argmax.top), (1220, host.bottom)], FIXED)
    note(axes, 1228, 260, "logits", FIXED, "left")
    wire(axes, [(host.left, 105), (sequencer.right, 105)], CONTROL)
    note(axes, 1086, 93, "step", FAINT)
    for x, target in ((left, operands), (right, results)):
        wire(axes, [(x, sequencer.bottom), (x, target.top)], CONTROL, dashed=True)
    text = "commands through small queues: here, and to the engine, the memories and the caches"
    note(axes, left + 12, 156, text, FAINT, "left")


def legend(axes: Axes) -> None:
    """Colours of the streams, in two rows."""
    for number, (colour, text) in enumerate(LEGEND):
        x, y = 75 + number % 3 * 400, 972 + number // 3 * 22
        axes.plot([x, x + 34], [y, y], color=colour, linewidth=3, solid_capstyle="round")
        note(axes, x + 46, y, text, INK, "left", 9)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw the data's way through the folded decoder.")
    folder = Path(__file__).parent / "img"
    parser.add_argument("--svg", type=Path, default=folder / "dataflow.svg", help="file to write")
    parser.add_argument("--png", type=Path, help="write a bitmap, too")
    arguments = parser.parse_args()
    matplotlib.rcParams.update({"svg.hashsalt": "mxhw", "svg.fonttype": "path"})
    figure = pyplot.figure(figsize=(WIDTH / 100, HEIGHT / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(HEIGHT, 0)
    axes.axis("off")
    axes.add_patch(
        FancyBboxPatch(
            (8, 8),
            WIDTH - 16,
            HEIGHT - 16,
            boxstyle="round,pad=0,rounding_size=16",
            facecolor=PAPER,
            edgecolor="#c9d1dc",
            linewidth=1.2,
            zorder=0,
        )
    )
    axes.text(
        40,
        42,
        "One token's way through the folded decoder",
        fontsize=15,
        fontweight="bold",
        color=INK,
        va="center",
    )
    draw(axes)
    legend(axes)
    arguments.svg.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Title": "One token's way through the folded decoder"}
    figure.savefig(arguments.svg, transparent=True, metadata=metadata)
    if arguments.png is not None:
        figure.savefig(arguments.png, dpi=110, transparent=True)


if __name__ == "__main__":
    main()
