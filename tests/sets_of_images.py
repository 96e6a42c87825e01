"""Sets of images, simple features of them, and a tiny timm model, for the tests of distances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from genkit.evaluation.distances import Distances


class Means(nn.Module):
    """Means of squares of the image; it counts the images that pass."""

    label, frechet = "Means", "FID"

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.widths = {"features": 12, "spatial": 3, "logits": 12}
        self.details: dict[str, Any] = {"version": 1}
        self.passed = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert images.dtype == torch.uint8
        self.passed += len(images)
        colours = images.expand(-1, 3, -1, -1) / 255
        values = nn.functional.adaptive_avg_pool2d(colours, 2).flatten(1)
        return {"features": values, "spatial": values[:, :3], "logits": 9 * values}


def pictures(seed: int, count: int = 24, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 4, 4, generator=generator)
    return (noise * 0.4 * spread).clamp(-1, 1)


def compared(real: Tensor, made: Tensor, *, size: int = 7, **options: Any) -> Distances:
    """The distances of two sets, added in batches."""
    distances = Distances(Means(), **options)
    for batch in real.split(size):
        distances.add_real(batch)
    for batch in made.split(size):
        distances.add(batch)
    return distances


def tiny_model(folder: Path, seed: int = 0) -> dict[str, Any]:
    """A timm model of a few thousand parameters with a file of random weights, as options."""
    file = folder / f"tiny{seed}.pth"
    torch.manual_seed(seed)
    torch.save(timm.create_model("test_convnext").state_dict(), file)
    return {"name": "timm", "model": "test_convnext", "weights": str(file), "size": 32}


def as_metric(features: dict[str, Any]) -> str:
    """The metric with these features, as `--metric` takes it."""
    options = "&".join(
        f"features.{key}={value}" for key, value in features.items() if key != "name"
    )
    return f"distances?features={features['name']}&{options}"
