"""The options of a training run: of every task, and of training a tokenizer."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from genkit.checkpoint.metadata import model_file, read_model, tokenizer_options
from genkit.errors import OptionError
from genkit.files import CONFIG
from genkit.models import TokenizerOptions
from genkit.plugin.installing import to_install
from genkit.plugin.options import Part, option, part
from genkit.plugin.registry import registry
from genkit.run.other_names import TOKENIZER, TRAINING
from genkit.run.toml import read_config
from genkit.settings import merge, resolve, settings_of, with_locations
from genkit.size import Size

Tracker = Literal["none", "tensorboard", "wandb", "trackio", "swanlab", "mlflow", "aim", "comet_ml"]
TrainedPart = Literal["all", "encoder", "quantizer", "fusion", "decoder", "discriminator"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options that every training task has.

    `command` is the command that trains it, `then` the one to use it with, and `base` the preset
    that its defaults come from. Of a `sharded` kind a launcher may split the model among processes.
    """

    command: ClassVar[str] = "train"
    then: ClassVar[str] = "genkit evaluate {}"
    base: ClassVar[str] = "default"
    sharded: ClassVar[bool] = False
    other_names: ClassVar[Mapping[str, str]] = TRAINING

    steps: int = option(
        350, "optimizer steps to train; 0 writes the untrained model", minimum=0, resumable=True
    )
    batch_size: int = option(16, "images per process per forward pass", minimum=1)
    accumulate: int = option(
        1, "forward passes per optimizer step (gradient accumulation)", minimum=1
    )
    lr: float = option(1e-3, "peak learning rate", minimum=0)
    warmup: int = option(50, "warm-up steps: the learning rate rises from 0", minimum=0)
    schedule: Part = part("schedule", "", "learning-rate schedule after the warm-up")
    optimizer: Part = part("optimizer", "", "optimizer, or the name of any timm optimizer")
    clip: float = option(1.0, "maximum gradient norm; 0 disables clipping", minimum=0)
    ema: float = option(
        0.99,
        "decay of the moving average (EMA) of the weights, which is saved; 0 disables it",
        minimum=0,
        maximum=0.999999,
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        "no", "precision of the networks; quantizers and losses stay in float32"
    )
    recompute: bool = option(
        False,
        "activation checkpointing: blocks of the networks are computed again in the backward pass, "
        "which saves memory",
        resumable=True,
    )
    compile: bool = option(False, "torch.compile for all networks but quantizers", resumable=True)
    tf32: bool = option(
        False,
        "TF32 for matrix products in float32 on NVIDIA GPUs; never in the nearest-code search",
    )
    deterministic: bool = option(
        False,
        "deterministic algorithms on a GPU: two runs end with the same bits, but take longer",
        resumable=True,
    )
    device: str = option(
        "",
        "device to train on, such as cpu or cuda:0; empty chooses the accelerator",
        local=True,
        resumable=True,
    )
    seed: int = option(0, "random seed", minimum=0, maximum=2**31)
    workers: int = option(
        -1,
        "worker processes that prepare images; 0 uses the training process, -1 chooses by the "
        "machine",
        minimum=-1,
        resumable=True,
    )
    log_every: int = option(20, "steps between rows of metrics.jsonl", minimum=1, resumable=True)
    validate_every: int = option(
        250,
        "steps between validations and sample grids; the last step always has one",
        minimum=1,
        resumable=True,
    )
    validation_images: int = option(
        256, "held-out images per validation", minimum=1, resumable=True
    )
    report: bool = option(True, "report.html at the end, a page to look at", resumable=True)
    checkpoint_every: int = option(
        250, "steps between checkpoints for --resume", minimum=1, resumable=True
    )
    keep: int = option(2, "number of checkpoints to keep for --resume", minimum=1, resumable=True)
    max_skipped: int = option(
        10,
        "consecutive steps with a NaN or infinite loss or gradient after which training stops",
        minimum=1,
        resumable=True,
    )
    tracker: tuple[Tracker, ...] = option(
        ("none",), "experiment trackers to log to as well", resumable=True
    )
    project: str = option(
        "",
        "project of the trackers; empty is that of the tracker's environment variable, or genkit",
        needs="tracker",
        resumable=True,
    )
    run_name: str = option(
        "",
        "the run's name in trackers; empty is that of the tracker's environment variable, or of "
        "the run directory",
        needs="tracker",
        resumable=True,
    )

    @property
    def name(self) -> str:
        """The default name of the run directory in `runs/`."""
        return "run"

    @property
    def trackers(self) -> list[str]:
        """The trackers to log to, each once."""
        return [name for name in dict.fromkeys(self.tracker) if name != "none"]

    @classmethod
    def layered(cls, presets: str | None, *upper: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of such a run from layers, as the function `layered` makes them."""
        return layered(presets, *upper, kind=cls)

    def check_here(self) -> None:
        """`OptionError` if this machine lacks a package or a file that the options name."""
        if self.trackers and "none" in self.tracker:
            raise OptionError("--tracker none excludes other trackers: leave one of them out")
        missing = [name for name in self.trackers if importlib.util.find_spec(name) is None]
        if missing:
            raise OptionError(
                "\n".join(
                    f"--tracker {name} needs the package {name}, which is not installed: "
                    + to_install("genkit-vq[tensorboard]" if name == "tensorboard" else name)
                    for name in missing
                )
            )

    def continued(self) -> Self:
        """The run as it resumes from its own state."""
        return self


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(TrainingOptions, TokenizerOptions):
    """Every option of training a tokenizer; `config.toml` in the run directory holds them all."""

    other_names: ClassVar[Mapping[str, str]] = TOKENIZER

    from_: str = option(
        "", "checkpoint to start from: run directory, file or hf:// address", local=True
    )
    trainable: tuple[TrainedPart, ...] = option(
        ("all",),
        "parts to train; the others stay as they are in --from, codes included",
        needs="from_",
    )
    discriminator: Part = part(
        "discriminator", "none", "patch discriminator for adversarial training", optional=True
    )
    perceptual: Part = part(
        "perceptual", "none", "perceptual loss, computed by a pretrained network", optional=True
    )
    data: Part = part(
        "dataset",
        "",
        "data set name, folder, or other location that a data set plugin recognises",
    )
    resolution: Size = option(
        Size(64, 64),
        "size of training images in pixels: one number, or height and width as in 128x256",
        minimum=8,
    )
    reconstruction: Part = part(
        "loss", "", "reconstruction loss on pixels in [-1, 1]", needs="reconstruction_weight"
    )
    reconstruction_weight: float = option(4.0, "weight of the reconstruction loss", minimum=0)
    perceptual_weight: float = option(
        0.1, "weight of the perceptual loss", minimum=0, needs="perceptual"
    )
    adversarial_loss: Literal["hinge", "non-saturating", "bce"] = option(
        "hinge", "adversarial loss", needs="discriminator"
    )
    adversarial_weight: float = option(
        0.1, "weight of the adversarial loss for the tokenizer", minimum=0, needs="discriminator"
    )
    adversarial_adaptive: bool = option(
        False,
        "adaptive adversarial weight, scaled by the ratio of the two losses' gradients at the "
        "image",
        needs=("discriminator", "adversarial_weight"),
    )
    # A discriminator whose gradient is nearly 0, as a fresh one's or a winner's, asks for a factor
    # in the thousands, which turns its noise into most of the tokenizer's gradient.
    adversarial_limit: float = option(
        10.0,
        "largest factor of the adaptive adversarial weight",
        minimum=0,
        needs=("discriminator", "adversarial_weight", "adversarial_adaptive"),
    )
    discriminator_start: int = option(
        0, "first step with the discriminator", minimum=0, needs="discriminator"
    )
    discriminator_head_start: int = option(
        100,
        "steps of the discriminator's training before the adversarial loss counts",
        minimum=0,
        needs=("discriminator", "adversarial_weight"),
    )
    discriminator_ramp: int = option(
        500,
        "steps over which the adversarial weight then rises",
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
        0.0, "weight of LeCAM regularization of the discriminator", minimum=0, needs="discriminator"
    )
    lecam_decay: float = option(
        0.99,
        "decay of the moving averages of the logits that LeCAM compares with",
        minimum=0,
        maximum=0.999999,
        needs=("discriminator", "lecam_weight"),
    )
    r1_weight: float = option(
        0.0,
        "weight of R1, the discriminator's squared gradient on real images",
        minimum=0,
        needs="discriminator",
    )
    r1_every: int = option(
        16,
        "apply R1 every N steps, with N times its weight",
        minimum=1,
        needs=("discriminator", "r1_weight"),
    )

    @property
    def name(self) -> str:
        """The default name of the run directory in `runs/`: the data set's name."""
        return self.data.name

    @classmethod
    def layered(cls, presets: str | None, *upper: Mapping[str, Any]) -> dict[str, Any]:
        """Settings from layers, with the components of the model to start from below the given."""
        settings = super().layered(presets, *upper)
        path = settings.get("from_")
        # The config of a run has every option; the model that it started from may be gone.
        if not path or any(layer.keys() >= _OWN for layer in upper):
            return settings
        found = of_model(path)
        if "data" not in found and not any("data" in layer for layer in upper):
            raise OptionError(f"'{path}' does not record its training data: give --data")
        return super().layered(presets, found, *upper)

    def continued(self) -> Self:
        """The run as it resumes from its own state, without a model to start from."""
        return dataclasses.replace(self, from_="")

    def __post_init__(self) -> None:
        if "discriminator" in self.trainable and not self.discriminator:
            raise ValueError("--trainable discriminator needs --discriminator")
        if self.mixed_precision == "fp16" and self.r1_weight:
            raise ValueError("--r1-weight needs --mixed-precision bf16 or no: fp16 loses gradients")

    @property
    def tokenizer(self) -> TokenizerOptions:
        """The components of the tokenizer alone."""
        names = [field.name for field in dataclasses.fields(TokenizerOptions)]
        return TokenizerOptions(**{name: getattr(self, name) for name in names})

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training images."""
        return self.resolution.pair


# The options that a model to start from gives.
_OWN = {*(field.name for field in dataclasses.fields(TokenizerOptions)), "data", "resolution"}


def of_model(path: str) -> dict[str, Any]:
    """The components of a checkpoint, and what it was trained on, as settings."""
    file = model_file(path)
    info, _ = read_model(file)
    return {**settings_of(tokenizer_options(info, file), local=False), **trained_on(path, info)}


def location_of(path: str | os.PathLike[str]) -> str:
    """A checkpoint's path as it holds from any working directory; an address stays."""
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(Path(text).expanduser())


def trained_on(path: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """The data and the resolution that a tokenizer was trained with, as settings."""
    training = info["training"] or {}
    config = Path(path, CONFIG)
    # A model file holds no local paths of its training images. The run's config does.
    data = read_config(config).get("data") if config.is_file() else training.get("data")
    found = {"data": data, "resolution": training.get("resolution")}
    return {key: value for key, value in found.items() if value}


def layered(
    presets: str | None, *upper: Mapping[str, Any], kind: type[TrainingOptions] = TokenizerRun
) -> dict[str, Any]:
    """Settings of a run of a kind from layers, each overriding the one before.

    The layers are the kind's own preset, the presets named (separated by commas), and `upper`.
    """
    named = presets.split(",") if presets else []
    # Without its plugin a run still works if every component is named.
    base = [kind.base] if kind.base in registry().presets(kind.command) else []
    names = [*base, *(name.strip() for name in named)]
    settings: dict[str, Any] = {}
    for layer in [*(registry().preset(name, kind.command).settings for name in names), *upper]:
        settings = merge(kind, settings, with_locations(layer))
    return settings


def resolve_run(settings: Mapping[str, Any]) -> TokenizerRun:
    """The tokenizer's run that settings describe, with every option checked.

    Raises `OptionError` or `MissingComponent` for invalid settings.
    """
    return resolve(TokenizerRun, settings)
