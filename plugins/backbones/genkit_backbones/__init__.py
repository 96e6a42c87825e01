"""Pretrained networks: timm's as encoders, and perceptual losses."""

from __future__ import annotations

from genkit import Component, hookimpl


@hookimpl
def genkit_components() -> list[Component]:
    return []
