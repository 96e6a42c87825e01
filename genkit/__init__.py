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
    __version__: str
    from genkit import images
    from genkit.checkpoint.inspect import inspect
    from genkit.checkpoint.model import load, save
    from genkit.checkpoint.prior import load_prior
    from genkit.data.open import open_images
    from genkit.data.split import Subset
    from genkit.evaluation.measurement import evaluate
    from genkit.images import to_pil
    from genkit.importing import import_model
    from genkit.interfaces import Level, Quantized
    from genkit.plugin.registry import register
    from genkit.prior import Prior
    from genkit.reporting.page import report
    from genkit.tokenizer import Output, Tokenizer
    from genkit.tokens.dataset import Tokens, load_tokens, save_tokens
    from genkit.tokens.encode import encode
    from genkit.training.prior import train_prior
    from genkit.training.tokenizer import train

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
    "Prior",
    "Quantized",
    "Subset",
    "Tokenizer",
    "Tokens",
    "encode",
    "errors",
    "evaluate",
    "hookimpl",
    "images",
    "import_model",
    "inspect",
    "load",
    "load_tokens",
    "load_prior",
    "open_images",
    "option",
    "part",
    "register",
    "report",
    "save",
    "save_tokens",
    "to_pil",
    "train",
    "train_prior",
]

_LAZY = {
    "load": "checkpoint.model",
    "load_prior": "checkpoint.prior",
    "Prior": "prior",
    "train_prior": "training.prior",
    "save": "checkpoint.model",
    "inspect": "checkpoint.inspect",
    "evaluate": "evaluation.measurement",
    "import_model": "importing",
    "Level": "interfaces",
    "Quantized": "interfaces",
    "Output": "tokenizer",
    "Subset": "data.split",
    "open_images": "data.open",
    "to_pil": "images",
    "Tokenizer": "tokenizer",
    "register": "plugin.registry",
    "report": "reporting.page",
    "train": "training.tokenizer",
    "encode": "tokens.encode",
    "Tokens": "tokens.dataset",
    "load_tokens": "tokens.dataset",
    "save_tokens": "tokens.dataset",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # It takes longer to import than all of this.

        globals()[name] = version(__distribution__)
        return globals()[name]
    if name == "images":
        return importlib.import_module("genkit.images")
    if name not in _LAZY:
        raise AttributeError(f"module 'genkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"genkit.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
