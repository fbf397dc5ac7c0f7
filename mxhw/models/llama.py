"""A Llama language model in plain PyTorch, and its decode step with a key/value cache.

Everything that the compiler turns into one hardware operator is a module of its own
(:data:`OPERATORS`), so that a :class:`torch.fx.Tracer` can take it as a leaf, and no forward
branches on a shape.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mxhw.models.config import LlamaConfig

__all__ = [
    "OPERATORS",
    "Attention",
    "Block",
    "CausalAttention",
    "DecodeAttention",
    "DecodeBlock",
    "FeedForward",
    "KeyValueCache",
    "Llama",
    "LlamaDecode",
    "LlamaTracer",
    "Positions",
    "RMSNorm",
    "Rope",
]


class RMSNorm(nn.Module):
    """Root-mean-square norm: ``x / sqrt(mean(x**2) + eps) * weight`` over the last axis.

    Parameters
    ----------
    dim : int
        Length of the last axis.
    eps : float
        Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Norm ``x[..., dim]``; the result has the same shape."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Rope(nn.Module):
    """Rotary position embedding of interleaved pairs ``(2i, 2i + 1)``.

    Pair ``i`` of a head at position ``p`` turns by ``p * theta ** (-2 * i / head_size)``, the
    convention of llama2.c and GGUF (Hugging Face's pairs ``(i, i + head_size / 2)`` need their
    rows permuted).

    Parameters
    ----------
    head_size : int
        Width of a head; even.
    context : int
        Number of positions, the rows of the tables.
    theta : float
        Base of the angles.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, context: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.head_size = head_size
        self.context = context
        self.theta = theta
        # In double precision, so that the rounded tables do not depend on the platform's powf.
        pair = torch.arange(0, head_size, 2, dtype=torch.float64)
        angle = torch.outer(
            torch.arange(context, dtype=torch.float64), theta ** (-pair / head_size)
        )
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Turn ``x[..., T, heads, head_size]`` by ``position[T]``; same shape."""
        cos = self.cos[position].unsqueeze(-2)
        sin = self.sin[position].unsqueeze(-2)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
        return turned.flatten(-2)


class Positions(nn.Module):
    """Positions of the tokens of a sequence, counted from 0.

    Parameters
    ----------
    context : int
        Largest number of positions.
    """

    index: Tensor

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context
        self.register_buffer("index", torch.arange(context), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``0 .. T - 1`` as an integer vector for ``tokens[B, T]``, T <= context."""
        return self.index[: tokens.shape[-1]]


class CausalAttention(nn.Module):
    """Scaled dot-product attention over keys at positions up to the query's.

    Parameters
    ----------
    heads : int
        Number of query heads.
    kv_heads : int
        Number of key/value heads; query head ``h`` reads ``h // (heads // kv_heads)``.
    head_size : int
        Width of a head; scores are divided by its square root.
    """

    def __init__(self, heads: int, kv_heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_size = head_size

    def forward(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        """Attend from the queries at ``position`` to every key at or before it.

        Parameters
        ----------
        q : Tensor[..., T, heads, head_size]
            Queries.
        k, v : Tensor[..., S, kv_heads, head_size]
            Keys and values; row ``s`` belongs to position ``s``.
        position : Tensor[T]
            Integer positions of the queries, each below S.

        Returns
        -------
        Tensor[..., T, heads, head_size]
        """
        group = self.heads // self.kv_heads
        query = q.unflatten(-2, (self.kv_heads, group)).movedim(-4, -2)  # [..., KV, G, T, D]
        key = k.movedim(-3, -2).unsqueeze(-3)  # [..., KV, 1, S, D]
        value = v.movedim(-3, -2).unsqueeze(-3)
        score = query @ key.transpose(-1, -2) / math.sqrt(self.head_size)
        row = torch.arange(k.shape[-3], device=k.device)
        hidden = row > position.unsqueeze(-1)  # [T, S]
        weight = score.masked_fill(hidden, -math.inf).softmax(-1)
        return (weight @ value).movedim(-2, -4).flatten(-3, -2)


class KeyValueCache(nn.Module):
    """Keys and values of the positions seen so far.

    Parameters
    ----------
    context : int
        Number of positions, the rows of both buffers.
    kv_heads : int
        Number of key/value heads.
    head_size : int
        Width of a head.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, context: int, kv_heads: int, head_size: int) -> None:
        super().__init__()
        shape = (context, kv_heads, head_size)
        self.register_buffer("keys", torch.zeros(shape), persistent=False)
        self.register_buffer("values", torch.zeros(shape), persistent=False)

    def forward(self, k: Tensor, v: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v[T, kv_heads, head_size]`` in rows ``position[T]``; return both buffers."""
        self.keys.index_copy_(0, position, k)
        self.values.index_copy_(0, position, v)
        return self.keys, self.values

    def reset(self) -> None:
        """Clear both buffers."""
        self.keys.zero_()
        self.values.zero_()


class Attention(nn.Module):
    """Attention with grouped key/value heads and rotary positions, over a whole sequence.

    Parameters
    ----------
    config : LlamaConfig
        Shapes.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_size = config.head_size
        self.wq = nn.Linear(config.dim, config.heads * config.head_size, bias=config.qkv_bias)
        self.wk = nn.Linear(config.dim, config.kv_heads * config.head_size, bias=config.qkv_bias)
        self.wv = nn.Linear(config.dim, config.kv_heads * config.head_size, bias=config.qkv_bias)
        self.wo = nn.Linear(config.heads * config.head_size, config.dim, bias=False)
        self.rope = Rope(config.head_size, config.context, config.rope_theta)
        self.attend = CausalAttention(config.heads, config.kv_heads, config.head_size)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map ``x[B, T, dim]`` at ``position[T]`` (0 .. T - 1) to the same shape."""
        q = self.rope(self.wq(x).unflatten(-1, (self.heads, self.head_size)), position)
        k = self.rope(self.wk(x).unflatten(-1, (self.kv_heads, self.head_size)), position)
        v = self.wv(x).unflatten(-1, (self.kv_heads, self.head_size))
        return self.wo(self.attend(q, k, v, position).flatten(-2))


class FeedForward(nn.Module):
    """Gated feed-forward network: ``down(silu(gate(x)) * up(x))``.

    Parameters
    ----------
    dim : int
        Width of input and output.
    hidden : int
        Width between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x[..., dim]`` to the same shape."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each behind a norm, with residuals.

    Parameters
    ----------
    config : LlamaConfig
        Shapes and constants.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_epsilon)
        self.feed_forward = FeedForward(config.dim, config.hidden)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map ``x[B, T, dim]`` at ``position[T]`` to the same shape."""
        x = x + self.attention(self.attention_norm(x), position)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """A Llama language model over whole sequences, for training and prefill.

    Parameters
    ----------
    config : LlamaConfig
        Shapes and constants.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.dim)
        self.positions = Positions(config.context)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_epsilon)
        self.head = nn.Linear(config.dim, config.vocabulary_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each one.

        Parameters
        ----------
        tokens : Tensor[B, T]
            Token numbers, T <= context.

        Returns
        -------
        Tensor[B, T, vocabulary_size]
        """
        position = self.positions(tokens)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, position)
        return self.head(self.norm(x))

    def first_layers(self, layers: int) -> Llama:
        """The model with only its first layers; the weights are shared, not copied.

        Parameters
        ----------
        layers : int

        Raises
        ------
        ValueError
            If the model has not so many.
        """
        if not 1 <= layers <= self.config.layers:
            raise ValueError(f"Number of layers must be 1 to {self.config.layers}, not {layers}")
        short = copy.copy(self)
        # A copy shares the table of its modules with the original.
        short._modules = dict(self._modules)
        short.config = dataclasses.replace(self.config, layers=layers)
        short.blocks = nn.ModuleList(list(self.blocks)[:layers])
        return short

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters by name; a tied head is left out, as it is the embedding."""
        return {name: value.detach() for name, value in self.named_parameters()}


class DecodeAttention(nn.Module):
    """The attention of one decode step, with its key/value cache.

    Parameters
    ----------
    attention : Attention
        Module whose weights and tables are shared.
    context : int
        Number of positions in the cache.
    """

    def __init__(self, attention: Attention, context: int) -> None:
        super().__init__()
        self.heads = attention.heads
        self.kv_heads = attention.kv_heads
        self.head_size = attention.head_size
        self.wq = attention.wq
        self.wk = attention.wk
        self.wv = attention.wv
        self.wo = attention.wo
        self.rope = attention.rope
        self.cache = KeyValueCache(context, attention.kv_heads, attention.head_size)
        self.attend = attention.attend

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map ``x[1, dim]`` at ``position[1]`` to the same shape and extend the cache."""
        q = self.rope(self.wq(x).unflatten(-1, (self.heads, self.head_size)), position)
        k = self.rope(self.wk(x).unflatten(-1, (self.kv_heads, self.head_size)), position)
        v = self.wv(x).unflatten(-1, (self.kv_heads, self.head_size))
        keys, values = self.cache(k, v, position)
        return self.wo(self.attend(q, keys, values, position).flatten(-2))


class DecodeBlock(nn.Module):
    """One transformer block of a decode step.

    Parameters
    ----------
    block : Block
        Module whose weights are shared.
    context : int
        Number of positions in the cache.
    """

    def __init__(self, block: Block, context: int) -> None:
        super().__init__()
        self.attention_norm = block.attention_norm
        self.attention = DecodeAttention(block.attention, context)
        self.feed_forward_norm = block.feed_forward_norm
        self.feed_forward = block.feed_forward

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map ``x[1, dim]`` at ``position[1]`` to the same shape and extend the cache."""
        x = x + self.attention(self.attention_norm(x), position)
        return x + self.feed_forward(self.feed_forward_norm(x))


class LlamaDecode(nn.Module):
    """One decode step of a Llama model: one token in, the logits of the next one out.

    The weights are those of the model it is made from (shared, not copied); the caches are its
    own. Positions must be visited in order from 0.

    Parameters
    ----------
    llama : Llama
        Model to decode with.
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.config = llama.config
        self.embedding = llama.embedding
        self.blocks = nn.ModuleList(
            DecodeBlock(block, llama.config.context)
            for block in llama.blocks
            if isinstance(block, Block)
        )
        self.norm = llama.norm
        self.head = llama.head

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Store the token's keys and values and return the logits of the next token.

        Parameters
        ----------
        token : Tensor[1]
            Token number.
        position : Tensor[1]
            Its position, below the context.

        Returns
        -------
        Tensor[vocabulary_size]
        """
        x = self.embedding(token)
        for block in self.blocks:
            x = block(x, position)
        return self.head(self.norm(x)).flatten()

    def reset(self) -> None:
        """Clear the caches."""
        for module in self.modules():
            if isinstance(module, KeyValueCache):
                module.reset()


#: Modules that are one operator each for the compiler, besides ``nn.Linear`` and ``nn.Embedding``.
OPERATORS = (RMSNorm, Rope, Positions, CausalAttention, KeyValueCache)


class LlamaTracer(torch.fx.Tracer):
    """Tracer whose leaves are the :data:`OPERATORS` and PyTorch's own modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether ``m`` becomes one node of the graph."""
        return isinstance(m, OPERATORS) or super().is_leaf_module(m, module_qualified_name)
