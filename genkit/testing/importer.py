"""The contract of importers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from genkit.checks import want
from genkit.errors import GenkitError
from genkit.importing import recognise
from genkit.plugin.registry import registry
from genkit.settings import choose
from genkit.testing.tools import part

# The largest difference of images, as a share of their largest value.
_NEAR = 1e-5


@torch.no_grad()
def check_importer(
    name: str, folder: str | os.PathLike[str], *, unit: bool = False, **options: Any
) -> None:
    """Check an importer on a golden folder: other code's weights, and what that code makes of them.

    The folder holds `checkpoint.safetensors`, `config.json` if the importer reads one, and
    `expected.safetensors` with `images` as that code takes them, their `indices`, and the
    `reconstruction` of these indices, unclamped. Images lie in [-1, 1], with `unit` in [0, 1]. All
    indices must be equal, and the reconstruction agree to 1e-5 of its largest value. No other
    importer may recognise the file. `AssertionError` says which of this fails.
    """
    __tracebackhide__ = True
    part("importer", name, options)
    checkpoint = Path(folder, "checkpoint.safetensors")
    try:
        found = recognise(checkpoint, name, options)
    except GenkitError as error:
        raise AssertionError(str(error)) from error
    facts = found.imported.facts
    want(
        isinstance(facts.get("licence"), str) and isinstance(facts.get("resolution"), int),
        "the facts of convert must hold licence, a text, and resolution, a whole number",
    )
    names = list(load_file(checkpoint))
    others = [
        each
        for each in registry().names("importer")
        if choose("importer", each).build().recognises(names, {}) and each != name
    ]
    want(not others, f"no other importer may recognise the file, but these do: {others}")
    expected = load_file(Path(folder, "expected.safetensors"))
    tokenizer = found.tokenizer
    indices = tokenizer.quantize(tokenizer.encoder(_signed(expected["images"], unit)))[0].indices
    share = float((indices == expected["indices"]).float().mean())
    want(share == 1, f"all indices must be equal to the expected ones; {share:.1%} are")
    if not found.can_decode:
        return
    quantizer: Any = tokenizer.quantizers[0]
    made = tokenizer.decoder([quantizer.decode(expected["indices"])])
    image = _signed(expected["reconstruction"], unit)
    off = float((made - image).abs().max() / image.abs().max())
    want(off <= _NEAR, f"images must agree to {_NEAR} of their largest value, not {off:.1e}")


def _signed(images: Tensor, unit: bool) -> Tensor:
    return 2 * images - 1 if unit else images
