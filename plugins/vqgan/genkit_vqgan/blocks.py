"""VQGAN's blocks (Esser et al. 2021, arXiv 2012.09841, appendix)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import Level
from genkit.ops import GroupNorm
from genkit_vqgan import NetOptions

PLAIN = NetOptions()


def conv(channels: int, out: int, size: int, bias: bool = True) -> nn.Conv2d:
    """A `size` x `size` convolution with the same output height and width."""
    return nn.Conv2d(channels, out, size, padding=size // 2, bias=bias)


def norm(channels: int, net: NetOptions = PLAIN, affine: bool = True) -> GroupNorm:
    """Group norm with the given number of groups.

    By default 32, as in the paper, or fewer so that each has at least 4 channels.
    """
    groups = net.norm_groups or math.gcd(channels, max(1, min(32, channels // 4)))
    return GroupNorm(groups, channels, net.norm_eps, affine)


def act(channels: int, net: NetOptions = PLAIN) -> nn.Sequential:
    """Group norm and SiLU."""
    return nn.Sequential(norm(channels, net), nn.SiLU())


class Block(nn.Module):
    """S x + F x with F = C3(act C3(act x)), where S is a 1x1 convolution if widths differ.

    With `shortcut=output` it is S F x + F x there, as in MaskGIT's networks. `still` initialises
    the last convolution with zeros, so that the block starts as S.
    """

    def __init__(
        self, channels: int, out: int, net: NetOptions = PLAIN, *, still: bool = False
    ) -> None:
        super().__init__()
        last = conv(out, out, 3, net.bias)
        if still:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        first = conv(channels, out, 3, net.bias)
        self.branch = nn.Sequential(act(channels, net), first, act(out, net), last)
        self.again = net.shortcut == "output" and channels != out
        read = out if self.again else channels
        self.skip = conv(read, out, 1, net.bias) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, out, h, w]` of features `[B, channels, h, w]`."""
        result = self.branch(x)
        return self.skip(result if self.again else x) + result


class Attention(nn.Module):
    """Single-head self-attention over all pixels: x + C1(softmax(Q K^T / sqrt(C)) V).

    Q, K and V are 1x1 convolutions of the normalised features.
    """

    def __init__(self, channels: int, net: NetOptions = PLAIN) -> None:
        super().__init__()
        self.norm = norm(channels, net)
        self.enter = conv(channels, 3 * channels, 1)
        self.leave = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, C, h, w]` of the same shape."""
        # [B, 1, h w, C] each: the fast kernels need a dimension for heads.
        queries, keys, values = self.enter(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return x + self.leave(attended.squeeze(1).mT.reshape(x.shape))


class Asymmetric(nn.Conv2d):
    """A strided 3x3 convolution with zeros at the right and at the bottom alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, C, h / 2, w / 2]` of features `[B, C, h, w]`."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def halve(channels: int, down: str) -> nn.Module:
    """The layer that halves height and width."""
    if down == "average":
        return nn.AvgPool2d(2)
    if down == "asymmetric":
        return Asymmetric(channels)
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class Adaptive(nn.Module):
    """Group norm whose scale and shift are linear in the latents' deviation and mean.

    Deviation and mean are those of each latent channel over its places (Luo et al. 2024,
    Open-MAGVIT2, arXiv 2409.04410).
    """

    def __init__(self, channels: int, latent: int, net: NetOptions) -> None:
        super().__init__()
        self.norm = norm(channels, net, affine=False)
        self.scale, self.shift = nn.Linear(latent, channels), nn.Linear(latent, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Features `[B, C, h, w]` of the same shape, steered by latents `[B, L, h', w']`."""
        places = latents.flatten(2)
        # The unbiased variance of a single place would be NaN.
        variance = places.var(2, correction=min(1, places.shape[2] - 1))
        scale = self.scale((variance + self.norm.eps).sqrt())
        return scale[:, :, None, None] * self.norm(x) + self.shift(places.mean(2))[:, :, None, None]


def double(channels: int, out: int) -> nn.Sequential:
    """2x nearest-neighbour upsampling, then a 3x3 convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2), conv(channels, out, 3))


@torch.no_grad()
def shuffle(channels: int, out: int) -> nn.Sequential:
    """A 3x3 convolution, then 2x pixel shuffle.

    The four pixels start equal, like nearest-neighbour upsampling, which avoids checkerboard
    patterns (Aitken et al. 2017, ICNR, arXiv 1707.02937).
    """
    convolution, alike = conv(channels, 4 * out, 3), conv(channels, out, 3)
    for parameter, one in zip(convolution.parameters(), alike.parameters(), strict=True):
        parameter.copy_(one.repeat_interleave(4, dim=0))
    return nn.Sequential(convolution, nn.PixelShuffle(2))


def stage(channels: int, out: int, blocks: int, attention: bool, net: NetOptions) -> nn.Sequential:
    """Residual blocks at one resolution, each followed by attention if enabled."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [Block(channels, out, net), *([Attention(out, net)] if attention else [])]
        channels = out
    return nn.Sequential(*layers)


def middle(channels: int, net: NetOptions) -> nn.Sequential:
    """The layers at the coarsest resolution: by default block, attention, block."""
    first, *others = [Block(channels, channels, net) for _ in range(net.middle_blocks)]
    attention = [Attention(channels, net)] if net.middle_attention else []
    return nn.Sequential(first, *attention, *others)


def width_at(width: Sequence[int], stride: int) -> int:
    """The channels at a stride; `width` has those at full resolution and each 2x downsampling."""
    return width[min(stride.bit_length() - 1, len(width) - 1)]


def strides_between(finer: int, coarser: int) -> list[int]:
    """The powers of two from one stride to a coarser one, both included."""
    return [1 << power for power in range(finer.bit_length() - 1, coarser.bit_length())]


def strides_up(finest: int, patch: int) -> list[int]:
    """The strides of a decoder, from the finest level's down to the patch size.

    `ValueError` if 2x upsampling does not lead from one to the other.
    """
    if finest & (finest - 1):
        raise ValueError(f"strides must be powers of two, not {finest}")
    if patch > finest:
        raise ValueError(f"patches of {patch} pixels are larger than the finest stride, {finest}")
    return strides_between(patch, finest)[::-1]


def colours(width: int, patch: int, channels: int, net: NetOptions = PLAIN) -> nn.Sequential:
    """The output layers: group norm, SiLU, a 3x3 convolution, and channels to patches."""
    return nn.Sequential(
        act(width, net), conv(width, channels * patch**2, 3), nn.PixelShuffle(patch)
    )


def seen_levels(sees: str, levels: Sequence[Level]) -> tuple[int, int]:
    """The number of levels that a decoder reads, and their channels in total."""
    seen = 1 if sees == "finest" else len(levels)
    return seen, sum(level.channels for level in levels[:seen])


def enlarged(latents: Sequence[Tensor]) -> Tensor:
    """All latents upsampled to the finest level and concatenated (VQ-VAE-2, Razavi et al. 2019)."""
    size = latents[0].shape[2:]
    return torch.cat([x if x.shape[2:] == size else F.interpolate(x, size) for x in latents], dim=1)
