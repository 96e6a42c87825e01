"""Reconstruction losses."""

from __future__ import annotations

from genkit import Component, NoOptions, hookimpl


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_losses.pixels"
    return [
        Component("loss", "l1", f"{here}:L1", NoOptions, "mean absolute error of pixels"),
        Component("loss", "l2", f"{here}:L2", NoOptions, "mean squared error of pixels"),
    ]
