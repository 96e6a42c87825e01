"""StyleGAN2's discriminator (Karras et al. 2020, arXiv 1912.04958, Figure 7c)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_discriminators import StyleGANOptions

_SLOPE = 0.2
# Height and width of the last features.
_LAST = 4


class StyleGAN(nn.Module):
    """C1, residual blocks with 2x downsampling, and one logit per image.

    The features of the last block are average-pooled to 4 x 4 pixels and concatenated with the
    standard deviation over a group of images, then pass C3 and two linear layers. The paper's
    equalised learning rate is left out. With Adam, it divides the learning rate of a layer with n
    inputs by sqrt(n), so the same rate would mean something else than in other discriminators.
    """

    def __init__(self, options: StyleGANOptions, channels: int) -> None:
        super().__init__()
        self.group = options.group
        width, last = options.width, options.width[-1]
        self.enter = nn.Sequential(nn.Conv2d(channels, width[0], 1), nn.LeakyReLU(_SLOPE))
        self.blocks = nn.Sequential(*(Block(before, after) for before, after in pairwise(width)))
        self.leave = nn.Sequential(
            nn.Conv2d(last + (options.group > 1), last, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Flatten(),
            nn.Linear(last * _LAST**2, last),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(last, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # Without a norm, only the initialisation keeps the variance of activations. Skip
                # connections have neither a bias nor a leaky ReLU, so their slope is 1.
                nn.init.kaiming_normal_(module.weight, 1 if module.bias is None else _SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, 1, 1]` of images `[B, channels, H, W]` of any size."""
        x = pooled(self.blocks(self.enter(images)), _LAST)
        if self.group > 1:
            x = torch.cat([x, deviation(x, self.group).to(x.dtype)], dim=1)
        logits: Tensor = self.leave(x)
        return logits[:, :, None, None]


class Block(nn.Module):
    """(C1 B2 x + a C3 stride 2 B a C3 x) / sqrt(2).

    Here a is a leaky ReLU, B a blur, and B2 a blur with 2x downsampling.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
            Blur(1, (2, 3)),
            nn.Conv2d(channels, out, 3, stride=2),
            nn.LeakyReLU(_SLOPE),
        )
        self.skip = nn.Sequential(Blur(2, (1, 2)), nn.Conv2d(channels, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, out, h / 2, w / 2]`, rounded up, of features `[B, channels, h, w]`."""
        return (self.skip(x) + self.branch(x)) * 0.5**0.5


class Blur(nn.Module):
    """The separable filter [1 3 3 1], with subsampling by `stride`.

    The borders are replicated by `padding` (before, after), so that even areas stay even (Zhang
    2019, arXiv 1904.11486).
    """

    kernel: Tensor

    def __init__(self, stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, C, (h + padding - 3) / stride, …]` of features `[B, C, h, w]`."""
        channels = x.shape[1]
        padded = F.pad(x, self.padding * 2, "replicate")
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(padded, kernel, stride=self.stride, groups=channels)


def pooled(x: Tensor, size: int) -> Tensor:
    """Adaptive average pooling of features `[B, C, h, w]` to `[B, C, size, size]`.

    PyTorch's own has no deterministic gradient on a GPU.
    """
    height, width = x.shape[2:]
    if height % size == 0 and width % size == 0:
        return F.avg_pool2d(x, (height // size, width // size))
    return _windows(height, size, x) @ x @ _windows(width, size, x).mT


def _windows(length: int, size: int, like: Tensor) -> Tensor:
    """The matrix `[size, length]` of the mean over each window; windows may overlap."""
    places = torch.arange(length, device=like.device)
    rows = torch.arange(size, device=like.device)[:, None]
    first, end = rows * length // size, -(-(rows + 1) * length // size)
    inside = ((places >= first) & (places < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def deviation(x: Tensor, group: int) -> Tensor:
    """Minibatch standard deviation `[B, 1, h, w]` of features `[B, C, h, w]`, in float32.

    It is the standard deviation over each group of images, averaged over all features and pixels
    (Karras et al. 2018, arXiv 1710.10196, section 3). Groups are consecutive images; their size is
    the largest divisor of the batch size up to `group`. If `group` divides each process's batch,
    the groups do not depend on the number of processes. For groups of one image it is almost zero.
    """
    images = len(x)
    members = max(count for count in range(1, min(group, images) + 1) if images % count == 0)
    groups = x.float().unflatten(0, (images // members, members))
    # The small constant keeps the gradient of the root finite if all images are equal.
    each = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return each.repeat_interleave(members)[:, None, None, None].expand(-1, 1, *x.shape[2:])
