"""Pictures with a caption and labels: nothing covers the images, and each row has its label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genkit.captions import captioned, sample_grid


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (2, 1), (3, 3), (4, 4), (5, 3)])
def test_the_picture_stays_whole_beside_its_text(channels: int, kept: int) -> None:
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (60, 200, channels)).astype(np.uint8)
    result = captioned(picture, "step 4", ["original", "reconstruction"])
    assert result.shape[2] == kept
    top, left = result.shape[0] - 60, result.shape[1] - 200
    assert (result[top:, left:] == picture[..., :kept]).all()
    dark = result[..., 0] < 128
    # Both labels are written, each beside its own row, and the caption above the picture.
    assert dark[top : top + 30, :left].any()
    assert dark[top + 30 :, :left].any()
    assert dark[:top, left:].any()


def test_a_long_caption_widens_a_narrow_picture() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    result = captioned(picture, "a caption of some length")
    assert result.shape[1] > 100
    assert (result[-20:, :20] == 0).all()
    assert (result[-20:, 20:] == 255).all()


def test_rows_of_a_grid_come_in_labelled_pairs() -> None:
    images = torch.linspace(-1, 1, 10).view(10, 1, 1, 1).expand(10, 3, 16, 16)
    result = sample_grid(images, -images, "step 4", columns=8)
    # Two pairs of rows of 128 pixels, 2 pixels apart, with 8 images each.
    rows, columns = 4 * 130 - 2, 8 * 130 - 2
    body = result[-rows:, -columns:, 0]
    first = body[::130, ::130][:4]
    assert first[0].tolist() == [0, 28, 57, 85, 113, 142, 170, 198]
    assert first[1].tolist() == [255, 227, 198, 170, 142, 113, 85, 57]
    assert first[2].tolist() == [227, 255] + [255] * 6
    assert first[3].tolist() == [28, 0] + [255] * 6
