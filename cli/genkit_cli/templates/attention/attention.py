"""Softmax attention between pixels."""

from torch import Tensor, nn
from torch.nn import functional as F

from genkit_template_name import TemplateNameOptions


class TemplateName(nn.Module):
    """The values plus softmax(Q K^T / sqrt(width)) times the values of the context."""

    def __init__(self, options: TemplateNameOptions, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, options.width, 1)
        self.key = nn.Conv2d(channels, options.width, 1)

    def forward(
        self,
        features: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        context_values: Tensor | None = None,
    ) -> Tensor:
        """Attend from features to the context: self-attention without one, else cross-attention."""
        context = features if context is None else context
        context_values = values if context_values is None else context_values
        queries, keys, attended = (
            x.flatten(2).transpose(1, 2)  # [B, h w, channels]
            for x in (self.query(features), self.key(context), context_values)
        )
        added = F.scaled_dot_product_attention(queries, keys, attended)
        return values + added.transpose(1, 2).reshape(values.shape)
