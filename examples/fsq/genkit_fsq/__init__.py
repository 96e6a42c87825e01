"""Finite scalar quantization as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class FSQOptions:
    bins: int = option(8, "number of values per channel", minimum=2)


@hookimpl
def genkit_components():
    return [
        Component(
            "quantizer", "fsq", "genkit_fsq.fsq:FSQ", FSQOptions, "finite scalar quantization"
        )
    ]
