"""Vector quantization of directions, with a codebook that is learned by gradient."""

import genkit
import torch
from genkit.ops import nearest_codes
from torch import Tensor, nn
from torch.nn import functional as F

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """The code of the nearest direction. Latents of any length then use all codes at first."""

    def __init__(self, options: TemplateNameOptions, level: genkit.Level) -> None:
        super().__init__()
        self.codebook_size = options.codebook_size
        self.commitment_weight = options.commitment_weight
        self.codebook = nn.Parameter(torch.randn(options.codebook_size, level.channels))
        self.codebook.by_adam = True  # The default optimizer would take it for a weight matrix.

    def forward(self, latents: Tensor) -> genkit.Quantized:
        """Quantize latents `[B, C, h, w]`."""
        latents = F.normalize(latents, dim=1)
        rows = latents.movedim(1, -1)
        found = nearest_codes(rows.flatten(0, 2), F.normalize(self.codebook, dim=1))
        indices = found.view(rows.shape[:3])
        codes = self.decode(indices)
        loss = F.mse_loss(codes, latents.detach())
        loss = loss + self.commitment_weight * F.mse_loss(latents, codes.detach())
        # The straight-through estimator: the latents receive the gradient of the codes.
        return genkit.Quantized(latents + (codes - latents).detach(), indices, loss)

    def decode(self, indices: Tensor) -> Tensor:
        """The latents `[B, C, h, w]` of indices `[B, h, w]`."""
        return F.embedding(indices, F.normalize(self.codebook, dim=1)).movedim(-1, 1)
