"""The contract of discriminators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genkit.checks import floats, form, want
from genkit.models import RGB
from genkit.testing.device import also
from genkit.testing.tools import build, call, check_eval, part, put, reach

SIGNATURE = "Discriminator(options, channels)"


def check_discriminator(
    name: str, channels: int = RGB, /, *, gpu: bool = True, **options: Any
) -> None:
    """Check the discriminator `name`: the shape of its logits, gradients, save and load.

    Its images have `channels` channels.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("discriminator", name, options)
    torch.manual_seed(0)
    discriminator = build(chosen, SIGNATURE, channels)
    images = put(torch.rand(2, channels, 64, 96) * 2 - 1).requires_grad_()
    logits = call(f"forward(images {list(images.shape)})", discriminator, images)
    want(
        isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[:2] == (2, 1),
        f"the logits must be one tensor [B, 1, h, w] with B = 2, not {form(logits)}; one logit "
        "per image is [B, 1, 1, 1]",
    )
    floats("the logits", logits, logits.shape)
    reach(logits.square().sum(), images=images)
    check_eval(discriminator, build(chosen, SIGNATURE, channels), images.detach())
    if gpu:
        also("discriminator", name, channels, **options)
