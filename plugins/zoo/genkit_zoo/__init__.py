"""The quantizers of the library vector-quantize-pytorch."""

from __future__ import annotations

from genkit import Component, hookimpl


@hookimpl
def genkit_components() -> list[Component]:
    return []
