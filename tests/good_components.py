"""Correct components of every kind, and ways to break them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import Level, Quantized, Subset


class Encoder(nn.Module):
    """Two levels, of strides 4 and 8."""

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.levels = [Level(0, 8, 4), Level(1, 8, 8)]
        self.first, self.second = nn.Conv2d(channels, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)

    def forward(self, images: Tensor) -> Any:
        first = self.first(images)
        return [first, self.second(first)]


class Decoder(nn.Module):
    def __init__(self, options: Any, levels: list[Level], channels: int) -> None:
        super().__init__()
        self.stride, self.last = levels[0].stride, nn.Conv2d(levels[0].channels, channels, 1)

    def forward(self, latents: list[Tensor]) -> Any:
        return F.interpolate(self.last(latents[0]), scale_factor=self.stride)


class Discriminator(nn.Module):
    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 1, 4, 4)

    def forward(self, images: Tensor) -> Any:
        return self.layer(images)


class Attention(nn.Module):
    """Every query gets the mean of all values."""

    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()
        self.much = nn.Parameter(torch.ones(()))

    def forward(
        self, features: Tensor, values: Tensor, context: Any = None, context_values: Any = None
    ) -> Any:
        others = values if context_values is None else context_values
        return values + self.much * others.mean((2, 3), keepdim=True)


class Fusion(nn.Module):
    def __init__(self, options: Any, level: Level, coarser_level: Level) -> None:
        super().__init__()
        self.times = coarser_level.stride // level.stride
        self.mix = nn.Conv2d(coarser_level.channels, level.channels, 1)

    def forward(self, latents: Tensor, coarser: Tensor) -> Any:
        return latents + F.interpolate(self.mix(coarser), scale_factor=self.times)


class Perceptual(nn.Module):
    def __init__(self, options: Any, channels: int) -> None:
        super().__init__()

    def forward(self, reconstructions: Tensor, images: Tensor) -> Any:
        return F.mse_loss(reconstructions, images)


class Dataset:
    """Noise, with one seed per image."""

    fingerprint = "noise"
    channels = 3
    classes: ClassVar[Any] = ["even", "odd"]

    def __init__(self, options: Any, size: tuple[int, int], seed: int) -> None:
        self.size = size

    def split(self, name: str) -> Any:
        return Subset(self, {"train": range(8), "heldout": range(8, 12), "all": range(12)}[name])

    def name(self, number: int) -> Any:
        return str(number)

    def label(self, number: int) -> Any:
        return number % 2

    def caption(self, number: int) -> Any:
        return f"noise number {number}"

    def images(self, numbers: Any, seeds: Any = None) -> Any:
        shape = *self.size, self.channels
        each = [np.random.default_rng(number).integers(0, 256, shape) for number in numbers]
        return np.stack(each).astype(np.uint8)


class Quantizer(nn.Module):
    """One bit per channel: its sign."""

    codebook_size = 256

    def __init__(self, options: Any, level: Level) -> None:
        super().__init__()
        self.register_buffer("bits", 2 ** torch.arange(level.channels)[:, None, None])

    def forward(self, latents: Tensor) -> Any:
        indices = ((latents > 0) * self.bits).sum(1)
        through = latents + (self.decode(indices) - latents).detach()
        return Quantized(through, indices, latents.new_zeros(()))

    def decode(self, indices: Tensor) -> Any:
        return (indices[:, None] & self.bits).ne(0) * 2.0 - 1


GOOD: dict[str, type] = {
    "encoder": Encoder,
    "decoder": Decoder,
    "discriminator": Discriminator,
    "attention": Attention,
    "fusion": Fusion,
    "perceptual": Perceptual,
    "dataset": Dataset,
    "quantizer": Quantizer,
}


def with_levels(levels: Any) -> Any:
    def init(self: Any, options: Any, channels: int) -> None:
        Encoder.__init__(self, options, channels)
        self.levels = levels

    return init


def without_levels(self: Any, options: Any, channels: int) -> None:
    Encoder.__init__(self, options, channels)
    del self.levels


def without_super(self: Any, *args: Any) -> None:
    self.layer = nn.Conv2d(3, 1, 4, 4)


def alone(self: Any) -> None:
    nn.Module.__init__(self)


def result(change: Any) -> Any:
    """A forward pass that returns `change(result)` of the correct result."""
    return lambda good: lambda self, *args: change(good.forward(self, *args))


def given(change: Any) -> Any:
    """A forward pass that first calls something with its first input."""

    def forward(good: Any) -> Any:
        def both(self: Any, *args: Any) -> Any:
            change(args[0])
            return good.forward(self, *args)

        return both

    return forward


def forgetful(good: Any) -> Any:
    """Draws a number when built and keeps it outside the state dict, so it is not saved."""

    def init(self: Any, *args: Any) -> None:
        good.__init__(self, *args)
        self.kept = float(torch.rand(())) + 0.5

    def forward(self: Any, *args: Any) -> Any:
        out = good.forward(self, *args)
        return [each * self.kept for each in out] if isinstance(out, list) else out * self.kept

    return {"__init__": init, "forward": forward}


def narrow(good: Any) -> Any:
    """Combines a float32 tensor with one that is bfloat16 in a bf16 run."""

    def forward(self: Any, *args: Any) -> Any:
        out = good.forward(self, *args)
        first = out[0] if isinstance(out, list) else out
        torch.zeros(first.shape).index_add_(0, torch.zeros(len(first), dtype=torch.long), first)
        return out

    return {"forward": forward}
