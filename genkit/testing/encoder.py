"""The contract of encoders."""

from __future__ import annotations

from typing import Any

import torch

from genkit.checks import floats, want
from genkit.interfaces import Level
from genkit.models import RGB
from genkit.testing.device import also
from genkit.testing.tools import build, call, check_eval, has, part, put, reach

SIGNATURE = "Encoder(options, channels)"


def check_encoder(
    name: str,
    size: tuple[int, int] = (64, 96),
    channels: int = RGB,
    /,
    *,
    gpu: bool = True,
    **options: Any,
) -> None:
    """Check the encoder `name`: its levels, the shapes of its latents, gradients, save and load.

    Its images have the height and width `size`, and `channels` channels.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    height, width = size
    chosen = part("encoder", name, options)
    torch.manual_seed(0)
    encoder = build(chosen, SIGNATURE, channels)
    levels = has(encoder, "levels", "a list of genkit.Level(index, channels, stride)")
    want(
        isinstance(levels, list | tuple)
        and len(levels) > 0
        and all(isinstance(level, Level) for level in levels),
        f"levels must be a list of genkit.Level(index, channels, stride), not {levels!r}",
    )
    numbers = [level.index for level in levels]
    want(
        numbers == list(range(len(levels))),
        f"levels must be numbered 0, 1, …, finest first, not {numbers}",
    )
    strides = [level.stride for level in levels]
    want(strides == sorted(set(strides)), f"strides must grow from level to level, not {strides}")
    images = put(torch.rand(2, channels, height, width) * 2 - 1).requires_grad_()
    latents = call(f"forward(images {list(images.shape)})", encoder, images)
    each = f"a list with one tensor for each of its {len(levels)} levels"
    want(
        isinstance(latents, list | tuple),
        f"forward must return {each}, not {type(latents).__name__}",
    )
    want(len(latents) == len(levels), f"forward must return {each}, not {len(latents)}")
    for level, found in zip(levels, latents, strict=True):
        floats(
            f"the latents of level {level.index}",
            found,
            (2, level.channels, *level.grid(height, width)),
            f"; they are [B, channels, H / stride, W / stride] of {level}",
        )
    reach(torch.stack([found.square().sum() for found in latents]).sum(), images=images)
    check_eval(encoder, build(chosen, SIGNATURE, channels), images.detach())
    if gpu:
        also("encoder", name, size, channels, **options)
