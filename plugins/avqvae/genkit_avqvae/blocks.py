"""The paper's convolution blocks (Table 1).

Every convolution has a bias. aBN is batch norm and a leaky ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from genkit.ops import GroupNorm


def conv(channels: int, out: int, size: int) -> nn.Conv2d:
    """A `size` x `size` convolution with the same output height and width."""
    return nn.Conv2d(channels, out, size, padding=size // 2)


class Halve(nn.Conv2d):
    """C1 stride 2: a 1x1 convolution of every second pixel in every second row.

    With fewer than 16 channels, the pixels are selected by slicing. In channels-last layout on a
    CPU, oneDNN's strided 1x1 convolution would write past its workspace (oneDNN issue 6035).
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, out, H / 2, W / 2]` from `[B, channels, H, W]`."""
        if self.in_channels >= 16:
            return super().forward(x)
        return F.conv2d(x[:, :, ::2, ::2], self.weight, self.bias)


def double(channels: int, out: int) -> nn.ConvTranspose2d:
    """A transposed 3x3 convolution that doubles height and width."""
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1)


def act(channels: int, norm: str) -> nn.Sequential:
    """aBN: a normalisation (`batch` as in the paper, `group` or `none`), then a leaky ReLU."""
    if norm == "none":
        return nn.Sequential(nn.LeakyReLU(0.2))
    groups = math.gcd(channels, 8)
    normalized = nn.BatchNorm2d(channels) if norm == "batch" else GroupNorm(groups, channels)
    return nn.Sequential(normalized, nn.LeakyReLU(0.2, inplace=True))


class Fold(nn.Module):
    """Patches to channels, like `torch.nn.PixelUnshuffle`, but also for an empty batch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C p p, H / p, W / p]` of `[B, C, H, W]`."""
        parts = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


class Unfold(nn.Module):
    """Channels to patches, like `torch.nn.PixelShuffle`."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H p, W p]` of `[B, C p p, H, W]`."""
        parts = x.unflatten(1, (-1, self.patch, self.patch))
        return parts.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


class Identity(nn.Module):
    """Id(c): x + C1(aBN C3(aBN C3(aBN x)))."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            act(channels, norm),
            conv(channels, channels, 3),
            act(channels, norm),
            conv(channels, channels, 3),
            act(channels, norm),
            conv(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, C, h, w]` of the same shape."""
        return x + self.branch(x)


class Down(nn.Module):
    """Down(i, f), which halves height and width.

    C1 stride 2 (aBN C3(aBN C3(aBN x))) + C1 stride 2 (aBN x).
    """

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            act(channels, norm),
            conv(channels, out, 3),
            act(out, norm),
            conv(out, out, 3),
            act(out, norm),
            Halve(out, out),
        )
        self.skip = nn.Sequential(act(channels, norm), Halve(channels, out))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, out, h / 2, w / 2]` of features `[B, C, h, w]`."""
        return self.branch(x) + self.skip(x)


class Up(nn.Module):
    """Up(i, f), which doubles height and width: T3(aBN C1(aBN x)) + T3(aBN x)."""

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            act(channels, norm), conv(channels, out, 1), act(out, norm), double(out, out)
        )
        self.skip = nn.Sequential(act(channels, norm), double(channels, out))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, out, 2 h, 2 w]` of features `[B, C, h, w]`."""
        return self.branch(x) + self.skip(x)


def halvings(channels: int, widths: Sequence[int], blocks: int, norm: str) -> nn.Sequential:
    """Enc(c, [f0 … fn], r): C3(c -> f0), then r identity blocks and a Down per further width."""
    layers: list[nn.Module] = [conv(channels, widths[0], 3)]
    for width, following in pairwise(widths):
        layers += [*(Identity(width, norm) for _ in range(blocks)), Down(width, following, norm)]
    return nn.Sequential(*layers)


def doublings(widths: Sequence[int], blocks: int, norm: str) -> nn.Sequential:
    """`blocks` identity blocks and an Up for each width after the first."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [*(Identity(width, norm) for _ in range(blocks)), Up(width, following, norm)]
    return nn.Sequential(*layers)


def widths_between(width: Sequence[int], stride: int, coarser: int) -> list[int]:
    """The widths from one stride to a coarser one.

    `width` holds the widths at full resolution and after each 2x downsampling.
    """
    first, last = stride.bit_length() - 1, coarser.bit_length() - 1
    return [width[min(depth, len(width) - 1)] for depth in range(first, last + 1)]
