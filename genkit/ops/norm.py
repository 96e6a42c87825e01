"""Group norm that keeps the dtype of its input under autocast."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from genkit.ops.precision import without_autocast


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` whose result has the dtype of its input, also under autocast.

    CUDA's autocast computes group norm in float32, and the activation after it then is in float32
    too: twice the memory and twice the bytes moved. Statistics are in float32 in any case.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features of the same shape and dtype."""
        if input.dtype.itemsize >= 4:
            return super().forward(input)
        weight, bias = (
            None if each is None else each.to(input.dtype) for each in (self.weight, self.bias)
        )
        with without_autocast(input.device):
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)
