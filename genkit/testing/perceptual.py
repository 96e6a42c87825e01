"""The contract of perceptual and reconstruction losses."""

from __future__ import annotations

from typing import Any

import torch

from genkit.checks import finite, shape, want
from genkit.models import RGB
from genkit.testing.device import also
from genkit.testing.tools import build, call, construct, halved, part, put, reach


def check_perceptual(
    name: str, channels: int = RGB, /, *, gpu: bool = True, **options: Any
) -> None:
    """Check the perceptual loss `name`: 0 for equal images, above 0 for others, with gradients.

    The images have `channels` channels; `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("perceptual", name, options)
    built = build(chosen, "Perceptual(options, channels)", channels)
    # Training also keeps it frozen and in eval mode.
    _check_loss(built.eval().requires_grad_(False), channels)
    if gpu:
        also("perceptual", name, channels, **options)


def check_loss(name: str, channels: int = RGB, /, *, gpu: bool = True, **options: Any) -> None:
    """Check the reconstruction loss `name`: 0 for equal images, above 0 for others, with gradients.

    The images have `channels` channels; `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("loss", name, options)
    _check_loss(construct(chosen, "Loss(options, channels)", channels), channels)
    if gpu:
        also("loss", name, channels, **options)


def _check_loss(loss_of: Any, channels: int) -> None:
    __tracebackhide__ = True
    generator = torch.Generator().manual_seed(0)
    images = put(torch.rand(2, channels, 64, 96, generator=generator) * 2 - 1)
    reconstructions = (images * 0.5).requires_grad_()
    before = images.clone()
    said = f"forward(reconstructions {list(reconstructions.shape)}, images {list(images.shape)})"
    loss = call(said, loss_of, reconstructions, images)
    shape("the loss", loss, (), "; it is the mean over the batch")
    finite("the loss", loss)
    want(torch.equal(images, before), "forward must not change its input images")
    want(loss > 0, f"the loss of different images must be above 0, not {float(loss.detach()):.3g}")
    reach(loss, reconstructions=reconstructions)
    with torch.no_grad():
        same = loss_of(images, images)
        again = loss_of(reconstructions, images)
        with halved():
            call("forward in a bf16 run (under torch.autocast)", loss_of, reconstructions, images)
    want(abs(float(same)) < 1e-4, f"the loss of equal images must be 0, not {float(same):.3g}")
    want(
        torch.allclose(again, loss),
        "the same images must give the same loss: nothing may be random in eval mode",
    )
