"""In- and out-painting: the indices of the part of an image that is kept."""

from __future__ import annotations

import os

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genkit.checkpoint.model import description
from genkit.errors import OptionError
from genkit.evaluation.images import all_images
from genkit.files import is_file
from genkit.images import Pixels, from_pixels
from genkit.prior import Prior

# The sides of an image that can be kept by name.
SIDES = ("top", "bottom", "left", "right")


def kept_of_picture(prior: Prior, picture: str | os.PathLike[str], keep: str) -> list[Tensor]:
    """The indices of a picture file where `keep` keeps it, else -1; see `kept_indices`.

    `keep` is top, bottom, left or right, or a mask file of the picture's size, white where it is
    kept. `OptionError` if a file is missing or the mask has another size.
    """
    image = from_pixels(torch.from_numpy(fitting_pixels(prior, picture)))
    if keep in SIDES:
        return kept_indices(prior, image, half(keep, *prior.size))
    if not is_file(keep):
        raise OptionError(f"--keep {keep} is neither {', '.join(SIDES)} nor a mask file")
    (width, height), (own_width, own_height) = _size(picture), _size(keep)
    if (own_width, own_height) != (width, height):
        raise OptionError(
            f"the mask is {own_width} x {own_height} pixels and the image {width} x {height}: "
            "they must be of one size"
        )
    return kept_indices(
        prior, image, torch.from_numpy(fitting_pixels(prior, keep)[0].min(-1) > 127)
    )


def fitting_pixels(prior: Prior, path: str | os.PathLike[str]) -> Pixels:
    """A picture `[1, H, W, C]`, resized and cropped to the size of the prior's images."""
    if not is_file(path):
        raise OptionError(f"there is no image '{path}'")
    return all_images(
        os.fspath(path), prior.size, once=True, model=description(prior.tokenizer)
    ).images([0])


def _size(path: str | os.PathLike[str]) -> tuple[int, int]:
    with Image.open(path) as file:
        return file.size


def half(name: str, height: int, width: int) -> Tensor:
    """The mask `[H, W]`, True where a picture is kept: top, bottom, left or right."""
    return side(name, height, width, 0.5)


def side(name: str, height: int, width: int, share: float) -> Tensor:
    """Like `half`, for another `share` of the height or the width, from 0 to 1."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = round(height * share), round(width * share)
    kept = {
        "top": mask[:rows],
        "bottom": mask[height - rows :],
        "left": mask[:, :columns],
        "right": mask[:, width - columns :],
    }
    kept[name].fill_(True)
    return mask


def kept_indices(prior: Prior, image: Tensor, mask: Tensor) -> list[Tensor]:
    """The indices of an image `[1, C, H, W]` where `mask` `[H, W]` keeps it, else -1.

    An index is kept if all pixels that it stands for are. The rest of the image is erased before
    it is encoded, so that kept indices know nothing of it. `OptionError` if nothing is kept.
    """
    if tuple(mask.shape) != prior.size:
        raise OptionError(f"the mask is {list(mask.shape)}, not {list(prior.size)} as the images")
    indices = prior.tokenizer.encode(erased(image, mask).to(prior.device))
    result = []
    for level, values in zip(prior.tokenizer.levels, indices, strict=True):
        share = F.avg_pool2d(mask[None, None].float(), level.stride)[0, 0].to(values.device)
        whole = (share == 1).reshape(1, *share.shape, *[1] * (values.ndim - 3))
        result.append(torch.where(whole, values, -1))
    if all((level < 0).all() for level in result):
        raise OptionError("the mask keeps no whole index: keep a larger part of the image")
    return result


def erased(image: Tensor, mask: Tensor) -> Tensor:
    """An image `[1, C, H, W]` with the mean of the nearest kept pixels where `mask` is False.

    Means come from ever larger squares, until each holds a kept pixel.
    """
    known = mask[None, None].to(image)
    values, weights = image * known, known
    pyramid = [(values, weights)]
    while min(values.shape[2:]) > 1 and not bool((weights > 0).all()):
        values, weights = (
            F.avg_pool2d(each, 2, ceil_mode=True, divisor_override=4) for each in pyramid[-1]
        )
        pyramid.append((values, weights))
    filled = pyramid[-1][0] / pyramid[-1][1].clamp(min=1e-9)
    for values, weights in reversed(pyramid[:-1]):
        larger = F.interpolate(filled, values.shape[2:], mode="bilinear", align_corners=False)
        filled = torch.where(weights > 0, values / weights.clamp(min=1e-9), larger)
    return filled
