"""The contract of attentions."""

from __future__ import annotations

from typing import Any

import torch

from genkit.checks import floats
from genkit.testing.device import also
from genkit.testing.tools import build, call, check_eval, part, put, reach

SIGNATURE = "Attention(options, channels)"


def check_attention(name: str, *, channels: int = 8, gpu: bool = True, **options: Any) -> None:
    """Check the attention `name`, self and cross: shapes, gradients, save and load.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("attention", name, options)
    torch.manual_seed(0)
    attention = build(chosen, SIGNATURE, channels)
    features, context = put(torch.randn(2, channels, 4, 6)), put(torch.randn(2, channels, 2, 3))
    values, others = put(torch.randn(2, 5, 4, 6)).requires_grad_(), put(torch.randn(2, 5, 2, 3))
    more = "; the result has as many channels as the values, not as the features"
    both = f"features {list(features.shape)}, values {list(values.shape)}"
    itself = call(f"forward({both})", attention, features, values)
    floats("the values of self-attention", itself, values.shape, more)
    across = call(
        f"forward({both}, context {list(context.shape)}, context_values {list(others.shape)})",
        attention,
        features,
        values,
        context,
        others,
    )
    floats("the values of cross-attention", across, values.shape, more)
    reach(across.square().sum(), values=values)
    again = build(chosen, SIGNATURE, channels)
    check_eval(attention, again, features, values.detach(), context, others)
    if gpu:
        also("attention", name, channels=channels, **options)
