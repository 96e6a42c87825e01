"""A fixed codebook times a learned matrix (Zhu et al. 2024, SimVQ, arXiv 2411.02038)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import ResidualSimVQ, SimVQ
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from genkit import Level
from genkit.ops import nearest_codes
from genkit_zoo import ResidualSimVQOptions, SimVQOptions
from genkit_zoo.wrapped import Wrapped, mean_square


class ExactSimVQ(SimVQ):  # type: ignore[misc]
    """The library's SimVQ with genkit's nearest-code search, without a table of all distances."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, indices and loss of latents `[B, N, C]`."""
        codebook = self.codebook
        indices = nearest_codes(x.detach().flatten(0, 1), codebook.detach()).view(x.shape[:2])
        codes = F.embedding(indices, codebook)
        commitment = self.input_to_quantize_commit_loss_weight * mean_square(x, codes.detach())
        loss = mean_square(codes, x.detach()) + commitment
        through = rotate_to(x, codes) if self.rotation_trick else x + (codes - x).detach()
        return through, indices, loss


class Sim(Wrapped):
    """SimVQ: the nearest code of a fixed codebook times a learned matrix."""

    def __init__(self, options: SimVQOptions, level: Level) -> None:
        super().__init__(ExactSimVQ(**_arguments(options, level)), options.codebook_size)

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        return _mapped(self.inner, indices[..., 0])


class ResidualSim(Wrapped):
    """Residual SimVQ: each round quantizes the residual of the previous ones."""

    def __init__(self, options: ResidualSimVQOptions, level: Level) -> None:
        inner = ResidualSimVQ(num_quantizers=options.codebooks, **_arguments(options, level))
        for layer in inner.layers:
            layer.__class__ = ExactSimVQ
        super().__init__(inner, options.codebook_size, options.codebooks)

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        layers = zip(self.inner.layers, indices.unbind(-1), strict=True)
        return torch.stack([_mapped(layer, each) for layer, each in layers]).sum(0)


def _mapped(inner: Any, indices: Tensor) -> Tensor:
    return inner.code_transform(F.embedding(indices, inner.frozen_codebook))


def _arguments(options: SimVQOptions, level: Level) -> dict[str, Any]:
    return {
        "dim": level.channels,
        "codebook_size": options.codebook_size,
        "frozen_codebook_dim": options.codebook_dim or level.channels,
        "rotation_trick": options.gradient == "rotation",
        "input_to_quantize_commit_loss_weight": options.commitment_weight,
    }
