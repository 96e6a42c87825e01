"""genkit: train, extend and use generative image models with a discrete bottleneck.

`import genkit` imports no torch, and little else; what needs more is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genkit import errors
from genkit.errors import GenkitError, MissingComponent
from genkit.plugin.component import Component, NoOptions, Preset
from genkit.plugin.hookspecs import hookimpl
from genkit.plugin.options import Part, option, part

if TYPE_CHECKING:
    from genkit import images
    from genkit.checkpoint.inspect import inspect
    from genkit.checkpoint.model import load, save
    from genkit.evaluation.measurement import evaluate
    from genkit.interfaces import Level, Quantized
    from genkit.tokenizer import Output, Tokenizer

__version__ = "0.1.0"
# By this line the command recognises its own package; another project has one of the same name.
__distribution__ = "genkit-vq"

__all__ = [
    "Component",
    "GenkitError",
    "Level",
    "MissingComponent",
    "NoOptions",
    "Output",
    "Part",
    "Preset",
    "Quantized",
    "Tokenizer",
    "errors",
    "evaluate",
    "hookimpl",
    "images",
    "inspect",
    "load",
    "option",
    "part",
    "save",
]

_LAZY = {
    "load": "checkpoint.model",
    "save": "checkpoint.model",
    "inspect": "checkpoint.inspect",
    "evaluate": "evaluation.measurement",
    "Level": "interfaces",
    "Quantized": "interfaces",
    "Output": "tokenizer",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name == "images":
        return importlib.import_module("genkit.images")
    if name not in _LAZY:
        raise AttributeError(f"module 'genkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"genkit.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
