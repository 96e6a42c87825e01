"""StyleGAN2's discriminator (Karras et al. 2020, arXiv 1912.04958, Figure 7c)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_discriminators import StyleGANOptions

_SLOPE = 0.2
# The last features' height and width.
_LAST = 4


class StyleGAN(nn.Module):
    """C1, residual blocks that halve, and one verdict on each image as a whole.

    The features of the last block, 4 pixels on a side or averaged to it, are joined by the standard
    deviation over a group of images, then pass C3 and two linear layers. The paper's equalised
    learning rate is left out: to Adam it is a learning rate divided by sqrt(n) in a layer of n
    inputs, and so makes one rate mean something else here than in every other discriminator.
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
                # Without a norm, a signal keeps its size only by the weights' own. The ways around
                # the blocks have neither a bias nor a leaky ReLU, whose slope is thus 1.
                nn.init.kaiming_normal_(module.weight, 1 if module.bias is None else _SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, 1, 1]` of images `[B, channels, H, W]` of any size."""
        x = F.adaptive_avg_pool2d(self.blocks(self.enter(images)), _LAST)
        if self.group > 1:
            x = torch.cat([x, deviation(x, self.group).to(x.dtype)], dim=1)
        logits: Tensor = self.leave(x)
        return logits[:, :, None, None]


class Block(nn.Module):
    """(C1 B2 x + a C3 stride 2 B a C3 x) / sqrt(2).

    Here a is a leaky ReLU, B a blur, and B2 one that halves.
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
    """The filter 1 3 3 1 down and across, and every nth pixel of what comes of it.

    The borders are repeated outwards by `padding`, before and behind, so that an even area stays
    even (Zhang 2019, arXiv 1904.11486).
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


def deviation(x: Tensor, group: int) -> Tensor:
    """How much images differ: `[B, 1, h, w]` of features `[B, C, h, w]`, in float32.

    For each group of images it is the standard deviation over them, averaged over all features and
    pixels (Karras et al. 2018, arXiv 1710.10196, section 3). Groups are of as many images as divide
    the batch, at most `group`, and lie side by side. So where the option `group` divides a
    process's batch, any number of processes forms the same groups of the same images. An image
    that is alone in its group gives next to zero.
    """
    images = len(x)
    members = max(count for count in range(1, min(group, images) + 1) if images % count == 0)
    groups = x.float().unflatten(0, (images // members, members))
    # The root of a small number more than zero has a gradient where images are all alike.
    each = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return each.repeat_interleave(members)[:, None, None, None].expand(-1, 1, *x.shape[2:])
