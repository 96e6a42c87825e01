"""A run's options: the parts of a tokenizer, and how it is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from genkit.errors import OptionError
from genkit.needs import SEVERAL_LEVELS
from genkit.options import Part, merge, option, part, resolve
from genkit.registry import registry


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The components of a tokenizer."""

    encoder: Part = part("encoder", "", "turns images into latents, one set a level")
    quantizer: Part = part(
        "quantizer", "", "turns latents into indices of a codebook, level by level"
    )
    fusion: Part = part(
        "fusion",
        "",
        "mixes a quantized coarser level into the next finer one",
        needs=SEVERAL_LEVELS,
    )
    decoder: Part = part("decoder", "", "turns quantized latents into images")


@dataclass(frozen=True, kw_only=True)
class Run(TokenizerOptions):
    """Every option of a training run; `config.toml` in the run directory holds them all."""

    discriminator: Part = part(
        "discriminator", "none", "scores patches for adversarial training", optional=True
    )
    perceptual: Part = part(
        "perceptual", "none", "a trained network's view of the difference", optional=True
    )
    data: Part = part("dataset", "", "a data set's name, or a folder or what else one reads")
    resolution: int = option(64, "height and width of the images trained on, in pixels", minimum=8)

    steps: int = option(350, "optimizer steps to train; 0 writes the untrained model", minimum=0)
    batch_size: int = option(16, "images a process and forward pass", minimum=1)
    accumulate: int = option(1, "forward passes whose gradients make one step", minimum=1)
    lr: float = option(1e-3, "learning rate at its height", minimum=0)
    warmup: int = option(50, "steps over which the learning rate rises from 0", minimum=0)
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "course of the learning rate after the warm-up"
    )
    final_lr: float = option(
        0.01,
        "where the cosine ends, as a share of --lr",
        minimum=0,
        maximum=1,
        needs="schedule=cosine",
    )
    optimizer: str = option("muon", "muon, adam, adamw, or any optimizer that timm knows")
    betas: tuple[float, ...] = option(
        (0.9, 0.99),
        "the two decay rates of Adam's moments, which muon moves biases by",
        minimum=0,
        maximum=0.9999999,
    )
    weight_decay: float = option(0.0, "weight decay", minimum=0)
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
    reconstruction: Literal["l1", "l2"] = option(
        "l2", "reconstruction loss, on [-1, 1]", needs="reconstruction_weight"
    )
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
    discriminator_optimizer: str = option(
        "adam", "the discriminator's optimizer", needs="discriminator"
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
    )
    log_every: int = option(20, "steps between rows of metrics.jsonl", minimum=1)
    validate_every: int = option(
        250, "steps between validations and sample grids; the last step has one anyway", minimum=1
    )
    validation_images: int = option(256, "held-out images looked at in a validation", minimum=1)
    checkpoint_every: int = option(
        250, "steps between the checkpoints that --resume goes on from", minimum=1
    )
    keep: int = option(2, "checkpoints kept for --resume", minimum=1)
    max_skipped: int = option(
        10, "steps in a row without finite loss and gradient after which the run stops", minimum=1
    )
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "aim", "comet_ml"] = option(
        "none", "also log to this tracker"
    )

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ValueError(f"betas are two numbers, not {len(self.betas)}")


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
        settings = merge(Run, settings, with_locations(layer))
    return settings


def with_locations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `data = "some/folder"` spelled out.

    That is the data set that reads the folder, and its location.
    """
    result = dict(settings)
    data = result.get("data")
    table = (
        {"name": data} if isinstance(data, str) else dict(data) if isinstance(data, Mapping) else {}
    )
    if "name" in table:
        result["data"] = {**table, **data_table(table["name"])}
    return result


def data_table(name: str) -> dict[str, Any]:
    """The table that chooses a data set by its name, or by a location that one says it reads.

    A colon may stand behind a name, which no file then makes ambiguous.
    """
    if not isinstance(name, str):
        return {"name": name}
    if (own := name.removesuffix(":")) in registry().names("dataset"):
        return {"name": own}
    table = registry().dataset_for(name)
    if table is None:
        installed = ", ".join(registry().names("dataset")) or "none"
        raise OptionError(
            f"'{name}' is neither a folder nor an installed data set, "
            f"nor anything that one reads (installed: {installed})"
        )
    return table


def typed_data_table(name: str) -> dict[str, Any]:
    """`data_table` of a typed name; `OptionError` if both a data set and a file have that name."""
    if name in registry().names("dataset") and os.path.lexists(name):
        raise OptionError(
            f"'{name}' is the name of a data set and of a folder or file here: "
            f"give ./{name} for the folder or file, or {name}: for the data set"
        )
    return data_table(name)


def resolve_run(settings: Mapping[str, Any]) -> Run:
    """The run that settings describe, every option checked.

    `OptionError` or `MissingComponent` if it cannot be.
    """
    run: Run = resolve(Run, settings)
    return run
