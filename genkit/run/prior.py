"""The options of training a prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from genkit.checkpoint.inspect import inspect_tokenizer
from genkit.errors import OptionError
from genkit.files import is_file
from genkit.plugin.options import Part, option, part
from genkit.plugin.registry import registry
from genkit.run.options import TrainingOptions, trained_on
from genkit.run.other_names import PRIOR
from genkit.settings import merge
from genkit.size import Size

# The value of `labels` that stands for the classes that a data set has by itself.
OWN = ("own", "folders")


@dataclass(frozen=True, kw_only=True)
class PriorRun(TrainingOptions):
    """Every option of training a prior; `config.toml` in the run directory holds them all."""

    command: ClassVar[str] = "train-prior"
    then: ClassVar[str] = "genkit sample {} --number 16 --out pictures"
    base: ClassVar[str] = "prior"
    sharded: ClassVar[bool] = True
    other_names: ClassVar[Mapping[str, str]] = PRIOR

    tokenizer: str = option(
        "", "run directory, file or hf:// address of the tokenizer", local=True, resumable=True
    )
    prior: Part = part("prior", "", "model of the sequence of indices")
    data: Part = part(
        "dataset", "", "data set name, folder, or other location; the tokenizer's own by default"
    )
    resolution: Size = option(
        Size(64, 64), "size of the images, as in genkit train; the tokenizer's", minimum=8
    )
    labels: str = option(
        "",
        "class labels to condition on: 'own' or 'folders' for the data set's own classes, or its "
        "option label, such as 'hair' of the faces",
    )
    condition: str = option(
        "",
        "safetensors file of vectors [T, C] by image name to condition on",
        local=True,
        resumable=True,
    )
    views: int = option(
        0,
        "views to encode of each image, randomly cropped and flipped; 0 for as many as the run "
        "uses, up to 16",
        minimum=0,
    )
    encode: Literal["once", "always"] = option(
        "once", "encode the images once before training, or new views of them in every step"
    )
    cache_tokens: str = option(
        "",
        "folder for the encoded images, which other runs reuse; empty is the run directory",
        local=True,
        resumable=True,
        needs="encode=once",
    )
    keep_best: bool = option(
        False, "save the weights with the lowest held-out loss, not the last ones", resumable=True
    )
    shown: int = option(16, "images drawn at each validation", minimum=0, resumable=True)
    batch_size: int = option(32, "images per process per forward pass", minimum=1)

    @property
    def name(self) -> str:
        """The default name of the run directory in `runs/`: the tokenizer's name and "-prior"."""
        path = Path(self.tokenizer)
        return (
            f"{(path.parent if path.suffix == '.safetensors' else path).name or 'tokenizer'}-prior"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.resolution.pair

    def check_here(self) -> None:
        """`OptionError` if this machine lacks a package or a file that the options name."""
        super().check_here()
        if self.condition and not is_file(Path(self.condition)):
            raise OptionError(f"--condition: there is no file '{self.condition}'")

    @classmethod
    def layered(cls, presets: str | None, *upper: Mapping[str, Any]) -> dict[str, Any]:
        """Settings from layers, with the tokenizer's data and resolution below the given ones."""
        settings = super().layered(presets, *upper)
        if path := settings.get("tokenizer"):
            found = trained_on(path, inspect_tokenizer(path))
            if "data" not in found and not any("data" in layer for layer in upper):
                raise OptionError(f"'{path}' does not record its training data: give --data")
            settings = super().layered(presets, found, *upper)
        return _with_labels(settings)

    def __post_init__(self) -> None:
        if self.labels and self.condition:
            raise ValueError("a prior takes --labels or --condition, not both")


def _with_labels(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the data set's option `label` set as `labels` asks."""
    labels, data = settings.get("labels", ""), settings.get("data", {})
    name = data.get("name") if isinstance(data, Mapping) else None
    if not labels or labels in OWN or name not in registry().names("dataset"):
        return settings
    if not hasattr(registry().component("dataset", name).config, "label"):
        raise OptionError(
            f"--labels {labels}: the data set {name} has no option label; "
            "--labels own takes the classes that it has"
        )
    return merge(PriorRun, settings, {"data": {"name": name, "label": labels}})
