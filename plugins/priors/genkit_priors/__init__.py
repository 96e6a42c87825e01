"""Priors: distributions over the indices of an image, by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from genkit import Component, Preset, hookimpl, option


@dataclass(frozen=True)
class PriorOptions:
    """Options shared by both priors."""

    other_names: ClassVar[dict[str, str]] = {
        "n_embd": "width",
        "hidden_size": "width",
        "n_layer": "depth",
        "num_layers": "depth",
        "n_head": "heads",
        "num_heads": "heads",
    }

    width: int = option(256, "channels of the transformer", minimum=8)
    depth: int = option(4, "layers of the transformer", minimum=1)
    heads: int = option(4, "attention heads; each has an equal share of the channels", minimum=1)
    dropout: float = option(
        0.0,
        "dropout after each attention and feed-forward layer, against overfitting in long training",
        minimum=0,
        maximum=0.99,
    )
    condition_dropout: float = option(
        0.1,
        "share of training images whose condition is left out, which guidance needs",
        minimum=0,
        maximum=1,
    )
    token_noise: float = option(
        0.0,
        "share of input indices replaced at random in training, against overfitting",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width must be a multiple of 4 x heads, because rotary positions take four "
                f"channels of a head; {self.width} is no multiple of {4 * self.heads}"
            )


@dataclass(frozen=True)
class AutoregressiveOptions(PriorOptions):
    """Options of the autoregressive prior."""

    place_width: int = option(
        128, "channels of the depth transformer, over the indices of one place", minimum=8
    )
    place_depth: int = option(2, "layers of the depth transformer", minimum=1)
    place_heads: int = option(2, "attention heads of the depth transformer", minimum=1)
    order: Literal["raster", "random"] = option(
        "raster",
        "order of places in training: row by row, or random at first and row by row at last",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place_width % self.place_heads:
            raise ValueError(
                f"place_width must be a multiple of place_heads; {self.place_width} is no multiple "
                f"of {self.place_heads}"
            )


@dataclass(frozen=True)
class MaskedOptions(PriorOptions):
    """Options of the masked prior."""

    label_smoothing: float = option(
        0.1, "label smoothing of the training loss", minimum=0, maximum=0.99
    )
    schedule: Literal["cosine", "arccos"] = option(
        "cosine", "mask schedule: share of masked places by share of passes"
    )
    order: Literal["confidence", "halton"] = option(
        "confidence",
        "order of places in sampling: most confident first, or the Halton sequence, evenly spread",
    )


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "prior",
            "autoregressive",
            "genkit_priors.autoregressive:Autoregressive",
            AutoregressiveOptions,
            "transformer that draws place after place, and a small one for the indices of a place",
        ),
        Component(
            "prior",
            "masked",
            "genkit_priors.masked:Masked",
            MaskedOptions,
            "bidirectional transformer that fills in many masked indices per pass, as MaskGIT does",
        ),
    ]


@hookimpl
def genkit_presets() -> list[Preset]:
    return [
        Preset(
            "prior",
            {
                "prior": "autoregressive",
                "optimizer": {"name": "muon", "betas": [0.9, 0.99]},
                # Averaged weights need no decay to zero, which would end progress too early.
                "schedule": {"name": "cosine", "final_lr": 0.4},
                "steps": 550,
                "batch_size": 32,
                "lr": 5e-3,
                "warmup": 20,
                "log_every": 20,
                "validate_every": 100,
            },
            "the defaults of a prior",
            "train-prior",
        )
    ]
