"""The share of values with a visible error."""

from genkit.evaluation.metrics import MeanMetric
from torch import Tensor


class TemplateName(MeanMetric):
    """The mean over images of one value per image; `MeanMetric` adds them up over processes."""

    label, better, decimals = "template-name", "lower", 4

    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """A value `[B]` for each image of a batch `[B, C, H, W]` in [-1, 1]."""
        error = (images - reconstructions).abs() * 127.5
        return (error > self.options.threshold).float().mean((1, 2, 3))
