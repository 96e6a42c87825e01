"""The pixels of small images; put a pretrained network in their place."""

from torch import Tensor, nn
from torch.nn import functional as F

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """Images, reduced to a few pixels."""

    frechet = "FD"

    def __init__(self, options: TemplateNameOptions) -> None:
        super().__init__()
        self.side = options.side
        self.widths = {"features": 3 * options.side**2}
        self.label = f"template-name, {options.side} x {options.side} pixels"
        # What identifies the network in records, such as a hash of its weights.
        self.details: dict[str, str | int | float] = {"side": options.side}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features `[B, 3 side^2]` of images uint8 `[B, 3, H, W]` of any size."""
        small = F.adaptive_avg_pool2d(images.float() / 127.5 - 1, self.side)
        return {"features": small.flatten(1)}
