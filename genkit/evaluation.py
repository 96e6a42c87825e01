"""Figures of a tokenizer on a set of images.

Validation during training and `genkit evaluate` both come here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from genkit.codes import CodeCounts
from genkit.data import batches
from genkit.distributed import sum_numbers
from genkit.errors import DataError
from genkit.interfaces import Dataset
from genkit.tokenizer import Tokenizer

# Half of SSIM's window of 11 pixels.
_MARGIN = 5


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[B]` in dB of images `[B, 3, H, W]` in [-1, 1].

    Reconstructions are clamped to that range.
    """
    error = (images.float() - reconstructions.detach().float().clamp(-1, 1)).square().mean(
        (1, 2, 3)
    ) / 4
    return -10 * error.clamp(min=1e-10).log10()


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer,
    dataset: Dataset,
    images: int | None = None,
    batch_size: int = 16,
    process: int = 0,
) -> dict[str, Any]:
    """PSNR, SSIM, MAE, MAE over variance and each level's use of codes on the first `images`.

    Pixels are taken on [0, 1] and reconstructions clamped. PSNR and SSIM (Wang et al. 2004,
    11 x 11 Gaussian windows within the image; None below 11 pixels) are means over images. MAE over
    variance divides by the variance of all pixels and channels. Processes share the images.
    """
    tokenizer.eval()
    device = next(tokenizer.parameters()).device
    codes = CodeCounts(tokenizer.codebook_sizes, device)
    # Images, PSNR, SSIM, absolute error, pixels, their sum and the sum of their squares.
    sums = [0.0] * 7
    wanted = len(dataset) if images is None else images
    for _, batch in batches(dataset, wanted, batch_size, device, process):
        out = tokenizer(batch)
        codes.add(out.indices)
        real, made = (batch + 1) / 2, (out.images.float().clamp(-1, 1) + 1) / 2
        values = [
            psnr(batch, out.images).sum(),
            _ssim(real, made).sum(),
            (real - made).abs().sum(),
        ]
        moments = [batch.numel(), real.sum(), real.square().sum()]
        sums = [a + float(b) for a, b in zip(sums, [len(batch), *values, *moments], strict=True)]
    count, *totals, pixels, first, second = sum_numbers(sums, device)
    if not count:
        first_problem = next(iter(dataset.problems.items()), "there are none")
        raise DataError(f"none of the images can be read: {first_problem}")
    mean_psnr, mean_ssim, mae = totals[0] / count, totals[1] / count, totals[2] / pixels
    variance = second / pixels - (first / pixels) ** 2
    return {
        "images": int(count),
        "psnr": mean_psnr,
        "ssim": mean_ssim if math.isfinite(mean_ssim) else None,
        "mae": mae,
        "mae_over_variance": mae / variance if variance > 1e-9 else None,
        "levels": codes.summary(),
    }


def _ssim(real: Tensor, made: Tensor) -> Tensor:
    """SSIM `[B]` over the windows that lie within the images; `nan` where none does."""
    _, each = structural_similarity_index_measure(
        made, real, data_range=1.0, reduction="none", return_full_image=True
    )
    # The library pads the images and gives a value a pixel: those of padded windows are left out.
    within: Tensor = each[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return within.mean((1, 2, 3))
