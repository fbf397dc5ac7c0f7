"""Links between stream ports that insist on equal payload shapes."""

from typing import Any

from amaranth.hdl import Module, Shape, ShapeCastable
from amaranth.lib import stream, wiring

__all__ = ["link", "payload_shape"]


def payload_shape(port: Any) -> Any:
    """Return the payload shape of a stream port, with its structure.

    Parameters
    ----------
    port : :class:`amaranth.lib.stream.Interface`
        A stream port, flipped or not.

    Raises
    ------
    TypeError
        If ``port`` is no stream.
    """
    signature = getattr(port, "signature", None)
    plain = signature.flip() if isinstance(signature, wiring.FlippedSignature) else signature
    if not isinstance(plain, stream.Signature):
        raise TypeError(f"Linked object must be a stream, not {port!r}")
    return plain.members["payload"].shape


def _name(port: Any) -> str:
    # A payload is named after the port it belongs to; the port itself has no name.
    return (
        str(getattr(port.payload, "name", None) or port.payload.as_value().name)
        .removesuffix("__payload")
        .replace("__", ".")
    )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, ShapeCastable) or isinstance(right, ShapeCastable):
        return left == right
    # Enumerations without a View, ranges and numbers say no more than their widths and signs.
    return Shape.cast(left) == Shape.cast(right)


def link(m: Module, source: Any, sink: Any) -> None:
    """Connect the stream ``source`` to the stream ``sink``.

    :func:`amaranth.lib.wiring.connect` compares only widths, so that a signed payload connects to
    an unsigned one and ``{data, last}`` to ``{data, first}``. This function first insists that the
    payload shapes are equal, structure included, and then calls it. The payload shape ``8`` equals
    ``unsigned(8)``.

    Parameters
    ----------
    m : :class:`amaranth.hdl.Module`
        Module that gets the connection.
    source, sink : :class:`amaranth.lib.stream.Interface`
        The stream ports. Inside ``elaborate``, pass an own port as ``wiring.flipped(self.i)``.

    Raises
    ------
    TypeError
        If an object is no stream, or the payload shapes differ.
    amaranth.lib.wiring.ConnectionError
        If both are sources, both are sinks, or the sink needs a backpressure that the source does
        not offer.
    """
    source_shape = payload_shape(source)
    sink_shape = payload_shape(sink)
    if not _equal(source_shape, sink_shape):
        raise TypeError(
            f"Stream '{_name(source)}' with payload shape {source_shape!r} cannot be linked to "
            f"'{_name(sink)}' with payload shape {sink_shape!r}"
        )
    wiring.connect(m, source=source, sink=sink)
