"""The contract of fusions."""

from __future__ import annotations

from typing import Any

import torch

from genkit.checks import floats
from genkit.interfaces import Level
from genkit.testing.tools import build, call, check_eval, part, reach

SIGNATURE = "Fusion(options, level, coarser_level)"


def check_fusion(name: str, *, channels: int = 8, **options: Any) -> None:
    """Check the fusion `name`: shapes, gradients to both levels, save and load.

    The coarser level's stride is two and four times the finer one's.
    """
    __tracebackhide__ = True
    chosen = part("fusion", name, options)
    for times in (2, 4):
        levels = Level(0, channels, 4), Level(1, channels, 4 * times)
        torch.manual_seed(0)
        fusion = build(chosen, SIGNATURE, *levels)
        finer = torch.randn(2, channels, 8, 8, requires_grad=True)
        coarser = torch.randn(2, channels, 8 // times, 8 // times, requires_grad=True)
        said = f"forward(latents {list(finer.shape)}, coarser {list(coarser.shape)})"
        mixed = call(said, fusion, finer, coarser)
        floats("the mixed latents", mixed, finer.shape, "; it is the shape of the finer level's")
        reach(mixed.square().sum(), finer_latents=finer, coarser_latents=coarser)
        again = build(chosen, SIGNATURE, *levels)
        check_eval(fusion, again, finer.detach(), coarser.detach())
