"""What the core asks of a component of each kind, as protocols: nothing needs to be inherited.

Shapes are `[B, C, H, W]`. Images lie in [-1, 1]; components that see them are built with the number
of their channels. Sizes are (height, width). Lists over levels run from the finest to the
coarsest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
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
        """The rows and columns of latents of an image of a height and width in pixels."""
        return height // self.stride, width // self.stride


class Quantized(NamedTuple):
    """What a quantizer returns.

    These are latents `[B, C, h, w]`, int64 indices, and a scalar loss. The indices are `[B, h, w]`,
    or of Q codebooks `[B, h, w, Q]`.
    """

    latents: Tensor
    indices: Tensor
    loss: Tensor


class Encoder(Protocol):
    """Images to latents. Built as `Encoder(options, channels)`."""

    levels: list[Level]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The latents of every level of images `[B, channels, H, W]`.

        Those of level i are `[B, levels[i].channels, *levels[i].grid(H, W)]`.
        """


class Attention(Protocol):
    """Attention over pixels that an encoder can take as a part.

    Built as `Attention(options, channels)`.
    """

    def __call__(
        self,
        features: Tensor,
        values: Tensor,
        context: Tensor | None = None,
        context_values: Tensor | None = None,
    ) -> Tensor:
        """Values `[B, D, h, w]` with what is attended to added.

        The features `[B, channels, h, w]` say how much each pixel attends to each. With a context
        `[B, channels, h2, w2]` and its values `[B, D, h2, w2]` it is cross-attention, else
        self-attention.
        """


class Fusion(Protocol):
    """Mixes the quantized coarser level into a finer one.

    Built as `Fusion(options, level, coarser_level)`.
    """

    def __call__(self, latents: Tensor, coarser: Tensor) -> Tensor:
        """Latents shaped like `latents` from those and the coarser level's quantized latents."""


class Quantizer(Protocol):
    """Latents to codes and back.

    Built as `Quantizer(options, level)`, once a level. It runs in float32. One that looks every
    latent up in several codebooks, all of `codebook_size`, says how many in a further attribute
    `codebooks`; its indices are `[B, h, w, codebooks]`.
    """

    codebook_size: int

    def __call__(self, latents: Tensor) -> Quantized:
        """Quantize latents `[B, C, h, w]`.

        The returned latents carry the gradient to the given ones.
        """

    def decode(self, indices: Tensor) -> Tensor:
        """The quantized latents `[B, C, h, w]` of indices as they were returned."""


class Decoder(Protocol):
    """Quantized latents to images. Built as `Decoder(options, levels, channels)`."""

    def __call__(self, latents: list[Tensor]) -> Tensor:
        """Images `[B, channels, H, W]` from the quantized latents of every level."""


class Discriminator(Protocol):
    """Scores patches as real or reconstructed. Built as `Discriminator(options, channels)`."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[B, 1, h, w]`, high for real, of images `[B, channels, H, W]`."""


class Loss(Protocol):
    """A reconstruction loss. Built as `Loss(options, channels)`."""

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar loss, 0 for equal batches `[B, channels, H, W]` in [-1, 1]."""


class Perceptual(Protocol):
    """How different reconstructions look from images. Built as `Perceptual(options, channels)`.

    It is frozen and in eval mode while a tokenizer trains, and no part of any checkpoint. One that
    looks at colours repeats a grey channel, and raises `ValueError` for a number of channels that
    it cannot take.
    """

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar loss, 0 for equal ones, of two batches `[B, channels, H, W]` in [-1, 1]."""


class Metric(Protocol):
    """A figure of how reconstructions differ from their images.

    Built as `Metric(options, channels)` with the number of channels of the images. `label`,
    `better` (`"higher"` or `"lower"`) and `decimals` say how its figure is shown; a `unit` may
    stand behind it. `genkit.evaluation.metrics.MeanMetric` is a base class for the mean of one
    value an image.
    """

    label: str
    better: str
    decimals: int

    def update(self, images: Tensor, reconstructions: Tensor) -> Tensor | None:
        """Take in a batch `[B, C, H, W]` of images in [-1, 1] and of their reconstructions.

        They are float32 and on the device of the evaluation. A metric that gives every image a
        value of its own returns the values `[B]`, which figures by class are made of. A process
        may get no batch, and another number of them than others.
        """

    def result(self) -> float | Mapping[str, float | None] | None:
        """The figure of the batches of all processes, several by name, or None.

        Every process calls it once, after its last batch. `genkit.distributed` has `all_sum` for
        sums and `gather_rows` for features of single images, and both take tensors on the CPU too.
        """


class Split(Protocol):
    """One split of a data set: images by number, with names and perhaps labels and captions.

    `fingerprint`, `channels` and `classes` are the data set's own. `problems` gathers the images
    that could not be read, and why. `genkit.Subset` is a split of a data set that numbers its
    images.
    """

    fingerprint: str
    channels: int
    classes: list[str]
    problems: dict[str, str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's name, such as its file's path below the folder."""

    def images(
        self, indices: Sequence[int], seeds: Sequence[int] | None = None
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Images uint8 `[B, H, W, channels]`, of the size that the data set was built with.

        Each seed varies its image (crop, flip); without seeds they are the plain ones. An image
        that cannot be read raises `genkit.errors.UnreadableImage`.
        """

    def label(self, index: int) -> int | None:
        """The number of the image's class among `classes`; None without one."""

    def caption(self, index: int) -> str | None:
        """A text that describes the image; None without one."""


class Dataset(Protocol):
    """Images in splits. Built once as `Dataset(options, size, seed)`, with size (height, width).

    `fingerprint` is a text that differs between sets of images. `channels` are those of an image.
    `classes` are the names of the labels, an empty list without labels. A data set may have a list
    `notes` of sentences to print before training. A data set whose images are computed may set
    `generated = True`: a run then does not test whether they can be read.
    """

    fingerprint: str
    channels: int
    classes: list[str]

    def split(self, name: str) -> Split:
        """The split `"train"`, `"heldout"` (no image of the training split) or `"all"`."""
