"""Data sets that a caller hands over as objects, of genkit's protocol or PyTorch's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genkit.data.split import Subset
from genkit.errors import DataError, UnreadableImage
from genkit.images import Pixels
from genkit.interfaces import Dataset
from genkit.plugin.component import Component
from genkit.plugin.registry import register
from genkit.size import Size

# The name under which a run records such a data set.
NAME = "python"
# Every tenth image is held out; the fingerprint is a hash of this many images.
_HELDOUT, _HASHED = 10, 16


def register_data(data: Any) -> dict[str, Any]:
    """Make an object a data set of this process, and return the settings that choose it.

    It has the methods of `genkit.interfaces.Dataset`, or is a torch `Dataset` of images.
    `DataError` if it is neither.
    """
    if not hasattr(data, "split") and not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise DataError(
            f"{type(data).__name__} is not a data set: give a name, a folder, an object with the "
            "methods of genkit.interfaces.Dataset, or a torch Dataset with a length"
        )

    def built(options: Any, size: tuple[int, int] | None, seed: int) -> Dataset:
        return data if hasattr(data, "split") else TorchImages(data, size)

    register(Component("dataset", NAME, built, help="an object given in Python"))
    return {"name": NAME}


class TorchImages:
    """A torch `Dataset` of images, every tenth of which is held out.

    An item is an image or a tuple that begins with an image and its label. An image is a PIL image,
    which is resized and cropped in the middle, or a tensor or array `[C, H, W]`, uint8 or floats in
    [0, 1]. Augmentation is left to the torch data set.
    """

    def __init__(self, data: Any, size: tuple[int, int] | None) -> None:
        self.data, self.size, self.native = data, size, size is None
        self.problems: dict[str, str] = {}
        self.classes = [str(name) for name in getattr(data, "classes", [])]
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or not len(data):
            raise DataError(f"{type(data).__name__} is not a data set with images")
        step = max(1, len(data) // _HASHED)
        images = [self._image(number) for number in range(0, len(data), step)]
        self.channels = images[0].shape[2]
        hashed = hashlib.sha256(f"{len(data)}".encode())
        for image in images:
            hashed.update(image.tobytes())
        self.fingerprint = f"torch:{hashed.hexdigest()}"

    def split(self, name: str) -> Subset:
        """The training images, the held-out ones, or all."""
        every = range(len(self.data))
        if name != "all" and len(every) < 2:
            raise DataError("the data set holds fewer than two images, so none can be held out")
        heldout = set(every[_HELDOUT - 1 :: _HELDOUT]) or {len(every) - 1}
        wanted = {"train": False, "heldout": True}.get(name)
        return Subset(self, [n for n in every if wanted is None or (n in heldout) == wanted])

    def name(self, number: int) -> str:
        """The image's number as a name."""
        return f"{number:08d}"

    def images(self, numbers: Sequence[int], seeds: Sequence[int] | None = None) -> Pixels:
        """The images uint8 `[B, H, W, channels]`."""
        return np.stack([self._image(number) for number in numbers])

    def label(self, number: int) -> int | None:
        """The item's label, if it is an integer."""
        item = self.data[number]
        label = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        return int(label) if isinstance(label, int | np.integer) else None

    def _image(self, number: int) -> Pixels:
        item = self.data[number]
        image = item[0] if isinstance(item, tuple | list) else item
        if not isinstance(image, Image.Image | Tensor | np.ndarray):
            raise DataError(
                f"an item of a data set must be an image or begin with one, not "
                f"{type(image).__name__}: give PIL images, tensors or arrays"
            )
        try:
            return self._pixels(image)
        except ValueError as error:
            raise UnreadableImage(self.name(number), str(error)) from error

    def _pixels(self, image: Any) -> Pixels:
        if isinstance(image, Image.Image):
            rgb = image if image.mode in ("L", "RGB") else image.convert("RGB")
            if self.size:
                height, width = self.size
                rgb = ImageOps.fit(rgb, (width, height), Image.Resampling.LANCZOS)
            pixels = np.asarray(rgb)
            return pixels if pixels.ndim == 3 else pixels[:, :, None]
        tensor = torch.as_tensor(image)
        height, width = self.size or tensor.shape[-2:]
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != (height, width):
            raise ValueError(
                f"a tensor must be [C, {height}, {width}] for --resolution {Size(height, width)}, "
                f"not {list(tensor.shape)}: resize the images in the data set"
            )
        if tensor.is_floating_point():
            if not bool(((tensor >= 0) & (tensor <= 1)).all()):
                raise ValueError("floats must lie in [0, 1]")
            tensor = tensor.mul(255).round().to(torch.uint8)
        if tensor.dtype != torch.uint8:
            raise ValueError(f"a tensor must be uint8 or floats in [0, 1], not {tensor.dtype}")
        return tensor.permute(1, 2, 0).numpy()
