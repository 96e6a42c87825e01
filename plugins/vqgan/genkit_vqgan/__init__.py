"""The convolutional encoder and decoder of VQGAN, and a modern residual decoder."""

from __future__ import annotations

from genkit import Component, hookimpl


@hookimpl
def genkit_components() -> list[Component]:
    return []
