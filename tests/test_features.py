"""The networks of distances: timm models, their weights and resize, and the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import need
from genkit_backbones import TimmFeaturesOptions
from genkit_backbones.features import SHIPPED, TimmFeatures, full_precision, resized
from PIL import Image
from sets_of_images import Means, pictures, tiny_model
from torch import Tensor

from genkit import testing
from genkit.data.reading import batches
from genkit.errors import OptionError
from genkit.evaluation.distances import Distances
from genkit.images import to_uint8
from genkit.settings import choose


def test_features_keep_their_contract(tmp_path: Path, install: Any) -> None:
    testing.check_features(**tiny_model(tmp_path))
    install("features", Means)
    testing.check_features("mine")


class OfTheBatch(Means):
    """Features less their mean over the batch."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: each - each.mean(0) for name, each in super().forward(images).items()}


class Lacking(Means):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": super().forward(images)["features"]}


class Doubles(Means):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: each.double() for name, each in super().forward(images).items()}


class Blind(Means):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: each * 0 for name, each in super().forward(images).items()}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OfTheBatch, "must not depend on the others of its batch"),
        (Lacking, "must return a dict with the outputs features, spatial, logits"),
        (Doubles, "must be float32, not torch.float64"),
        (Blind, "must differ between images"),
    ],
)
def test_a_mistake_in_features_has_a_clear_message(cls: type, message: str, install: Any) -> None:
    install("features", cls)
    with pytest.raises(AssertionError, match=message):
        testing.check_features("mine")


def test_networks_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(OptionError, match="has no model 'mobilenet_v9'"):
        choose("features", "timm:mobilenet_v9").build()
    need("torch_fidelity")
    with pytest.raises(OptionError, match="give torch-fidelity's file weights-inception"):
        choose("features", "inception").build()


def test_gpus_compute_features_in_full_precision() -> None:
    """The settings exist without a GPU too."""
    backends: Any = torch.backends
    settings = backends.cudnn.conv, backends.cuda.matmul
    before = [each.fp32_precision for each in settings]
    with full_precision(torch.device("cuda")):
        assert [each.fp32_precision for each in settings] == ["ieee", "ieee"]
    assert [each.fp32_precision for each in settings] == before != ["ieee", "ieee"]


@pytest.mark.parametrize("size", [(40, 40), (100, 60)])
def test_the_resize_is_pillows(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
    for channel, ours in enumerate(found):
        image = Image.fromarray(pixels[..., channel].astype(np.float32), "F")
        theirs = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.abs(ours.numpy() - theirs).max() < 1e-2


def test_a_transformer_takes_another_size(tmp_path: Path) -> None:
    file = tmp_path / "vit.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), file)
    options = [TimmFeaturesOptions("test_vit", str(file), size) for size in (0, 64)]
    images = torch.from_numpy(to_uint8(pictures(0, 2))).permute(0, 3, 1, 2)
    own, small = (TimmFeatures(each)(images)["features"] for each in options)
    assert own.shape == small.shape
    assert not torch.allclose(own, small, rtol=1e-2)
    with pytest.raises(ValueError, match="does not accept images of 3 x 3"):
        TimmFeatures(TimmFeaturesOptions("test_vit", str(file), 3))


@pytest.mark.slow
@pytest.mark.parametrize("model", SHIPPED)
def test_shipped_weights_see_damage_to_images(model: str) -> None:
    need(*(package for package, _ in SHIPPED.values()))
    faces = choose("dataset", "faces").build((64, 64), 0).split("train")
    real = torch.cat([images for _, images in batches(faces, 32, 16, torch.device("cpu"))])
    features = choose("features", {"name": "timm", "model": model, "size": 96}).build()
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for strength in (0.0, 0.1, 0.3):
        distances = Distances(features, ["kid"])
        distances.update(real, (real + strength * noise).clamp(-1, 1))
        found.append(distances.result()["kid"])
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert 0 < found[1] < found[2]


class AsTheirs:
    """The methods of a feature extractor of torch-fidelity; a subclass has our `network`."""

    network: Any

    def __init__(self, name: str, features: Any, **options: Any) -> None:
        super().__init__(name, features)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("ours",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "ours"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (type(self).network(images)["features"].double(),)


class Rounded(torch.utils.data.Dataset[Tensor]):
    """Images uint8 `[3, H, W]`."""

    def __init__(self, images: Tensor) -> None:
        self.pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


@pytest.mark.slow
def test_torch_fidelity_finds_the_same_of_the_same_images(tmp_path: Path) -> None:
    """With its own loop over the images, and our network as its features."""
    need("torch_fidelity")
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    network = choose("features", tiny_model(tmp_path)).build()
    width = network.widths["features"]
    count = width + 20

    ours = type("Ours", (AsTheirs, FeatureExtractorBase), {"network": network})
    torch_fidelity.register_feature_extractor("ours", ours)
    real, made = pictures(0, count), pictures(1, count, 0.8)
    theirs = torch_fidelity.calculate_metrics(
        input1=Rounded(made),
        input2=Rounded(real),
        feature_extractor="ours",
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=count,
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    distances = Distances(network)
    for images in (real, made):
        for batch in images.split(64):
            (distances.add_real if images is real else distances.add)(batch)
    found = distances.result()
    names = {
        "fd": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for name, their in names.items():
        assert found[name] == pytest.approx(theirs[their], rel=1e-6), name
