"""The protocols of components, one per kind. Components need not inherit from them.

Shapes are `[B, C, H, W]`. Images are in [-1, 1]; components that see images are built with the
number of image channels. Sizes are (height, width). Lists over levels run from the finest to the
coarsest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from genkit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One level of latents: its number (0 is the finest), its channels and its stride.

    The stride is the number of pixels that a latent spans in height and in width.
    """

    index: int
    channels: int
    stride: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of latents for an image of `height` and `width` in pixels."""
        return height // self.stride, width // self.stride


class Quantized(NamedTuple):
    """A quantizer's result: latents `[B, C, h, w]`, int64 indices, and a scalar loss.

    The indices are `[B, h, w]`, or `[B, h, w, Q]` with Q codebooks.
    """

    latents: Tensor
    indices: Tensor
    loss: Tensor


class Encoder(Protocol):
    """Images to latents. Built as `Encoder(options, channels)`."""

    levels: list[Level]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The latents of every level of images `[B, channels, H, W]`.

        Latents of level i are `[B, levels[i].channels, *levels[i].grid(H, W)]`.
        """


class Attention(Protocol):
    """Attention over pixels, as a part of an encoder. Built as `Attention(options, channels)`."""

    def __call__(
        self,
        features: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        context_values: Tensor | None = None,
    ) -> Tensor:
        """The values `[B, D, h, w]` plus the result of attention.

        Attention weights come from the features `[B, channels, h, w]`. With a context
        `[B, channels, h2, w2]` and its values `[B, D, h2, w2]` it is cross-attention, else
        self-attention.
        """


class Fusion(Protocol):
    """Mixes the quantized coarser level into a finer one.

    Built as `Fusion(options, level, coarser_level)`.
    """

    def __call__(self, latents: Tensor, coarser: Tensor) -> Tensor:
        """Mix `latents` with the coarser level's quantized latents, keeping their shape."""


class Quantizer(Protocol):
    """Latents to codes and back.

    Built as `Quantizer(options, level)`, once per level. It runs in float32. A quantizer with
    several codebooks, each of `codebook_size` codes, has their number in an attribute `codebooks`;
    its indices are `[B, h, w, codebooks]`.
    """

    codebook_size: int

    def __call__(self, latents: Tensor) -> Quantized:
        """Quantize latents `[B, C, h, w]`.

        Gradients pass from the returned latents to the given ones.
        """

    def decode(self, indices: Tensor) -> Tensor:
        """The quantized latents `[B, C, h, w]` of indices, which have the shape `Quantized` has."""


class Decoder(Protocol):
    """Quantized latents to images. Built as `Decoder(options, levels, channels)`."""

    def __call__(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` from the quantized latents of every level."""


class Discriminator(Protocol):
    """Scores patches as real or reconstructed. Built as `Discriminator(options, channels)`.

    An optional attribute `note` is a sentence to print before training.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, h, w]`, high for real, of images `[B, channels, H, W]`."""


class Loss(Protocol):
    """A reconstruction loss. Built as `Loss(options, channels)`."""

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar loss, 0 for equal batches `[B, channels, H, W]` in [-1, 1]."""


class Perceptual(Protocol):
    """How different reconstructions look from images. Built as `Perceptual(options, channels)`.

    It is frozen and in eval mode during training, and never saved in a checkpoint. A loss for
    colour images takes them from `genkit.images.as_rgb` and says so in an optional attribute
    `note`, a sentence to print before training.
    """

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar loss of two batches `[B, channels, H, W]` in [-1, 1]; 0 if they are equal."""


class Metric(Protocol):
    """A figure of how reconstructions differ from their images.

    Built as `Metric(options, channels)` with the number of image channels. `label`, `better`
    (`"higher"` or `"lower"`), `decimals` and an optional `unit` say how to display its figure. An
    optional `details`, a dict of plain values such as a hash of weights, joins the options in the
    record: `genkit compare` refuses figures that differ in one.
    A metric with several figures may describe each in `parts`, by its name: label, better
    direction, decimals and unit, as `genkit.evaluation.figures.Shown`. An optional `note` is a
    sentence to print below the figures. The three are read after `result`.
    `genkit.evaluation.metrics.MeanMetric` is a base class for the mean of one value per image.
    """

    label: str
    better: str
    decimals: int

    def update(self, images: Tensor, reconstructions: Tensor) -> Tensor | None:
        """Add a batch `[B, C, H, W]` of images in [-1, 1] and their reconstructions.

        They are float32 and on the device of the evaluation. A metric with one value per image
        returns the values `[B]`, for figures by class. Processes may get different numbers of
        batches, even zero.
        """

    def result(self) -> float | Mapping[str, float | None] | None:
        """The figure over the batches of all processes: a number, several by name, or None.

        Every process calls it once, after its last batch. `genkit.distributed` has `all_sum` for
        sums and `gather_rows` for features of single images. Both accept CPU tensors too.
        """


class Features(Protocol):
    """Features of single images, to compare sets of images by. Built as `Features(options)`.

    It is an `nn.Module`, which is used in eval mode. `widths` has the number of values of each of
    its outputs: `features` for FD, KID, precision and recall, and optionally `spatial` for sFID and
    `logits` for the Inception score. `label` names the network. `frechet` is the name of the
    Fréchet distance of its features: `FD`, or Inception's `FID`. `details` are plain values, such
    as a hash of the weights and the resize: figures that differ in one cannot be compared.
    """

    widths: Mapping[str, int]
    label: str
    frechet: str
    details: Mapping[str, str | int | float]

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """The outputs `[B, widths[name]]`, in float32, of images uint8 `[B, 3, H, W]` of any size.

        Images with other channels come as `genkit.images.as_rgb` gives them. The network resizes
        and normalises the images itself.
        """

    def to(self, device: torch.device) -> Features:
        """The network, moved to the device, as of every `nn.Module`."""

    def eval(self) -> Features:
        """The network in eval mode, as of every `nn.Module`."""


@dataclass(frozen=True)
class Conditioning:
    """Facts about the images that a prior can be given: nothing, a class, or vectors.

    With `classes` it is the number of one of so many classes, with `channels` up to `length`
    vectors of so many channels.
    """

    classes: int = 0
    length: int = 0
    channels: int = 0

    def __bool__(self) -> bool:
        return bool(self.classes or self.channels)


Schedule = Literal["constant", "linear", "cosine"]
# The smallest and the largest value of each rule.
_RANGES = (
    ("temperature", 0, math.inf),
    ("top_k", 0, math.inf),
    ("top_p", 0, 1),
    ("guidance", 0, math.inf),
    ("guidance_power", 0, math.inf),
    ("steps", 1, math.inf),
    ("noise", 0, math.inf),
)


@dataclass(frozen=True)
class Rules:
    """The rules of sampling; `OptionError` for impossible values.

    The defaults draw from the prior's own distribution.

    `guidance` g gives u + g (c - u) of the logits with and without the condition: 1 is off. With
    the schedules linear and cosine it rises from 1 to g as the image is drawn; `guidance_power`
    bends the cosine. `top_k` 0 and `top_p` 1 are off. `steps` is the number of passes of a masked
    prior, and `noise` that on its confidence; None is the prior's own value.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    guidance_schedule: Schedule = "constant"
    guidance_power: float = 1.0
    steps: int | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            whole = name in ("top_k", "steps")
            kinds = int if whole else (int, float)
            if value is not None and not (isinstance(value, kinds) and least <= value <= most):
                limit = f"from {least} to {most}" if most < math.inf else f"{least} or more"
                kind = "a whole number, " if whole else ""
                raise OptionError(f"{name} must be {kind}{limit}, not {value!r}")
        if self.guidance_schedule not in get_args(Schedule):
            raise OptionError(
                f"guidance_schedule can be {', '.join(get_args(Schedule))}, not "
                f"{self.guidance_schedule!r}"
            )

    def guidance_at(self, done: float) -> float:
        """The guidance when the share `done` of an image is drawn."""
        if self.guidance_schedule == "constant":
            return self.guidance
        if self.guidance_schedule == "cosine":
            done = (1 - math.cos(math.pi * done**self.guidance_power)) / 2
        return 1 + (self.guidance - 1) * done


class SequencePrior(Protocol):
    """A distribution over sequences of indices. Built as `Prior(options, layout, conditioning)`.

    It is an `nn.Module`. Sequences are int64 `[B, N]`, and `layout` says what each position is. A
    condition is None, or fits the `conditioning`: classes int64 `[B]`, where -1 stands for an image
    without one, or vectors `[B, T, C]`, where vectors of zeros are padding. `rules` names the
    fields of `Rules` that sampling follows. `exact` says whether `nats` are exact or a bound. An
    optional method `progress(done)` is called before each step with the share of training done.
    """

    rules: Sequence[str]
    exact: bool

    def loss(
        self, sequence: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The loss to minimise, a scalar: nats per index.

        Random draws, such as masks and dropped conditions, come from `generator`, on the CPU.
        """

    def nats(self, sequence: Tensor, condition: Tensor | None) -> Tensor:
        """The negative log-likelihood `[B, N]` of each index in nats, without random draws.

        A prior that is not `exact` returns an upper bound of the sum over a sequence.
        """

    def sample(
        self,
        condition: Tensor | None,
        kept: Tensor | None,
        generators: Sequence[torch.Generator],
        rules: Rules,
    ) -> Tensor:
        """Draw a sequence `[B, N]` for each of the generators, which are on the CPU.

        `kept` `[B, N]` holds the indices to keep, and -1 where to draw one. Each sequence depends
        on its own generator, condition and kept indices alone.
        """


class Imported(NamedTuple):
    """Another project's tokenizer in genkit's terms.

    `settings` describe the tokenizer's components, and `tensors` their weights under genkit's
    names, in float32. `facts` holds `licence`, `resolution` (the size of the images that it was
    trained on) and `taken`, what was decided, for the reader. `others` are other readings of the
    same file, where no file can tell: changes of `settings` by the flag that asks for them.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]]


class Importer(Protocol):
    """Turns a family of other projects' files into tokenizers."""

    def recognises(self, names: Sequence[str], facts: Mapping[str, Any]) -> bool:
        """Whether a file with tensors of these names is of this family.

        `facts` is plain data that the file, or a configuration beside it, holds.
        """
        ...

    def convert(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Imported:
        """The tokenizer; `tensors` reads each tensor when it is asked for."""
        ...


@dataclass(frozen=True)
class Values:
    """The type of the pixels in a data set's originals, and the values of black and white.

    `range` is in the originals' own units. It is scaled to [-1, 1] for the networks.
    """

    type: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    range: tuple[float, float] = (0.0, 255.0)

    @classmethod
    def of(cls, table: Any) -> Values:
        """The values that a model's metadata describe; `ValueError` for others than such values."""
        if table is None:
            return cls()
        try:
            kind, (low, high) = table["type"], table["range"]
            known = kind in ("uint8", "uint16", "int16", "float32")
            sound = known and low != high and math.isfinite(low) and math.isfinite(high)
        except (TypeError, ValueError, KeyError):
            sound = False
        if not sound:
            raise ValueError(f"these are no values of pixels: {table!r}")
        return cls(kind, (float(low), float(high)))


class View(NamedTuple):
    """The part of an original that an image shows: sizes and places in pixels of the original.

    `size` is the original's height and width; `crop` the top, left, height and width of the part.
    """

    size: tuple[int, int]
    crop: tuple[int, int, int, int]
    mirrored: bool


class Split(Protocol):
    """One split of a data set: images by number, with names and optional labels and captions.

    `fingerprint`, `channels` and `classes` are the data set's own. `problems` collects the images
    that could not be read, with reasons. An optional method `view(index, seed=None)` returns the
    `View` of an image, or None. `genkit.Subset` is a split of a data set that numbers its images.
    """

    fingerprint: str
    channels: int
    classes: list[str]
    problems: dict[str, str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's name, such as its file's path relative to the folder."""

    def images(
        self, indices: Sequence[int], seeds: Sequence[int] | None = None
    ) -> np.ndarray[Any, np.dtype[np.uint8 | np.uint16]]:
        """Pixels `[B, H, W, channels]`, of the size that the data set was built with.

        They are uint8, or uint16 with `values` other than the default: 0 is black and the largest
        value white.

        Each seed varies its image (crop, flip); without seeds, nothing is random. Raises
        `genkit.errors.UnreadableImage` for an image that cannot be read.
        """

    def label(self, index: int) -> int | None:
        """The number of the image's class in `classes`, or None."""

    def caption(self, index: int) -> str | None:
        """A text that describes the image, or None."""


class Dataset(Protocol):
    """Images in splits. Built once as `Dataset(options, size, seed)`, with size (height, width).

    `fingerprint` is a text that differs between sets of images. `channels` is the number of image
    channels. `classes` are the names of the labels, an empty list without labels. Three attributes
    are optional: `values`, the `Values` of the originals, 8 bits by default; `notes`, a list of
    sentences to print before training; and `generated = True` for computed images, which a run does
    not check for readability.

    A class with `any_size = True` can be built with the size None. It and its splits then have
    `native = True` and return each image in its own size: `images` is called with one number.
    """

    fingerprint: str
    channels: int
    classes: list[str]

    def split(self, name: str) -> Split:
        """The split `"train"`, `"heldout"` (no image of the training split) or `"all"`."""
