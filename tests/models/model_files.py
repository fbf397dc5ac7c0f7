"""Writers of small models in every kind of file that the loaders read."""

import json
import struct

import gguf
import numpy as np
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models

from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama
from mxhw.models.loaders.huggingface import parameter_names

BASE = LlamaConfig(
    vocabulary_size=272, dim=64, hidden=44, layers=2, heads=4, kv_heads=2, head_size=16, context=64
)
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def pieces(count):
    """Tokens, bytes and some letters; a space is U+2581 where ``tok.bin`` has a space."""
    words = ["\u2581", "a", "b", "ab", "\u2581a", "\u2581ab", *"cdefghij"]
    return (PIECES + words + [f"x{number}" for number in range(count)])[:count]


def random_llama(config=BASE, seed=1):
    torch.manual_seed(seed)
    model = Llama(config).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if "norm" in name:
            value.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            value.normal_()
    return model


def bytes_of(value):
    return value.detach().float().contiguous().numpy().astype("<f4").tobytes()


def write_llama2c(path, model, *, version=0):
    config, weights = model.config, model.weights()

    def layers(name):
        return b"".join(bytes_of(weights[f"blocks.{i}.{name}"]) for i in range(config.layers))

    vocabulary = config.vocabulary_size
    header = (
        config.dim,
        config.hidden,
        config.layers,
        config.heads,
        config.kv_heads,
        vocabulary if config.tied or version else -vocabulary,
        config.context,
    )
    matrices = [
        "attention.wq",
        "attention.wk",
        "attention.wv",
        "attention.wo",
        "feed_forward.gate",
        "feed_forward.down",
        "feed_forward.up",
    ]
    table, norm = bytes_of(weights["embedding.weight"]), bytes_of(weights["norm.weight"])
    products = {name: layers(f"{name}.weight") for name in matrices}
    norms = [layers("attention_norm.weight"), layers("feed_forward_norm.weight")]
    head = b"" if config.tied else bytes_of(weights["head.weight"])
    if version:
        start = struct.pack("<Ii7iB", 0x616B3432, version, *header, config.tied).ljust(256, b"\0")
        data = start + b"".join(norms) + norm + table + b"".join(products.values()) + head
    else:
        attention, rest = list(products.values())[:4], list(products.values())[4:]
        rope = model.blocks[0].attention.rope
        tables = bytes_of(rope.cos) + bytes_of(rope.sin)
        data = b"".join(
            [struct.pack("<7i", *header), table, norms[0], *attention, norms[1], *rest, norm]
        )
        data += tables + head
    path.write_bytes(data)
    return path


def write_tokenizer_bin(path, count):
    data = struct.pack("<I", 8)
    for number, piece in enumerate(pieces(count)):
        raw = piece.replace("\u2581", " ").encode()
        data += struct.pack("<fI", -float(number), len(raw)) + raw
    path.write_bytes(data)
    return path


def split_halves(weight, heads):
    """Rows whose rotary pairs lie side by side, with each pair in halves of the head."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def huggingface_weights(model):
    config, weights = model.config, model.weights()
    result = {}
    for name, inner in parameter_names(config).items():
        value = weights[inner]
        if ".wq." in inner or ".wk." in inner:
            heads = config.heads if ".wq." in inner else config.kv_heads
            value = split_halves(value, heads)
        result[name] = value.clone()
    return result


def huggingface_config(config, **more):
    family = "qwen2" if config.qkv_bias else "llama"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": family,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def write_tokenizer_json(path, count):
    names = {piece: number for number, piece in enumerate(pieces(count))}
    tokenizers.Tokenizer(models.BPE(vocab=names, merges=[], unk_token="<unk>")).save(str(path))


def write_huggingface(folder, model, **more):
    folder.mkdir(exist_ok=True)
    config = huggingface_config(model.config, **more)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(huggingface_weights(model), folder / "model.safetensors")
    write_tokenizer_json(folder / "tokenizer.json", model.config.vocabulary_size)
    return folder


GGUF_LAYER = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.wq.weight": "attn_q.weight",
    "attention.wk.weight": "attn_k.weight",
    "attention.wv.weight": "attn_v.weight",
    "attention.wq.bias": "attn_q.bias",
    "attention.wk.bias": "attn_k.bias",
    "attention.wv.bias": "attn_v.bias",
    "attention.wo.weight": "attn_output.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
    "feed_forward.gate.weight": "ffn_gate.weight",
    "feed_forward.up.weight": "ffn_up.weight",
    "feed_forward.down.weight": "ffn_down.weight",
}
GGUF_OUTER = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}


def gguf_name(inner):
    if inner in GGUF_OUTER:
        return GGUF_OUTER[inner]
    _, index, rest = inner.split(".", 2)
    return f"blk.{index}.{GGUF_LAYER[rest]}"


def write_gguf(path, model, *, kind=gguf.GGMLQuantizationType.F32):
    config = model.config
    architecture = "qwen2" if config.qkv_bias else "llama"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("llama")
    names = pieces(config.vocabulary_size)
    writer.add_token_list(names)
    writer.add_token_scores([-float(number) for number in range(len(names))])
    types = [2, 3, 3, *[6] * 256]
    writer.add_token_types((types + [1] * len(names))[: len(names)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for inner, value in model.weights().items():
        if config.qkv_bias and (".wq." in inner or ".wk." in inner):
            heads = config.heads if ".wq." in inner else config.kv_heads
            value = split_halves(value, heads)
        array = value.numpy().astype(np.float32)
        if kind != gguf.GGMLQuantizationType.F32 and array.ndim == 2:
            writer.add_tensor(gguf_name(inner), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(inner), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
