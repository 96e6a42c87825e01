"""Fast primitives that every plugin may use."""

from genkit.ops.attention import sigmoid_attention
from genkit.ops.nearest import nearest_codes
from genkit.ops.norm import GroupNorm
from genkit.ops.precision import without_autocast

__all__ = ["GroupNorm", "nearest_codes", "sigmoid_attention", "without_autocast"]
