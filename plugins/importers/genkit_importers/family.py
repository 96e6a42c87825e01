"""The common part of the importers of taming-transformers' descendants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from genkit.interfaces import Imported
from genkit_importers.names import renamed, tokenizer_names
from genkit_importers.nets import (
    TAMING_MIDDLE,
    Settings,
    Style,
    check_known,
    decoder_settings,
    decoder_tensors,
    encoder_settings,
    encoder_tensors,
    projected,
)

_RANGES = {"signed": "in [-1, 1]", "unit": "in [0, 1]"}
# By the quantizer's distance, or else by its name.
_RULES = {
    "euclidean": "the nearest one",
    "cosine": "the one at the smallest angle",
    "product": "the one with the largest product",
    "categorical": "the one with the largest logit",
    "lfq": "the signs of the latent",
    "simvq": "the nearest one, through the learned matrix",
}


class Family(ABC):
    """An importer of networks like taming-transformers'; see `genkit.interfaces.Importer`."""

    licence = "MIT"
    resolution = 256
    rules: ClassVar[Sequence[tuple[str, str]]] = TAMING_MIDDLE

    def __init__(self, options: Any) -> None:
        self.options = options

    def recognises(self, names: Sequence[str], facts: Mapping[str, Any]) -> bool:
        """Whether tensors of these names are of this family."""
        own = tokenizer_names(names)
        return bool(own) and self.has(own, facts)

    @abstractmethod
    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """Whether the names of a tokenizer are this family's."""

    def convert(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Imported:
        """The tokenizer in genkit's terms."""
        names = self.chosen(tensors, tokenizer_names(tensors))
        own = self.adapted(
            renamed({short: tensors[name].float() for short, name in names.items()}, self.rules)
        )
        style = self.style(facts)
        quantizer, codes = self.codes(own, facts)
        settings = {
            "encoder": encoder_settings(own, style),
            "quantizer": quantizer,
            "fusion": "hierarchical",
            "decoder": self.decoder(own, style),
        }
        check_known(own)
        # A file can hold an encoder and codes alone.
        decoder = {} if settings["decoder"] == "no-decoder" else decoder_tensors(own)
        return Imported(
            settings,
            {**encoder_tensors(own), **decoder, **codes},
            {
                "resolution": self.resolution_in(facts),
                "licence": self.licence_of(settings),
                "taken": {
                    "images": _RANGES[style.image_range],
                    "code": _RULES[str(quantizer.get("distance", quantizer["name"]))],
                },
            },
            self.others(settings),
        )

    def chosen(self, tensors: Mapping[str, Tensor], names: dict[str, str]) -> dict[str, str]:
        """The names in the file of the tensors to take, by their names without a prefix."""
        return names

    def adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names of `genkit_importers.nets`."""
        return tensors

    def style(self, facts: Mapping[str, Any]) -> Style:
        """The properties that names and shapes leave open."""
        return Style(image_range=self.options.image_range)

    def decoder(self, tensors: Mapping[str, Tensor], style: Style) -> Settings | str:
        """The decoder's options."""
        return decoder_settings(tensors, style)

    def codes(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Settings, dict[str, Tensor]]:
        """The quantizer's options, and its tensors under genkit's names."""
        return lookup(tensors, "euclidean")

    def resolution_in(self, facts: Mapping[str, Any]) -> int:
        """The height and width of the images that the model was trained on."""
        return self.resolution

    def licence_of(self, settings: Mapping[str, Any]) -> str:
        """The licence of the family's published weights."""
        return self.licence

    def others(self, settings: Mapping[str, Any]) -> dict[str, Settings]:
        """Other readings of the file, by the flag that asks for them."""
        now = settings["encoder"]["image_range"]
        other = {"signed": "unit", "unit": "signed"}[now]
        if settings["decoder"] == "no-decoder":
            return {}
        both = {side: {"image_range": other} for side in ("encoder", "decoder")}
        return {f"--image-range {other}": both}


def lookup(tensors: Mapping[str, Tensor], distance: str) -> tuple[Settings, dict[str, Tensor]]:
    """The options and tensors of a quantizer with a table of codes."""
    table = tensors["quantize.embedding.weight"]
    settings = {
        "name": "vq",
        "codebook_size": len(table),
        "codebook_dim": projected(tensors),
        "distance": distance,
        # For fine-tuning: codes learn by gradient, as in these projects, and stay where they are.
        "update": "gradient",
        "kmeans_start": False,
        "revive": 0.0,
        "commitment_weight": 1.0,
    }
    found = {"quantizers.0.codebook": table, "quantizers.0.started": torch.tensor(True)}
    if projected(tensors):
        for part, conv in (("enter", "quant_conv"), ("leave", "post_quant_conv")):
            found |= {
                f"quantizers.0.{part}.{kind}": tensors[f"{conv}.{kind}"]
                for kind in ("weight", "bias")
            }
    return settings, found
