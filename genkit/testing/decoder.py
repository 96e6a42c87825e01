"""The contract of decoders."""

from __future__ import annotations

from typing import Any

import torch

from genkit.checks import floats
from genkit.interfaces import Level
from genkit.models import RGB
from genkit.testing.device import also
from genkit.testing.tools import build, call, check_eval, part, put, reach

SIGNATURE = "Decoder(options, levels, channels)"


def check_decoder(
    name: str,
    image_channels: int = RGB,
    /,
    *,
    channels: int = 8,
    strides: tuple[int, ...] = (4, 8),
    gpu: bool = True,
    **options: Any,
) -> None:
    """Check the decoder `name`: the shape of its images, gradients, save and load.

    It is built for levels with these strides and `channels`, and images of `image_channels`.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("decoder", name, options)
    levels = [Level(index, channels, stride) for index, stride in enumerate(strides)]
    torch.manual_seed(0)
    decoder = build(chosen, SIGNATURE, levels, image_channels)
    latents = [
        put(torch.randn(2, channels, *level.grid(32, 48))).requires_grad_() for level in levels
    ]
    shapes = ", ".join(str(list(each.shape)) for each in latents)
    # Pass a copy of the list: a decoder may empty it.
    images = call(f"forward(a list of latents {shapes})", decoder, list(latents))
    floats(
        "the images",
        images,
        (2, image_channels, 32, 48),
        f"; its levels have strides {list(strides)}",
    )
    reach(images.square().sum(), latents_of_the_finest_level=latents[0])
    check_eval(
        decoder,
        build(chosen, SIGNATURE, levels, image_channels),
        [each.detach() for each in latents],
    )
    if gpu:
        own = {"channels": channels, "strides": strides}
        also("decoder", name, image_channels, **own, **options)
