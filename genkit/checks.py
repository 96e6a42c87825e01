"""Checks of a component's results, for runs (before training) and for `genkit.testing`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genkit.interfaces import Quantized


def _listed(value: object) -> str:
    """The type of a value that is not a tensor; for a list, also of its items."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(map(form, value)) or 'nothing'}"
    return type(value).__name__


def want(condition: object, message: str) -> None:
    """Raise `AssertionError` with a message unless the condition holds."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(message)


def form(value: object) -> str:
    """A tensor's shape, or another value's type."""
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def shape(what: str, value: object, wanted: tuple[int, ...] | torch.Size, more: str = "") -> None:
    """Check that a value is a tensor of the wanted shape."""
    __tracebackhide__ = True
    want(isinstance(value, Tensor), f"{what} must be one tensor, not {_listed(value)}")
    want(
        isinstance(value, Tensor) and value.shape == wanted,
        f"{what} must have shape {list(wanted)}, not {form(value)}{more}",
    )


def floats(what: str, value: Tensor, wanted: tuple[int, ...] | torch.Size, more: str = "") -> None:
    """Check that a tensor is float32, finite, and of the wanted shape."""
    __tracebackhide__ = True
    shape(what, value, wanted, more)
    want(value.dtype == torch.float32, f"{what} must be float32, not {value.dtype}")
    finite(what, value)


def finite(what: str, tensor: Tensor | None) -> None:
    """Check that a tensor contains neither NaN nor infinity."""
    __tracebackhide__ = True
    want(tensor is not None and bool(tensor.isfinite().all()), f"{what} must be finite")


def check_range(indices: Tensor, size: int) -> None:
    """Check that indices are within a codebook's size."""
    __tracebackhide__ = True
    least, most = int(indices.min()), int(indices.max())
    counted = ": codes are counted from 0, not from 1" if least > 0 and most == size else ""
    want(
        least >= 0 and most < size,
        f"indices must lie between 0 and codebook_size - 1 = {size - 1}, not {least} and {most}"
        f"{counted}",
    )


def check_result(out: Any, latents: Tensor, size: int, codebooks: int) -> None:
    """Check the type and shape of a quantizer's output."""
    __tracebackhide__ = True
    want(
        isinstance(out, Quantized),
        f"forward must return genkit.Quantized(latents, indices, loss), not {type(out).__name__}",
    )
    floats("the quantized latents", out.latents, latents.shape)
    want(isinstance(out.indices, Tensor), f"indices must be one tensor, not {form(out.indices)}")
    want(out.indices.dtype == torch.int64, f"indices must be int64, not {out.indices.dtype}")
    images, _, height, width = latents.shape
    wanted = (images, height, width, codebooks) if codebooks > 1 else (images, height, width)
    several = "; [B, h, w], or [B, h, w, codebooks] where the attribute codebooks is above 1"
    shape("the indices", out.indices, wanted, several)
    check_range(out.indices, size)
    shape("the loss", out.loss, (), "; without a loss it is latents.new_zeros(())")
    finite("the loss", out.loss)


def check_counting(quantizer: Any, plain: Quantized) -> None:
    """Check that a quantizer in eval mode, which returned `plain`, counts codes from 0."""
    __tracebackhide__ = True

    def gives(indices: Tensor) -> bool:
        try:
            decoded = quantizer.decode(indices)
            return torch.allclose(decoded, plain.latents, atol=1e-5, rtol=1e-4)
        except Exception:  # The check of decode reports it.
            return False

    want(
        gives(plain.indices) or not gives(plain.indices - 1),
        "indices must count codes from 0, not from 1: decode(indices - 1) gives the quantized "
        "latents, and decode(indices) does not",
    )
