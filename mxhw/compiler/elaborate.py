# amaranth: UnusedElaboratable=no
"""From a binding to a component."""

from mxhw.compiler.binding import FoldedBinding
from mxhw.dataflow.decoder import DecoderParameters, FoldedDecoder

__all__ = ["decoder_parameters", "elaborate"]


def decoder_parameters(binding: FoldedBinding) -> DecoderParameters:
    """What the folded decoder of a binding is built from."""
    return DecoderParameters(
        shape=binding.shape,
        program=binding.program,
        words=binding.words,
        weight_format=binding.weight_format,
        activation_format=binding.activation_format,
        engine_format=binding.engine_format,
        wide_format=binding.wide_format,
        dim=binding.dim,
        heads=binding.heads,
        head_size=binding.head_size,
        rope_theta=binding.rope_theta,
        norm_epsilon=binding.norm_epsilon,
        norm_weights=binding.norm_weights,
        softmax_lanes=binding.softmax_lanes,
        attention_lanes=binding.attention_lanes,
        gated_lanes=binding.gated_lanes,
        tables=binding.tables,
        rotary=binding.rotary,
        slots=binding.slots,
        biases=binding.biases,
        block_words=binding.block_words,
        norm_width=binding.norm_width,
    )


def elaborate(binding: FoldedBinding) -> FoldedDecoder:
    """The folded decoder of a binding, its weights in initialised memory.

    Its ports are ``i_step``, ``o_token`` and ``o_logits``.
    """
    return FoldedDecoder(decoder_parameters(binding))
