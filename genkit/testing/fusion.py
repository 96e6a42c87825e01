"""The contract of fusions."""

from __future__ import annotations

from typing import Any

import torch

from genkit.checks import floats
from genkit.interfaces import Level
from genkit.testing.device import also
from genkit.testing.tools import build, call, check_eval, part, put, reach

SIGNATURE = "Fusion(options, level, coarser_level)"


def check_fusion(name: str, *, channels: int = 8, gpu: bool = True, **options: Any) -> None:
    """Check the fusion `name`: shapes, gradients to both levels, save and load.

    The coarser level's stride is two and four times the finer one's.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("fusion", name, options)
    for times in (2, 4):
        levels = Level(0, channels, 4), Level(1, channels, 4 * times)
        torch.manual_seed(0)
        fusion = build(chosen, SIGNATURE, *levels)
        finer = put(torch.randn(2, channels, 8, 8)).requires_grad_()
        coarser = put(torch.randn(2, channels, 8 // times, 8 // times)).requires_grad_()
        said = f"forward(latents {list(finer.shape)}, coarser {list(coarser.shape)})"
        mixed = call(said, fusion, finer, coarser)
        floats("the mixed latents", mixed, finer.shape, "; it is the shape of the finer level's")
        reach(mixed.square().sum(), finer_latents=finer, coarser_latents=coarser)
        again = build(chosen, SIGNATURE, *levels)
        check_eval(fusion, again, finer.detach(), coarser.detach())
    if gpu:
        also("fusion", name, channels=channels, **options)
