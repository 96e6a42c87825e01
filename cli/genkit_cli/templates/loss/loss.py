"""The Charbonnier loss: an absolute error that is smooth around 0."""

from torch import Tensor

from genkit_template_name import TemplateNameOptions


class TemplateName:
    """The mean over pixels of sqrt(error^2 + epsilon^2) - epsilon."""

    def __init__(self, options: TemplateNameOptions, channels: int) -> None:
        self.epsilon = options.epsilon

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar for batches `[B, channels, H, W]` in [-1, 1], 0 for equal ones."""
        error = (reconstructions - images).square()
        return ((error + self.epsilon**2).sqrt() - self.epsilon).mean()
