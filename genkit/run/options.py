"""The options of a run: of any training, and of training a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from genkit.models import TokenizerOptions
from genkit.plugin.options import Part, option, part
from genkit.plugin.registry import registry
from genkit.settings import merge, resolve, with_locations


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of any training, whatever is trained."""

    steps: int = option(
        350, "optimizer steps to train; 0 writes the untrained model", minimum=0, resumable=True
    )
    batch_size: int = option(16, "images a process and forward pass", minimum=1)
    accumulate: int = option(1, "forward passes whose gradients make one step", minimum=1)
    lr: float = option(1e-3, "learning rate at its height", minimum=0)
    warmup: int = option(50, "steps over which the learning rate rises from 0", minimum=0)
    schedule: Part = part("schedule", "", "learning-rate schedule after the warm-up")
    optimizer: Part = part("optimizer", "", "optimizer, also by any name that timm knows")
    clip: float = option(1.0, "largest norm of the gradient; 0 does not clip", minimum=0)
    ema: float = option(
        0.99,
        "decay of the running average of the weights that is saved; 0 keeps none",
        minimum=0,
        maximum=0.999999,
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        "no", "precision of encoder and decoder; codes stay float32"
    )
    device: str = option(
        "",
        "device to train on, such as cpu or cuda:0; empty chooses the accelerator",
        local=True,
        resumable=True,
    )
    seed: int = option(
        0,
        "what initial weights, data order and every random draw come from",
        minimum=0,
        maximum=2**31,
    )
    workers: int = option(
        -1,
        "processes that prepare images; 0 prepares them in the training process, -1 takes what "
        "suits the machine",
        minimum=-1,
        resumable=True,
    )
    log_every: int = option(20, "steps between rows of metrics.jsonl", minimum=1, resumable=True)
    validate_every: int = option(
        250,
        "steps between validations and sample grids; the last step has one anyway",
        minimum=1,
        resumable=True,
    )
    validation_images: int = option(
        256, "held-out images looked at in a validation", minimum=1, resumable=True
    )
    checkpoint_every: int = option(
        250, "steps between the checkpoints that --resume goes on from", minimum=1, resumable=True
    )
    keep: int = option(2, "checkpoints kept for --resume", minimum=1, resumable=True)
    max_skipped: int = option(
        10,
        "steps in a row without finite loss and gradient after which the run stops",
        minimum=1,
        resumable=True,
    )
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "aim", "comet_ml"] = option(
        "none", "also log to this tracker", resumable=True
    )

    @property
    def name(self) -> str:
        """The default name of a run directory below `runs/`."""
        return "run"


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(TrainingOptions, TokenizerOptions):
    """Every option of training a tokenizer; `config.toml` in the run directory holds them all."""

    discriminator: Part = part(
        "discriminator", "none", "scores patches for adversarial training", optional=True
    )
    perceptual: Part = part(
        "perceptual", "none", "a trained network's view of the difference", optional=True
    )
    data: Part = part("dataset", "", "a data set's name, or a folder or what else one reads")
    resolution: int = option(64, "height and width of the images trained on, in pixels", minimum=8)
    reconstruction: Part = part("loss", "", "reconstruction loss", needs="reconstruction_weight")
    reconstruction_weight: float = option(4.0, "weight of the reconstruction loss", minimum=0)
    perceptual_weight: float = option(
        0.1, "weight of the perceptual loss", minimum=0, needs="perceptual"
    )
    adversarial_loss: Literal["hinge", "non-saturating", "bce"] = option(
        "hinge", "what the discriminator plays for", needs="discriminator"
    )
    adversarial_weight: float = option(
        0.1,
        "weight of the discriminator's verdict in the tokenizer's loss",
        minimum=0,
        needs="discriminator",
    )
    adversarial_adaptive: bool = option(
        False,
        "scale that weight by the ratio of both losses' gradients at the image",
        needs=("discriminator", "adversarial_weight"),
    )
    discriminator_start: int = option(
        0, "step at which the discriminator comes in", minimum=0, needs="discriminator"
    )
    discriminator_ramp: int = option(
        500,
        "steps over which its weight then rises",
        minimum=0,
        needs=("discriminator", "adversarial_weight"),
    )
    discriminator_lr: float = option(
        2e-4, "the discriminator's learning rate", minimum=0, needs="discriminator"
    )
    discriminator_optimizer: Part = part(
        "optimizer", "", "the discriminator's optimizer", needs="discriminator", short=False
    )
    lecam_weight: float = option(
        0.0,
        "weight of LeCAM, which keeps the discriminator's verdicts close together",
        minimum=0,
        needs="discriminator",
    )
    lecam_decay: float = option(
        0.99,
        "decay of the running verdicts that LeCAM compares with",
        minimum=0,
        maximum=0.999999,
        needs=("discriminator", "lecam_weight"),
    )
    r1_weight: float = option(
        0.0,
        "weight of R1, the squared gradient of the verdict on real images",
        minimum=0,
        needs="discriminator",
    )
    r1_every: int = option(
        16,
        "steps between those with R1, whose weight is as many times",
        minimum=1,
        needs=("discriminator", "r1_weight"),
    )

    @property
    def name(self) -> str:
        """The default name of a run directory below `runs/`: the data set's."""
        return self.data.name

    def __post_init__(self) -> None:
        if self.mixed_precision == "fp16" and self.r1_weight:
            raise ValueError("--r1-weight needs --mixed-precision bf16 or no: fp16 loses gradients")

    @property
    def tokenizer(self) -> TokenizerOptions:
        """The components of the tokenizer alone."""
        names = [field.name for field in dataclasses.fields(TokenizerOptions)]
        return TokenizerOptions(**{name: getattr(self, name) for name in names})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images trained on."""
        return self.resolution, self.resolution


def layered(presets: str | None, *upper: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run: the preset `default`, below the ones named, below each of `upper` in turn.

    Several presets are named with commas between them, the later above the earlier.
    """
    named = presets.split(",") if presets else []
    # A selection of plugins without the default preset still works if every component is named.
    base = ["default"] if "default" in registry().presets() else []
    layers = [registry().preset(name.strip()).settings for name in [*base, *named]]
    settings: dict[str, Any] = {}
    for layer in [*layers, *upper]:
        settings = merge(TokenizerRun, settings, with_locations(layer))
    return settings


def resolve_run(settings: Mapping[str, Any]) -> TokenizerRun:
    """The run that settings describe, every option checked.

    `OptionError` or `MissingComponent` if it cannot be.
    """
    return resolve(TokenizerRun, settings)
