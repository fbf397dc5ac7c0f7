"""Training of the bundled model: ``python -m mxhw.models.train --text FILE --out DIR``.

Texts hold stories separated by ``<|endoftext|>``; files that end in ``.xz`` are unpacked. The
run is reproducible: the same arguments and the same PyTorch build on the same kind of processor
give the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from mxhw.errors import UserError
from mxhw.models.bundled import BundledModel, load_from
from mxhw.models.config import LlamaConfig
from mxhw.models.evaluate import read_stories, score, split_count
from mxhw.models.llama import Attention, CausalAttention, Llama
from mxhw.models.tokenizer import EOS, Tokenizer, train_tokenizer

__all__ = ["Muon", "Recipe", "main", "pack", "save_model", "train"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers of a training run.

    Parameters
    ----------
    steps : int
        Number of updates.
    batch : int
        Rows of ``context`` tokens an update.
    matrix_rate : float
        Peak learning rate of the matrices, for :class:`Muon`.
    vector_rate : float
        Peak learning rate of the embedding and the norms, for AdamW.
    weight_decay : float
        Decay of the matrices and of the embedding.
    warmup : int
        Updates over which both rates rise linearly to their peaks.
    decay : float
        Share of the updates, the last ones, over which both rates fall linearly to zero.
    seed : int
        Seed of the initial weights and of the order of the stories.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    steps: int = 20000
    batch: int = 8
    matrix_rate: float = 0.02
    vector_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup: int = 200
    decay: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "batch", "matrix_rate", "vector_rate", "warmup"):
            if not getattr(self, field) > 0:
                label = field.replace("_", " ").capitalize()
                raise ValueError(f"{label} must be positive, not {getattr(self, field)}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"Decay must be at least 0 and below 1, not {self.decay}")

    def rate(self, step: int) -> float:
        """Return the factor of both learning rates at an update, counted from 0."""
        falling = int(self.steps * self.decay)
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / max(1, falling))

    def shortened(self, step: int) -> Recipe:
        """Return the recipe whose rates begin to fall at an update, as soon as can be.

        Before that update both recipes are the same, so that a run may change to the shorter
        one on the way and still be repeated from its start.
        """
        steps = max(1, math.ceil(step / (1 - self.decay)))
        return dataclasses.replace(self, steps=min(self.steps, steps))


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is orthogonalised by a Newton-Schulz iteration.

    The same method as :class:`torch.optim.Muon`, but matrices of one shape (or its transpose)
    are orthogonalised together in one batch and in single precision: at the width of the
    bundled model, one by one costs a third of a training step.

    Parameters
    ----------
    matrices : sequence of Tensor[rows, columns]
        Parameters to train.
    lr : float
        Learning rate; the update of a matrix has singular values near
        ``lr * sqrt(max(1, rows / columns))``.
    momentum : float
        Decay of the gradients' running sum.
    weight_decay : float
        Decoupled decay.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every matrix from its gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for matrix in group["params"]:
                shapes.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
            for members in shapes.values():
                self._step_together(members, group)
        return loss

    def _step_together(self, members: list[Tensor], group: dict[str, float]) -> None:
        updates = []
        for matrix in members:
            gradient = matrix.grad
            if gradient is None:
                gradient = torch.zeros_like(matrix)
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(average, group["momentum"])
            updates.append(update.T if matrix.shape[0] > matrix.shape[1] else update)
        for matrix, update in zip(members, _orthogonalize(torch.stack(updates)), strict=True):
            rows, columns = matrix.shape
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(
                update.T if rows > columns else update,
                alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5,
            )


def _orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of ``x[N, rows, columns]``, rows <= columns, close to 1."""
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x


class _FusedAttention(CausalAttention):
    """The same attention by PyTorch's fused kernel, for positions 0 .. T - 1 only."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        shape = (-1, self.heads // self.kv_heads, -1, -1)
        k, v = (
            x.movedim(-3, -2).unsqueeze(2).expand(-1, -1, *shape[1:]).flatten(1, 2) for x in (k, v)
        )
        mixed = functional.scaled_dot_product_attention(q.movedim(-3, -2), k, v, is_causal=True)
        return mixed.movedim(-2, -3)


def pack(
    stories: Sequence[np.ndarray], batch: int, length: int, generator: np.random.Generator
) -> Iterator[Tensor]:
    """Yield batches of training rows without end.

    Each pass takes the stories in a new order, joins them and cuts the result into rows, which
    it shuffles again.

    Parameters
    ----------
    stories : sequence of ndarray
        Token numbers of each story, ``<bos>`` first.
    batch : int
        Rows of a batch.
    length : int
        Tokens of a row.
    generator : numpy.random.Generator
        Source of the orders.

    Yields
    ------
    Tensor[batch, length]
        Token numbers.

    Raises
    ------
    UserError
        If the stories do not fill one batch.
    """
    total = sum(map(len, stories))
    if total < batch * length:
        raise UserError(f"Texts must have at least {batch * length} tokens, not {total}")
    while True:
        order = generator.permutation(len(stories))
        stream = np.concatenate([stories[index] for index in order])
        # A random start, so that the cuts fall elsewhere in every pass.
        stream = np.roll(stream, generator.integers(length))
        rows = stream[: len(stream) // length * length].reshape(-1, length)
        rows = rows[generator.permutation(len(rows))]
        for start in range(0, len(rows) - batch + 1, batch):
            yield torch.from_numpy(rows[start : start + batch].astype(np.int64))


def train(
    config: LlamaConfig,
    recipe: Recipe,
    stories: Sequence[np.ndarray],
    report: Callable[[int, float, Llama, Recipe], None] | None = None,
    seconds: float = math.inf,
    start: Llama | None = None,
) -> tuple[Llama, Recipe]:
    """Train a model.

    Parameters
    ----------
    config : LlamaConfig
        Shape of the model.
    recipe : Recipe
        Numbers of the run.
    stories : sequence of ndarray
        Token numbers of each story, ``<bos>`` first.
    report : callable, optional
        Called after every update with its number from 1, its loss (nats a token), the model and
        the recipe.
    seconds : float
        Time to aim at: when the share before the decay has passed, the decay begins.
    start : Llama, optional
        Model of the same shape whose weights to begin with, instead of random ones.

    Returns
    -------
    model : Llama
        The trained model.
    recipe : Recipe
        The given one, with the number of updates that there was time for; with it, the run can
        be repeated exactly.

    Raises
    ------
    UserError
        If the stories do not fill one batch.
    """
    torch.manual_seed(recipe.seed)
    model = Llama(config)
    initialize(model)
    if start is not None:
        model.load_state_dict(start.state_dict())
    matrices = [value for value in model.blocks.parameters() if value.ndim == 2]
    tables = [model.embedding.weight]
    if not config.tied:
        tables.append(model.head.weight)
    norms = [value for value in model.parameters() if value.ndim == 1]
    optimizers = (
        Muon(matrices, recipe.matrix_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": recipe.weight_decay},
                {"params": norms, "weight_decay": 0.0},
            ],
            recipe.vector_rate,
            betas=(0.9, 0.98),
            fused=True,
        ),
    )
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    exact = []
    for module in model.modules():
        if isinstance(module, Attention):
            exact.append((module, module.attend))
            module.attend = _FusedAttention(config.heads, config.kv_heads, config.head_size)
    rows = pack(stories, recipe.batch, config.context + 1, np.random.default_rng(recipe.seed))
    begin = time.monotonic()
    step = 0
    timed = math.isfinite(seconds)
    while step < recipe.steps:
        if timed and time.monotonic() - begin >= seconds * (1 - recipe.decay):
            recipe = recipe.shortened(step)
            timed = False
        x = next(rows)
        loss = functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(tables + norms, 1.0)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * recipe.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if report is not None:
            report(step, loss.item(), model, recipe)
    for module, attend in exact:
        module.attend = attend
    return model, recipe


def initialize(model: Llama) -> None:
    """Fill the weights with normal numbers; what is added to the residual stream starts small."""
    depth = 2 * model.config.layers
    for name, value in model.named_parameters():
        if value.ndim == 2:
            scale = 0.02 if name.startswith(("embedding", "head")) else value.shape[1] ** -0.5
            if name.endswith(("wo.weight", "down.weight")):
                scale /= depth**0.5
            nn.init.normal_(value, 0.0, scale)


def save_model(
    directory: Path, name: str, model: Llama, tokenizer: Tokenizer, extra: dict[str, object]
) -> None:
    """Write ``NAME.safetensors``, ``tokenizer.json`` and ``config.json``.

    Parameters
    ----------
    directory : Path
        Folder to write to; made if missing.
    name : str
        Name of the model.
    model : Llama
        Weights, saved in single precision.
    tokenizer : Tokenizer
        Its tokenizer.
    extra : dict
        More entries of ``config.json``, of JSON types.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / f"{name}.safetensors"
    # As bytes, since save_file's result is readable by its owner only.
    weights.write_bytes(
        save({key: value.float().contiguous() for key, value in model.weights().items()})
    )
    tokenizer.save(directory / "tokenizer.json")
    description = {
        "name": name,
        "architecture": model.config.to_dict(),
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (weights, directory / "tokenizer.json")
        },
        **extra,
    }
    (directory / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def _encode(tokenizer: Tokenizer, story: str) -> np.ndarray:
    # A story that was cut off has no end to learn.
    end = [EOS] if story.endswith((".", "!", "?", '"')) else []
    return np.array(tokenizer.encode(story) + end, dtype=np.uint16)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mxhw.models.train", description="Train the bundled language model."
    )
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="FILE[:REPEAT]",
        help="text to learn, its stories repeated in every pass; may be given several times",
    )
    parser.add_argument(
        "--held-out",
        metavar="FILE:COUNT",
        help="keep the first stories of a text for validation; never train on them",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="continue from the weights, shape and tokenizer of an earlier run",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--name", default="llama", help="name of the model")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="time to aim at; fewer steps are made if it is short, and --steps repeats the run",
    )
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument(
        "--tokenizer-text",
        type=int,
        default=4_000_000,
        metavar="CHARACTERS",
        help="most characters to learn the tokenizer from, the files with most repeats first",
    )
    parser.add_argument(
        "--report-every", type=int, default=1000, metavar="STEPS", help="print the loss so often"
    )
    for field in dataclasses.fields(Recipe):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
        )
    for field in dataclasses.fields(LlamaConfig):
        if field.type != "bool":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
            )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a model from the command line; see ``--help``.

    Returns
    -------
    int
        Exit status: 0, or 1 after a message on standard error.
    """
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        return _run(options, console)
    except (UserError, ValueError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1


def _run(options: argparse.Namespace, console: Console) -> int:
    torch.set_num_threads(options.threads)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)})
    if not options.minutes > 0:
        raise UserError(f"Minutes must be positive, not {options.minutes}")
    config = LlamaConfig(
        **{
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(LlamaConfig)
            if field.type != "bool"
        }
    )
    start = None
    if options.start is not None:
        start, tokenizer, config = load_from(BundledModel(options.name, "", options.start))
    held_out: list[str] = []
    if options.held_out:
        path, count = split_count(options.held_out)
        held_out = read_stories(path)[:count]
    excluded = set(held_out)
    texts = []
    for argument in options.text:
        path, repeat = split_count(argument)
        texts.append((repeat, [s for s in read_stories(path) if s not in excluded]))
    sample: list[str] = []
    left = options.tokenizer_text
    for _, stories in sorted(texts, key=lambda text: -text[0]):
        for story in stories:
            left -= len(story)
            if left < 0:
                break
            sample.append(story)
    if start is None:
        tokenizer = train_tokenizer(sample, config.vocabulary_size)
    encoded: list[np.ndarray] = []
    for repeat, stories in texts:
        encoded += [_encode(tokenizer, story) for story in stories] * repeat
    console.print(
        f"{len(encoded)} stories and {sum(map(len, encoded))} tokens a pass, "
        f"at most {recipe.steps * recipe.batch * config.context} tokens to learn"
    )

    begin = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("training", total=recipe.steps)
        average = math.nan

        def report(step: int, loss: float, model: Llama, recipe: Recipe) -> None:
            nonlocal average
            average = loss if math.isnan(average) else 0.99 * average + 0.01 * loss
            progress.update(
                task, completed=step, total=recipe.steps, description=f"loss {average:.4f}"
            )
            if step % options.report_every == 0 or step == recipe.steps:
                line = f"step {step}: loss {average:.4f}, {time.monotonic() - begin:.0f} s"
                if held_out:
                    result = score(model, tokenizer, held_out, config.context)
                    line += f", validation {result.bits_per_byte:.4f} bits/byte"
                console.print(line)

        model, recipe = train(config, recipe, encoded, report, options.minutes * 60, start)

    extra: dict[str, object] = {"recipe": dataclasses.asdict(recipe)}
    if held_out:
        result = score(model, tokenizer, held_out, config.context)
        extra["validation"] = {
            "stories": len(held_out),
            "bytes": result.bytes,
            "tokens": result.tokens,
            "bits_per_byte": round(result.bits_per_byte, 4),
            "perplexity": round(result.perplexity, 4),
        }
        console.print(f"validation {result.bits_per_byte:.4f} bits/byte")
    save_model(options.out, options.name, model, tokenizer, extra)
    return 0


if __name__ == "__main__":
    sys.exit(main())
