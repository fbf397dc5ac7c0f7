"""What number formats cost a bundled model: perplexity with every matrix operand rounded.

MX formats, fixed point of one scale a tensor or a row, and the model in float32, on the bundled
validation stories.
"""

import json
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from mxhw.compiler.accuracy import measure, validation_stories
from mxhw.compiler.ideal import IdealModel, round_to_format
from mxhw.formats import FixedFormat, parse_format
from mxhw.models import bundled
from mxhw.sw.golden.baseline import quantize_fixed

FORMATS = [
    *("mxint8", "mxint7", "mxint6", "mxint5", "mxint4"),
    *("mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"),
    *("mxint8 x mxint6", "mxint8 x mxint5", "mxint8 x mxint4", "mxint8 x mxfp6_e2m3"),
    *("mxint8 x mxfp4", "mxint7 x mxint6"),
    *("int8_tensor", "int8_row", "int4_row", "int8_row x int4_row"),
]
"""Activations x weights, or one format for both."""


class RoundedModel(IdealModel):
    """The ideal model with operands in any format."""

    def __init__(self, model: nn.Module, activations: str, weights: str) -> None:
        super().__init__(model)
        self._formats = activations, weights

    def _activation(self, x: Tensor) -> Tensor:
        return round_to(x, self._formats[0])

    def _rounded_weight(self, target: str, module: nn.Linear | nn.Embedding) -> Tensor:
        if target not in self._weights:
            scaled = module.weight.detach().double() * self._scales.get(target, 1.0)
            self._weights[target] = round_to(scaled, self._formats[1])
        return self._weights[target]


def round_to(x: Tensor, name: str) -> Tensor:
    """A tensor rounded along its last axis, as float32."""
    if name.startswith("int"):
        bits, granularity = name.removeprefix("int").split("_")
        return quantize_fixed(x, FixedFormat(int(bits), granularity)).dequantize()
    return round_to_format(x, parse_format(name))


@click.command()
@click.option("--stories", default=20, show_default=True, help="Validation stories to score.")
@click.option("--model", "name", default="llama", show_default=True, help="Bundled model.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
def main(stories: int, name: str, json_file: Path | None) -> None:
    """Print the perplexity of a bundled model in each format."""
    torch.set_num_threads(1)
    model, tokenizer, config = bundled.load(name)
    readings = {"float32": model}
    for names in FORMATS:
        activations, _, weights = names.partition(" x ")
        readings[names] = RoundedModel(model, activations, weights or activations)
    texts = validation_stories()[:stories]
    results = {}
    table = Table(title=f"{name}, {len(texts)} stories")
    for column in ("format", "perplexity", "over float32", "standard error"):
        table.add_column(column, justify="right")
    for key, reading in track(readings.items(), "Scoring", console=Console(stderr=True)):
        models = {"float32": model, key: reading}
        accuracy = measure(models, tokenizer, texts, config.context)
        difference = accuracy.difference(key, "float32")
        results[key] = {
            "perplexity": accuracy.perplexity(key),
            "ratio": difference.ratio,
            "standard_error": difference.standard_error,
        }
        table.add_row(
            key,
            f"{accuracy.perplexity(key):.4f}",
            f"{100 * (difference.ratio - 1):+.2f} %",
            f"{100 * difference.standard_error:.2f} %",
        )
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
