"""Blocks of a transformer: rotary positions, attention, SwiGLU, dropout, and a cache.

Norms are LayerNorm without biases. RMSNorm learns as well, but PyTorch has no fused gradient of it
for CPUs, where it takes six times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def seeded(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Dropout inside follows `generator`; the process's own generators keep their state."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Cache:
    """Keys and values of the tokens so far, in memory allocated once for `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self.memory: dict[int, Tensor] = {}

    def extended(self, layer: int, fresh: Tensor) -> Tensor:
        """The keys and values `[2, B, heads, tokens, C]` of a layer, new tokens included."""
        if layer not in self.memory:
            *start, _, channels = fresh.shape
            self.memory[layer] = fresh.new_empty(*start, self.length, channels)
        end = self.used + fresh.shape[3]
        self.memory[layer][:, :, :, self.used : end] = fresh
        return self.memory[layer][:, :, :, :end]


class Turn:
    """Rotary positions of the queries and keys: cosines and sines `[…, tokens, 2, 1, C]`."""

    def __init__(self, cosine: Tensor, sine: Tensor) -> None:
        self.cosine, self.sine = cosine, sine

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate queries and keys `[B, tokens, 2, heads, C]`."""
        first, second = x.chunk(2, -1)
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        return x * cosine + torch.cat([-second, first], -1) * sine


def turns(queries: Tensor, keys: Tensor, channels: int) -> Tensor:
    """Cosines and sines `[2, …, tokens, 2, 1, C]` of coordinates (row, column) `[…, tokens, 2]`.

    A quarter of the channels has a frequency per axis, from a turn over six units of the finest
    grid to one over hundreds of units.
    """
    count = channels // 4
    frequencies = 100.0 ** (-torch.arange(count, device=keys.device) / count)
    angles = torch.stack([queries, keys], -2).float()[..., None] * frequencies
    angles = angles.flatten(-2)
    angles = torch.cat([angles, angles], -1)[..., None, :]
    return torch.stack([angles.cos(), angles.sin()])


# Up to this many tokens, products of matrices train faster on a CPU than the fused operation.
_SHORT = 512


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """Attention of queries `[B, heads, S, C]`; with `causal`, to themselves and those before."""
    length = queries.shape[2]
    if not queries.requires_grad or queries.device.type != "cpu" or length > _SHORT:
        return F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=causal and mask is None and length > 1
        )
    if causal and mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    weights = queries @ keys.mT * queries.shape[-1] ** -0.5
    if mask is not None:
        weights = weights + torch.zeros((), dtype=weights.dtype).masked_fill(~mask, -torch.inf)
    return weights.softmax(-1).to(values.dtype) @ values


class Attention(nn.Module):
    """Attention with normalised queries and keys."""

    def __init__(self, width: int, heads: int, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.inward = nn.Linear(width, 3 * width, bias=False)
        self.outward = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.ones(2, 1, width // heads))

    def forward(
        self,
        x: Tensor,
        turn: Turn | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """Attend among tokens `[B, S, width]`, or from them to the cache too."""
        batch, tokens, width = x.shape
        mixed = self.inward(x).view(batch, tokens, 3, self.heads, -1)
        seeking = F.layer_norm(mixed[:, :, :2], mixed.shape[-1:]).to(mixed.dtype)
        seeking = seeking * self.scale.to(mixed.dtype)
        if turn is not None:
            seeking = turn(seeking)
        queries, keys = seeking.permute(2, 0, 3, 1, 4)
        values = mixed[:, :, 2].transpose(1, 2)
        if cache is not None:
            keys, values = cache.extended(self.layer, torch.stack([keys, values]))
        attended = attend(queries, keys, values, mask, causal)
        result: Tensor = self.outward(attended.transpose(1, 2).reshape(batch, tokens, width))
        return result


class SwiGLU(nn.Module):
    """The feed-forward layer: silu(A x) * B x, projected back (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-8 * width // 3 // 32) * 32
        self.gate = nn.Linear(width, inner, bias=False)
        self.inward = nn.Linear(width, inner, bias=False)
        self.outward = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the same shape, of each token alone."""
        result: Tensor = self.outward(F.silu(self.gate(x)) * self.inward(x))
        return result


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a norm before it and a skip around it."""

    def __init__(self, width: int, heads: int, dropout: float, layer: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = Attention(width, heads, layer)
        self.feed = SwiGLU(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """Tokens `[B, S, width]`; the context is what `Attention.forward` takes."""
        x = x + self._dropped(self.attention(self.norms[0](x), *context))
        return x + self._dropped(self.feed(self.norms[1](x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Transformer(nn.Module):
    """Blocks, and a norm at the end."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout, layer) for layer in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        for block in self.blocks:
            for name, weight in block.named_parameters():
                if weight.ndim == 2:
                    last = name.endswith("outward.weight")
                    nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)

    def forward(
        self,
        x: Tensor,
        turn: Turn | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """Tokens `[B, S, width]` after all blocks; the cache then holds them too."""
        for block in self.blocks:
            x = block(x, turn, mask, causal, cache)
        if cache is not None:
            cache.used += x.shape[1]
        result: Tensor = self.norm(x)
        return result
