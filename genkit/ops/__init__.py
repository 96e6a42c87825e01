"""Fast primitives that every plugin may use."""

from genkit.ops.attention import sigmoid_attention
from genkit.ops.host import HostNumber
from genkit.ops.nearest import count_codes, nearest_codes
from genkit.ops.norm import GroupNorm
from genkit.ops.precision import without_autocast

__all__ = [
    "GroupNorm",
    "HostNumber",
    "count_codes",
    "nearest_codes",
    "sigmoid_attention",
    "without_autocast",
]
