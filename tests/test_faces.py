"""Procedural faces: drawn from known factors, determined by seed and index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from genkit_datasets import FacesOptions
from genkit_datasets.faces import EYE_COLOURS, Faces

from genkit import Subset

RED = (200, 30, 40)


def faces(split: str = "train", resolution: int = 64, seed: int = 0, **options: Any) -> Subset:
    return Faces(FacesOptions(**options), (resolution, resolution), seed).split(split)


def of(what: str, split: Subset, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Any:
    """Factors or regions of a split's faces."""
    return getattr(split.dataset, what)([split.numbers[index] for index in indices], seeds)


def test_faces_follow_from_seed_and_index() -> None:
    a, b = faces(), faces()
    assert (a.images([3, 4]) == b.images([3, 4])).all()
    assert (a.images([4]) == b.images([3, 4])[1:]).all()
    assert (faces(seed=1).images([3]) != a.images([3])).mean() > 0.5
    assert (a.images([3], [5]) != a.images([3], [6])).mean() > 0.5


def test_an_augmentation_seed_changes_the_view_but_not_the_face() -> None:
    a, b = of("factors", faces(), [7], [1]), of("factors", faces(), [7], [2])
    changed = {name for name in a if a[name][0] != b[name][0]}
    assert changed == {
        "yaw",
        "tilt",
        "shift_x",
        "shift_y",
        "zoom",
        "light_angle",
        "light",
        "noise_x",
        "noise_y",
    }


def test_held_out_faces_are_drawn_by_no_training_seed() -> None:
    heldout = faces("heldout", resolution=16)
    assert (heldout.images([0, 1]) == faces("heldout", resolution=16, seed=9).images([0, 1])).all()
    seen = {
        tuple(values) for values in zip(*of("factors", heldout, range(200)).values(), strict=True)
    }
    for seed in range(5):
        drawn = of("factors", faces(seed=seed, resolution=16), range(2000))
        assert not seen & {tuple(values) for values in zip(*drawn.values(), strict=True)}


def test_eyes_have_one_colour_by_default() -> None:
    same, mixed = (
        of("factors", faces(), range(500)),
        of("factors", faces(heterochromia=0.5), range(500)),
    )
    assert (same["left_eye"] == same["right_eye"]).all()
    assert 0.4 < (mixed["left_eye"] != mixed["right_eye"]).mean() < 0.6


def test_the_eyes_are_painted_in_their_colours() -> None:
    """At the irises of an upright, evenly lit face the picture has their colours."""
    dataset = faces(resolution=256, pose=0, light=0, noise=0, heterochromia=1)
    for index in range(4):
        f = of("factors", dataset, [index])
        image = dataset.images([index])[0].reshape(256, 256, 3).astype(int)
        side = (0.19 + 0.05 * f["eye_distance"][0]) * 128
        # Between pupil and rim, below the highlight.
        for eye, x in (("left_eye", 128 + side), ("right_eye", 128 - side)):
            pixel = image[int(128 - 0.08 * 128 + 6), round(x)]
            assert np.abs(pixel - EYE_COLOURS[f[eye][0]]).max() < 12, (index, eye)


@pytest.mark.parametrize("resolution", [8, 48, 200])
def test_faces_of_any_resolution(resolution: int) -> None:
    images = faces(resolution=resolution).images([0, 1, 2])
    assert images.shape == (3, resolution, resolution, 3)
    assert images.std() > 20


def test_faces_look_the_same_at_every_resolution() -> None:
    small = faces(resolution=64, noise=0).images([5])[0].astype(float)
    large = faces(resolution=256, noise=0).images([5])[0].reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 4


def test_the_regions_of_faces_match_the_drawing() -> None:
    """Changing the colour of one eye changes only that iris's pixels."""
    same, other = (faces(light=0.0, noise=0.0, heterochromia=share) for share in (0.0, 1.0))
    indices = list(range(40))
    regions = of("regions", same, indices)
    changed = (same.images(indices) != other.images(indices)).any(-1)
    assert (regions["right_iris"][changed] > 0).all()
    assert not changed[regions["right_iris"] == 0].any()
    assert changed[regions["right_iris"] > 0.5].mean() > 0.99
    assert not (regions["left_iris"] * regions["right_iris"]).any()


def test_the_regions_of_faces_hold_the_colours_of_their_factors() -> None:
    data = faces(resolution=128, light=0.0, noise=0.0, heterochromia=0.5)
    indices = list(range(60))
    images, factors, regions = (
        data.images(indices),
        of("factors", data, indices),
        of("regions", data, indices),
    )
    for side in ("left", "right"):
        for face, colour in enumerate(EYE_COLOURS[factors[f"{side}_eye"]]):
            inside = regions[f"{side}_iris"][face] > 0.99
            assert inside.any()
            assert np.abs(images[face][inside].mean(0) - colour).max() < 3
    worn = regions["left_earring"].sum((1, 2)) > 0
    assert (worn == (factors["earrings"] > 0)).all()


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (8, 30)])
def test_an_oblong_image_shows_the_middle_of_a_face(size: tuple[int, int]) -> None:
    """It is cropped from a square with the longer side."""
    square = Faces(FacesOptions(noise=0), (max(size), max(size)), 0).images(range(4))
    oblong = Faces(FacesOptions(noise=0), size, 0).images(range(4))
    top, left = ((max(size) - count) // 2 for count in size)
    middle = square[:, top : top + size[0], left : left + size[1]].astype(int)
    assert np.abs(oblong - middle).max() <= 1
