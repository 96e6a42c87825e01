"""Another project's tokenizer as genkit's: recognised, converted, written and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genkit.checkpoint.model import description, save
from genkit.errors import CheckpointError, GenkitError, OptionError
from genkit.evaluation.images import all_images
from genkit.evaluation.metrics import psnr
from genkit.files import MODEL, expanded, is_folder
from genkit.foreign.source import Source, open_source
from genkit.images import from_pixels
from genkit.interfaces import Imported, Importer
from genkit.models import TokenizerOptions
from genkit.plugin.registry import registry
from genkit.settings import choose, merge, resolve
from genkit.tokenizer import Tokenizer

_FREE = ("MIT", "Apache-2.0", "BSD", "CC0")
# The largest height and width of the images of a check: enough to tell readings apart.
_SIDE = 128
# A reading of a file is right above this PSNR on ordinary images, and wrong far below it.
LOWEST = 15.0


class Reading(NamedTuple):
    """How well a reading of a file reconstructs; `flag` asks for it, empty for the one taken."""

    flag: str
    psnr: float


@dataclass(frozen=True)
class Found:
    """A recognised file: its family, whether the caller named that, and the tokenizer."""

    family: str
    named: bool
    imported: Imported
    tokenizer: Tokenizer

    @property
    def can_decode(self) -> bool:
        """Whether the file holds a decoder."""
        return any(True for _ in self.tokenizer.decoder.parameters())

    @property
    def licence(self) -> str:
        """The licence of the family's published weights, and whether it is a free one."""
        return str(self.imported.facts.get("licence") or "not stated")

    @property
    def is_free(self) -> bool:
        """Whether the licence is known to be a free one."""
        return self.licence.startswith(_FREE)

    def readings(self, location: str, number: int = 4) -> list[Reading]:
        """The mean PSNR of this and the other readings on `number` images of a data set."""
        stride = self.tokenizer.levels[-1].stride
        resolution = min(_SIDE, int(self.imported.facts.get("resolution") or _SIDE))
        side = max(stride, resolution // stride * stride)
        images = all_images(location, (side, side), once=True, model=description(self.tokenizer))
        count = min(number, len(images))
        if not count:
            raise OptionError(f"'{location}' holds no images to check the tokenizer on")
        batch = from_pixels(torch.from_numpy(images.images(list(range(count)))))
        if batch.shape[1] != self.tokenizer.channels:
            raise OptionError(
                f"'{location}' has images of {batch.shape[1]} channels, the tokenizer takes "
                f"{self.tokenizer.channels}"
            )
        result = [Reading("", _quality(self.tokenizer, batch))]
        for flag, changes in self.imported.others.items():
            other = _tokenizer(self.imported, changes)
            result.append(Reading(flag, _quality(other, batch)))
        return result


def recognise(
    source: str | os.PathLike[str],
    family: str | None = None,
    options: Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Found:
    """The tokenizer in another project's file, folder or hub repository.

    `family` names the importer, which is otherwise found by the names of the tensors, and `options`
    are its options. `config` is a configuration that does not lie beside the weights. Nothing in a
    file is run.
    """
    opened = open_source(source, config)
    name = family or _family(opened, source)
    importer: Importer = choose("importer", {"name": name, **(options or {})}).build()
    try:
        imported = importer.convert(opened.tensors, opened.facts)
        tokenizer = _tokenizer(imported)
    except GenkitError as error:
        raise CheckpointError(
            f"'{source}' cannot be imported as a file of the family {name}: {error}"
        ) from error
    except KeyError as error:
        raise CheckpointError(
            f"'{source}' cannot be imported as a file of the family {name}: it lacks the tensor "
            f"{error}"
        ) from None
    tokenizer.facts = {
        "resolution": imported.facts.get("resolution"),
        "imported": {
            "family": name,
            "source": opened.name,
            "sha256": opened.sha256,
            "format": opened.format,
            "licence": str(imported.facts.get("licence") or "not stated"),
        },
    }
    return Found(name, family is not None, imported, tokenizer)


def import_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    family: str | None = None,
    options: Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Path:
    """Write another project's tokenizer as a run directory, and return that.

    `source` is a file, a folder or a hub repository. `family` names the importer, which is
    otherwise found by the names of the tensors, and `options` are its options. `config` is a
    configuration that does not lie beside the weights. Nothing in a file is run.
    """
    check_out(out)
    return write(recognise(source, family, options, config), out)


def check_out(out: str | os.PathLike[str]) -> None:
    """`GenkitError` if a model cannot be written into the folder `out`."""
    directory = expanded(out)
    if is_folder(directory) and any(directory.iterdir()):
        raise GenkitError(f"'{out}' is not empty: choose another --out")


def write(found: Found, out: str | os.PathLike[str]) -> Path:
    """Write a recognised tokenizer into the folder `out`, and return the folder."""
    directory = expanded(out)
    save(found.tokenizer, directory / MODEL)
    return directory


def _family(opened: Source, source: str | os.PathLike[str]) -> str:
    """The one importer that recognises the tensors."""
    names = list(opened.tensors)
    known = registry().names("importer")
    found = [
        name for name in known if choose("importer", name).build().recognises(names, opened.facts)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise OptionError(
            f"'{source}' could be of several families: choose one with --family "
            f"{' or --family '.join(found)}"
        )
    some = ", ".join(sorted(names)[:3]) or "none at all"
    raise CheckpointError(
        f"'{source}' is of no known family: its tensors are {some} …; "
        f"known families: {', '.join(known) or 'none'}"
    )


def _tokenizer(imported: Imported, changes: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of an imported file, with every tensor in its place."""
    settings = merge(TokenizerOptions, dict(imported.settings), dict(changes or {}))
    tokenizer = Tokenizer(resolve(TokenizerOptions, settings)).eval()
    own = {name: value.shape for name, value in tokenizer.state_dict().items()}
    given = {name: value.shape for name, value in imported.tensors.items()}
    wrong = sorted(name for name in {*own, *given} if own.get(name) != given.get(name))
    if wrong:
        first = wrong[0]
        shapes = [
            list(shape) if shape is not None else "missing"
            for shape in (given.get(first), own.get(first))
        ]
        raise CheckpointError(
            f"{len(wrong)} of its tensors do not fit the network that their names describe, first "
            f"'{first}' (file: {shapes[0]}, network: {shapes[1]})"
        )
    tokenizer.load_state_dict(dict(imported.tensors))
    return tokenizer


@torch.no_grad()
def _quality(tokenizer: Tokenizer, images: torch.Tensor) -> float:
    # One image at a time, since a large network at full resolution needs much memory.
    found = [psnr(image, tokenizer(image).images) for image in images.split(1)]
    return float(torch.cat(found).mean())
