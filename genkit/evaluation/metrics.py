"""Figures of a tokenizer on a set of images: the core's metrics, and the loop over the images.

Validation during training and `genkit evaluate` both use it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from genkit.data.reading import batches, none_readable
from genkit.devices import mixed
from genkit.distributed import all_sum, failing_together, sum_numbers
from genkit.evaluation.figures import BUILT_IN, result_of
from genkit.evaluation.usage import CodeCounts
from genkit.interfaces import Metric, Split
from genkit.models import RGB
from genkit.ops.precision import double, finest
from genkit.tokenizer import Tokenizer

# The version of this file's arithmetic, stored in records. Increase it with any change that moves
# a figure of the same reconstructions of the same images by more than 1e-6.
ARITHMETIC = 2

# Height and width of SSIM's windows, in pixels.
_WINDOW = 11


class MeanMetric(ABC):
    """A metric that is the mean of one value per image. A subclass defines `values`.

    Sums are in double precision and over all processes, so the order of images does not matter.
    """

    label: str
    better: str
    decimals = 4
    unit = ""

    def __init__(self, options: Any = None, channels: int = RGB) -> None:
        self.options = options
        # The number of images, and the sum of their values.
        self._sums = torch.zeros(2, dtype=torch.float64)

    @abstractmethod
    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """A value `[B]` for each image of a batch `[B, C, H, W]` in [-1, 1]."""

    def update(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Add a batch; returns its values, for figures by class."""
        values = double(self.values(images, reconstructions))
        self._sums = self._sums.to(values.device)
        self._sums += torch.stack([values.new_tensor(len(values)), values.sum()])
        return values

    def result(self) -> float | None:
        """The mean over the images of all processes; None if there are no images."""
        count, total = all_sum(self._sums.clone()).tolist()
        return total / count if count else None


class _PSNR(MeanMetric):
    label, better, decimals, unit = BUILT_IN["psnr"]

    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        real, reconstructed = _on_unit(images), _on_unit(reconstructions)
        return _decibels((real - reconstructed).square().mean((1, 2, 3)))


class _SSIM(MeanMetric):
    label, better, decimals, unit = BUILT_IN["ssim"]

    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return _ssim(_on_unit(images), _on_unit(reconstructions))

    def result(self) -> float | None:
        mean = super().result()
        return mean if mean is not None and math.isfinite(mean) else None


class _MAE(MeanMetric):
    label, better, decimals, unit = BUILT_IN["mae"]

    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (_on_unit(images) - _on_unit(reconstructions)).abs().mean((1, 2, 3))


class _MAEOverVariance:
    """The mean absolute error over the variance of all pixels and channels of all images."""

    label, better, decimals, unit = BUILT_IN["mae_over_variance"]

    def __init__(self) -> None:
        # Pixels, their absolute error, their sum and the sum of their squares.
        self._sums = torch.zeros(4, dtype=torch.float64)

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        real = _on_unit(images)
        error = (real - _on_unit(reconstructions)).abs().sum()
        sums = [real.new_tensor(real.numel()), error, real.sum(), real.square().sum()]
        self._sums = self._sums.to(real.device) + torch.stack(sums)

    def result(self) -> float | None:
        pixels, error, first, second = all_sum(self._sums.clone()).tolist()
        if not pixels:
            return None
        variance = second / pixels - (first / pixels) ** 2
        return error / pixels / variance if variance > 1e-9 else None


def _built_in() -> dict[str, Metric]:
    metrics: tuple[Metric, ...] = _PSNR(), _SSIM(), _MAE(), _MAEOverVariance()
    return dict(zip(BUILT_IN, metrics, strict=True))


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[B]` in dB of images `[B, C, H, W]` in [-1, 1].

    Reconstructions are clamped to that range.
    """
    error = (images.float() - reconstructions.detach().float().clamp(-1, 1)).square()
    return _decibels(error.mean((1, 2, 3)) / 4)


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer,
    dataset: Split,
    images: int | None = None,
    batch_size: int = 16,
    process: int = 0,
    codes: CodeCounts | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    exact: bool = False,
    mixed_precision: str = "no",
    by_class: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """The figures of every metric and the codebook usage per level on the first `images` images.

    The metrics are PSNR, SSIM, MAE, MAE over variance and `metrics`, by name. Pixels are on [0, 1],
    and reconstructions are clamped. PSNR and SSIM (Wang et al. 2004, 11 x 11 Gaussian windows
    within the image; None below 11 pixels) are means over images. MAE over variance divides by the
    variance of all pixels and channels. Bits per pixel assume uncompressed indices. With
    `by_class`, the values of single images are also averaged by class. An optional `codes` also
    counts the indices. `progress` is called with the images done and their total. The entry
    `metrics` says how to display the figures of additional metrics.

    Batches hold the same images for any number of processes. In a batch a latent can round to
    another code than alone, which changes the last digits. With `exact`, each image goes alone.
    """
    tokenizer.eval()
    device = next(tokenizer.parameters()).device
    codes = codes or CodeCounts(tokenizer.codebooks, device)
    every = {**_built_in(), **(metrics or {})}
    classes = _ClassMeans(dataset, list(every), device) if by_class else None
    wanted, seen = len(dataset) if images is None else images, 0
    with failing_together():
        for indices, batch in batches(dataset, wanted, batch_size, device, process, progress):
            with mixed(device, mixed_precision):
                whole = tokenizer.pad(batch)
                outs = [tokenizer(part) for part in (whole.split(1) if exact else [whole])]
            for out in outs:
                codes.add(out.indices)
            height, width = batch.shape[2:]
            made = torch.cat([out.images for out in outs])[:, :, :height, :width]
            reconstructions = made.float().clamp(-1, 1)
            values = {name: each.update(batch, reconstructions) for name, each in every.items()}
            if classes:
                classes.add(indices, values)
            seen += len(batch)
    (count,) = sum_numbers([seen], device)
    if not count:
        raise none_readable(dataset.problems, "images")
    figures: dict[str, Any] = {"images": int(count)}
    how: dict[str, Any] = {}
    for name, metric in every.items():
        entries, shown = result_of(name, metric)
        figures |= entries
        how |= {} if name in BUILT_IN else shown
    figures |= {"bits_per_pixel": tokenizer.bits_per_pixel, "levels": codes.summary()}
    if metrics:
        figures["metrics"] = how
    return {**figures, "classes": classes.rows()} if classes else figures


class _ClassMeans:
    """Means per class of the values that metrics give for single images."""

    def __init__(self, dataset: Split, metrics: list[str], device: torch.device) -> None:
        self.dataset, self.metrics = dataset, metrics
        self.names: list[str] = list(getattr(dataset, "classes", []))
        # The sums and the counts of values, per metric and class. The last class collects the
        # images without a label.
        shape = 2, 1 + len(metrics), len(self.names) + 1
        self.sums = torch.zeros(shape, dtype=finest(device), device=device)

    def add(self, indices: list[int], values: Mapping[str, Tensor | None]) -> None:
        """Add the values of the images with these indices."""
        labels = [self.dataset.label(index) for index in indices]
        rows = [len(self.names) if label is None else label for label in labels]
        place = torch.tensor(rows, device=self.sums.device)
        ones = self.sums.new_ones(len(rows))
        for number, each in enumerate([ones, *(values[name] for name in self.metrics)]):
            if each is not None:
                self.sums[0, number].index_add_(0, place, each.to(self.sums))
                self.sums[1, number].index_add_(0, place, ones)

    def rows(self) -> list[dict[str, Any]]:
        """One row per class with images: its name, number of images and the means of metrics."""
        sums, counts = all_sum(self.sums.clone()).tolist()
        rows = []
        for place, name in enumerate(self.names):
            if not counts[0][place]:
                continue
            row: dict[str, Any] = {"name": name, "images": int(counts[0][place])}
            for number, metric in enumerate(self.metrics, 1):
                if count := counts[number][place]:
                    mean = sums[number][place] / count
                    row[metric] = mean if math.isfinite(mean) else None
            rows.append(row)
        return rows


def _on_unit(images: Tensor) -> Tensor:
    """Images in [-1, 1], mapped to [0, 1] in double precision."""
    return (double(images) + 1) / 2


def _decibels(error: Tensor) -> Tensor:
    """The PSNR of mean squared errors of images on [0, 1]."""
    return -10 * error.clamp(min=1e-10).log10()


def _ssim(real: Tensor, reconstructed: Tensor) -> Tensor:
    """SSIM `[B]` of images on [0, 1], with Gaussian windows of sigma 1.5; NaN if no window fits.

    Wang et al. 2004, Eq. 13, per channel, with windows inside the image. The library that offers it
    takes as long to import as torch; a test compares the two.
    """
    if min(real.shape[2:]) < _WINDOW:
        return real.new_full((len(real),), torch.nan)
    down, across = (_means(size, real) for size in real.shape[2:])

    def mean(x: Tensor) -> Tensor:
        return down @ x @ across.t()

    mean_real, mean_reconstructed = mean(real), mean(reconstructed)
    variances = (
        mean(real * real)
        - mean_real**2
        + mean(reconstructed * reconstructed)
        - mean_reconstructed**2
    )
    covariance = mean(real * reconstructed) - mean_real * mean_reconstructed
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_real * mean_reconstructed + c1) / (
        mean_real**2 + mean_reconstructed**2 + c1
    )
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _means(size: int, like: Tensor) -> Tensor:
    """The matrix `[size - 10, size]` of the weights of every window along one axis.

    SSIM uses matrix products because convolutions on a GPU round to fewer digits.
    """
    places = torch.arange(size, device=like.device, dtype=like.dtype)
    centres = places[_WINDOW // 2 : size - _WINDOW // 2, None]
    distance = (places - centres).abs()
    weights = torch.exp(-distance.square() / (2 * 1.5**2)) * (distance <= _WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)
