"""Files of taming-transformers, latent-diffusion, IBQ, Janus and Chameleon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genkit_importers.family import Family, lookup
from genkit_importers.nets import Settings, Style, finest_first

_DISTANCES = {"nearest": "euclidean", "product": "product", "cosine": "cosine"}


def model_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of the model in a configuration of Lightning's form."""
    model = facts.get("model", facts)
    for key in ("params", "init_args"):
        if isinstance(model, Mapping) and isinstance(model.get(key), Mapping):
            return {**model[key], "class": model.get("target") or model.get("class_path")}
    return model if isinstance(model, Mapping) else {}


class Taming(Family):
    """taming-transformers' VQModel and what follows it, IBQ among them."""

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        own = {"encoder.mid.block_1.norm1.weight", "quantize.embedding.weight"}
        return (
            own <= set(names) and "decoder.conv_in.weight" in names and not _coarsest_first(names)
        )

    def codes(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Settings, dict[str, Tensor]]:
        """See `Family`."""
        rule = self.options.codes
        return lookup(tensors, _DISTANCES[self.usual(facts) if rule == "auto" else rule])

    def usual(self, facts: Mapping[str, Any]) -> str:
        """The rule that picks a code, unless the caller chose one."""
        options = model_facts(facts)
        ibq = "ibq" in str(options.get("class", "")).lower()
        return "product" if ibq and not options.get("l2_normalize") else "nearest"

    def resolution_in(self, facts: Mapping[str, Any]) -> int:
        """See `Family`."""
        net = model_facts(facts).get("ddconfig")
        found = net.get("resolution") if isinstance(net, Mapping) else None
        return found if isinstance(found, int) and found > 0 else self.resolution

    def licence_of(self, settings: Mapping[str, Any]) -> str:
        """See `Family`. SEED-Voken publishes IBQ's weights under another licence than taming's."""
        return "Apache-2.0" if settings["quantizer"].get("distance") == "product" else self.licence

    def others(self, settings: Mapping[str, Any]) -> dict[str, Settings]:
        """See `Family`."""
        now = settings["quantizer"]["distance"]
        others = ["product"] if now == "euclidean" else ["nearest"]
        return {
            **super().others(settings),
            **{f"--codes {rule}": {"quantizer": {"distance": _DISTANCES[rule]}} for rule in others},
        }


class Gumbel(Taming):
    """taming-transformers' GumbelVQ: the code of the largest logit, without its noise."""

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return {"quantize.proj.weight", "quantize.embed.weight"} <= set(names)

    def codes(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Settings, dict[str, Tensor]]:
        """See `Family`."""
        table = tensors["quantize.embed.weight"]
        return {"name": "categorical", "codebook_size": len(table)}, {
            "quantizers.0.codebook": table,
            "quantizers.0.logits.weight": tensors["quantize.proj.weight"],
            "quantizers.0.logits.bias": tensors["quantize.proj.bias"],
        }

    def others(self, settings: Mapping[str, Any]) -> dict[str, Settings]:
        """See `Family`."""
        return Family.others(self, settings)


class Janus(Taming):
    """transformers' Janus, alone or inside the whole model: decoder levels from the coarsest.

    Codes are compared at length 1, as in training. transformers' own `encode` leaves that out, and
    gives other indices if the table is not of length 1.
    """

    resolution = 384
    licence = "DeepSeek Model License (not free)"

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        return "quantize.embedding.weight" in names and _coarsest_first(names)

    def usual(self, facts: Mapping[str, Any]) -> str:
        """See `Taming`."""
        return "cosine"

    def adapted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Family`."""
        return finest_first(tensors)


class Chameleon(Family):
    """transformers' Chameleon, alone or inside the whole model: encoder and codes, no decoder."""

    resolution = 512
    licence = "Chameleon Research License (not free)"

    def has(self, names: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
        """See `Family`."""
        own = {"encoder.mid.block_1.norm1.weight", "quantize.embedding.weight"}
        return own <= set(names) and not any(name.startswith("decoder.") for name in names)

    def decoder(self, tensors: Mapping[str, Tensor], style: Style) -> str:
        """See `Family`."""
        return "no-decoder"


def _coarsest_first(names: Mapping[str, str]) -> bool:
    """Whether the decoder's levels count from the coarsest: the first of them is enlarged."""
    return "decoder.up.0.upsample.conv.weight" in names
