"""Figures against a library's, and what they do where they have no value."""

from __future__ import annotations

import pytest
import torch

from genkit.evaluation import _ssim, psnr


@pytest.mark.parametrize("size", [(11, 11), (16, 40), (64, 64)])
def test_ssim_is_the_librarys_over_windows_within_the_image(size: tuple[int, int]) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    torch.manual_seed(0)
    real = torch.rand(3, 3, *size)
    made = (real + 0.2 * torch.randn_like(real)).clamp(0, 1)
    _, each = structural_similarity_index_measure(
        made, real, data_range=1.0, reduction="none", return_full_image=True
    )
    # It pads the images by half a window and gives a value a pixel.
    expected = each[..., 5:-5, 5:-5].mean((1, 2, 3))
    assert torch.allclose(_ssim(real, made), expected, atol=1e-4)
    assert torch.allclose(_ssim(real, real), torch.ones(3))


def test_ssim_needs_a_window() -> None:
    assert _ssim(torch.rand(2, 3, 10, 20), torch.rand(2, 3, 10, 20)).isnan().all()


def test_psnr_is_the_librarys() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    torch.manual_seed(0)
    real, made = torch.rand(2, 4, 3, 8, 8) * 2 - 1
    expected = torch.stack(
        [
            peak_signal_noise_ratio(made[i : i + 1], real[i : i + 1], data_range=(-1.0, 1.0))
            for i in range(4)
        ]
    )
    assert torch.allclose(psnr(real, made), expected, atol=1e-4)
