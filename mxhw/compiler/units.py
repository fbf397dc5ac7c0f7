"""Names of a folded design's units, as estimates, netlists and reports use them."""

from collections.abc import Sequence

__all__ = ["UNIT_TITLES", "unit_of"]

UNIT_TITLES = {
    "engine": "matrix engine",
    "quantizer": "quantiser",
    "to_fixed": "fixed point",
    "weights": "weight memory",
    "word_decoder": "word decoders",
    "weight_select": "weight select",
    "embedding": "embedding",
    "residual": "residual",
    "norm": "norm",
    "rope": "rotary",
    "keys": "key cache",
    "values": "value cache",
    "softmax": "softmax",
    "attention": "attention output",
    "bias": "biases",
    "gated": "gated SiLU",
    "argmax": "arg-max",
    "sequencer": "sequencer",
    "routes": "routes and selects",
    "commands": "command queues",
    "operands": "operand queue",
    "queries": "queue of queries",
    "attended": "queue of heads",
    "fixed_queues": "queues of logits",
    "scales_queue": "queue of value scales",
    "host": "host controller",
    "link": "serial port, clock, reset",
}
"""What reports call a unit; the order is that of their tables."""

_PARTS = {
    "key_decoder": "word_decoder",
    "value_decoder": "word_decoder",
    "operand_select": "routes",
    "memory_route": "routes",
    "result_route": "routes",
    "wide_queue": "routes",
    "rope_queue": "routes",
    "attention_queue": "routes",
    "wide_route": "routes",
    "residual_queue": "routes",
    "values_queue": "routes",
    "fixed_route": "routes",
    "fixed_queue": "fixed_queues",
    "fixed_register": "fixed_queues",
    "logits_queue": "fixed_queues",
    "logits_register": "fixed_queues",
    "token_queue": "fixed_queues",
    "tap": "fixed_queues",
    "query_slots": "queries",
    "totals": "attention",
}
_DECODER = ("design", "decoder")
_HOST = ("design", "host")


def unit_of(path: Sequence[str]) -> str | None:
    """The unit that a name inside the board's top level belongs to, or None if it tells nothing.

    Parameters
    ----------
    path : sequence of str
        Submodules from the top level on, then the signal.
    """
    if len(path) < 2:
        return None
    if tuple(path[:2]) == _HOST:
        return "host"
    if path[0] != "design":
        return "link"
    if tuple(path[:2]) != _DECODER or len(path) < 3:
        return None
    name = path[2]
    if name.endswith("_commands"):
        return "commands"
    name = _PARTS.get(name, name)
    return name if name in UNIT_TITLES else None
