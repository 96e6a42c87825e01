"""Figures of a tokenizer on a set of images.

Validation during training and `genkit evaluate` both come here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genkit.data.reading import batches, none_readable
from genkit.distributed import sum_numbers
from genkit.evaluation.usage import CodeCounts
from genkit.interfaces import Split
from genkit.tokenizer import Tokenizer

# The version of this file's arithmetic, which records of figures hold. To be raised by whatever
# changes a figure of an unchanged model on unchanged images by more than 1e-6.
ARITHMETIC = 2

# Height and width of SSIM's windows, in pixels.
_WINDOW = 11


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[B]` in dB of images `[B, 3, H, W]` in [-1, 1].

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
) -> dict[str, Any]:
    """PSNR, SSIM, MAE, MAE over variance and each level's use of codes on the first `images`.

    Pixels are taken on [0, 1] and reconstructions clamped. PSNR and SSIM (Wang et al. 2004,
    11 x 11 Gaussian windows within the image; None below 11 pixels) are means over images. MAE over
    variance divides by the variance of all pixels and channels. Bits per pixel are those of indices
    stored plainly. Processes share the images. Indices are also counted in `codes`, if it is given.

    No figure depends on `batch_size` or on how processes share the images. In a batch a latent can
    round to another code than alone, so each image goes through the tokenizer by itself.
    """
    tokenizer.eval()
    device = next(tokenizer.parameters()).device
    codes = codes or CodeCounts(tokenizer.codebooks, device)
    # Images, PSNR, SSIM, absolute error, pixels, their sum and the sum of their squares.
    sums = [0.0] * 7
    wanted = len(dataset) if images is None else images
    for _, batch in batches(dataset, wanted, batch_size, device, process):
        outs = [tokenizer(image) for image in batch.split(1)]
        for out in outs:
            codes.add(out.indices)
        # The pixels in double precision: sums of many figures then do not depend on their order.
        images_made = torch.cat([out.images for out in outs]).double().clamp(-1, 1)
        real, made = (batch.double() + 1) / 2, (images_made + 1) / 2
        values: list[Any] = [
            len(batch),
            _decibels((real - made).square().mean((1, 2, 3))).sum(),
            _ssim(real, made).sum(),
            (real - made).abs().sum(),
            batch.numel(),
            real.sum(),
            real.square().sum(),
        ]
        sums = [a + float(b) for a, b in zip(sums, values, strict=True)]
    count, *totals, pixels, first, second = sum_numbers(sums, device)
    if not count:
        raise none_readable(dataset, "images")
    mean_psnr, mean_ssim, mae = totals[0] / count, totals[1] / count, totals[2] / pixels
    variance = second / pixels - (first / pixels) ** 2
    return {
        "images": int(count),
        "psnr": mean_psnr,
        "ssim": mean_ssim if math.isfinite(mean_ssim) else None,
        "mae": mae,
        "mae_over_variance": mae / variance if variance > 1e-9 else None,
        "bits_per_pixel": tokenizer.bits_per_pixel,
        "levels": codes.summary(),
    }


def _decibels(error: Tensor) -> Tensor:
    """The PSNR of mean squared errors of images on [0, 1]."""
    return -10 * error.clamp(min=1e-10).log10()


def _ssim(real: Tensor, made: Tensor) -> Tensor:
    """SSIM `[B]` of images on [0, 1], Gaussian windows of sigma 1.5 within them; nan if none fits.

    Wang et al. 2004, Eq. 13, with a window per channel. The library that has it takes as long to
    import as torch; a test compares the two.
    """
    if min(real.shape[2:]) < _WINDOW:
        return real.new_full((len(real),), torch.nan)
    down, across = (_means(size, real) for size in real.shape[2:])

    def mean(x: Tensor) -> Tensor:
        return down @ x @ across.t()

    mean_real, mean_made = mean(real), mean(made)
    variances = mean(real * real) - mean_real**2 + mean(made * made) - mean_made**2
    covariance = mean(real * made) - mean_real * mean_made
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_real * mean_made + c1) / (mean_real**2 + mean_made**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _means(size: int, like: Tensor) -> Tensor:
    """The matrix `[size - 10, size]` that takes the weighted mean of every window along a side.

    As a matrix product, since convolutions on a GPU would round to fewer digits.
    """
    places = torch.arange(size, device=like.device, dtype=like.dtype)
    centres = places[_WINDOW // 2 : size - _WINDOW // 2, None]
    distance = (places - centres).abs()
    weights = torch.exp(-distance.square() / (2 * 1.5**2)) * (distance <= _WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)
