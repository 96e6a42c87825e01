"""The Inception network of FID, with random weights: torch-fidelity's outputs, file and resize."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import need
from PIL import Image
from torch import nn

from genkit.errors import DataError
from genkit.settings import choose
from genkit.testing import check_features

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs() -> Any:
    """torch-fidelity's network with random weights of a usual size."""
    need("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = io.BytesIO()
    torch.save({}, file)
    file.seek(0)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # It loads a file of weights, which is empty.
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], file)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(scope="module")
def file(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(theirs.state_dict(), path)
    return str(path)


def test_the_outputs_are_torch_fidelitys(theirs: Any, file: str) -> None:
    ours = choose("features", {"name": "inception", "weights": file}).build()
    images = torch.randint(256, (2, 3, 40, 60), dtype=torch.uint8)
    with torch.no_grad():
        features, logits = theirs(images)
        found = ours(images)
    assert torch.equal(found["features"], features)
    assert torch.equal(found["logits"], logits)
    # ADM's spatial features: a map of 17 x 17 with its first 7 channels, after the rectifier.
    caught: list[torch.Tensor] = []
    hook = theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *each: caught.append(each[2]))
    with torch.no_grad():
        theirs(images)
    hook.remove()
    grid = found["spatial"].view(2, 17, 17, 7)
    assert all(torch.equal(grid[..., channel], caught[0][:, channel]) for channel in range(7))


def test_it_keeps_the_contract_of_features(file: str) -> None:
    check_features("inception", weights=file)


def test_the_clean_resize_is_pillows(theirs: Any, file: str) -> None:
    clean = choose("features", {"name": "inception", "weights": file, "resize": "clean"}).build()
    pixels = np.random.default_rng(0).integers(0, 255, (400, 310, 3), dtype=np.uint8)
    rows = [
        np.asarray(
            Image.fromarray(pixels[..., channel].astype(np.float32), "F").resize(
                (299, 299), Image.Resampling.BICUBIC
            )
        ).clip(0, 255)
        for channel in range(3)
    ]
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        wanted = clean._outputs((torch.from_numpy(np.stack(rows))[None] - 128) / 128)["features"]
        found = clean(images)["features"]
        other = choose("features", {"name": "inception", "weights": file}).build()(images)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))
    assert not torch.allclose(other["features"], wanted, rtol=1e-2)
    assert "bicubic" in clean.details["resize"]


def test_other_weights_are_refused(tmp_path: Path) -> None:
    need("torch_fidelity")
    file = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(DataError, match="do not fit torch-fidelity's Inception"):
        choose("features", {"name": "inception", "weights": str(file)}).build()
