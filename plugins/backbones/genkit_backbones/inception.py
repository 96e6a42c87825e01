"""The Inception network of FID, from torch-fidelity."""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x,
)

from genkit.checkpoint.model import fingerprint
from genkit.errors import DataError, OptionError
from genkit_backbones import InceptionOptions
from genkit_backbones.features import full_precision, resized
from genkit_backbones.models import Weights, read, short

_SIZE = 299, 299
# The number of channels of ADM's spatial features, on a grid of 17 x 17.
_SPATIAL = 7


class Inception(nn.Module):
    """Features, spatial features and logits of the network that FID is defined by.

    The features are those after the last pooling. The spatial ones are ADM's: 7 channels of the
    first branch of its block `mixed_6`. The logits leave out the bias, as the Inception score does.
    """

    label, frechet = "Inception", "FID"

    def __init__(self, options: InceptionOptions) -> None:
        super().__init__()
        self.widths = {"features": 2048, "spatial": _SPATIAL * 17 * 17, "logits": 1008}
        self.net: Any = _network(options.weights)
        self.clean = options.resize == "clean"
        self.details = {
            "weights_hash": fingerprint(self.net)[:16],
            "resize": "299x299, bicubic with antialias"
            if self.clean
            else "299x299, TensorFlow 1's bilinear",
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of images uint8 `[B, 3, H, W]`."""
        with full_precision(images.device):
            pixels = (
                resized(images, _SIZE)
                if self.clean
                else interpolate_bilinear_2d_like_tensorflow1x(
                    images.float(), size=_SIZE, align_corners=False
                )
            )
            return self._outputs((pixels - 128) / 128)

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        net = self.net
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"):
            x = getattr(net, name)(x)
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b", "Mixed_5c"):
            x = getattr(net, name)(x)
        for name in ("Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):
            x = getattr(net, name)(x)
        spatial = net.Mixed_6d.branch1x1(x)[:, :_SPATIAL]
        for name in ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"):
            x = getattr(net, name)(x)
        features = net.AvgPool(x).flatten(1)
        logits = F.linear(features, net.fc.weight)
        # In the order of ADM's files: rows, columns, channels.
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)
        return {"features": features, "spatial": spatial, "logits": logits}


def _network(weights: str) -> nn.Module:
    if not weights:
        raise OptionError(
            f"FID needs Inception's weights: give torch-fidelity's file "
            f"{os.path.basename(URL_INCEPTION_V3)} with features.weights=FILE, or download it with "
            "features.weights=hub"
        )
    state = _downloaded() if weights == "hub" else read(weights)
    # The package unpickles its file, which could run code in it. So the tensors are read without
    # that, and the package gets them as a file in memory.
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], file)
    except RuntimeError as error:
        raise DataError(
            f"the weights in '{weights}' do not fit torch-fidelity's Inception: {short(error)}"
        ) from error
    return network


def _downloaded() -> Weights:
    try:
        return dict(
            torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, check_hash=True, progress=False, weights_only=True
            )
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Inception's weights cannot be downloaded: {short(error)}\n"
            "Without a network connection, give the file with features.weights=FILE."
        ) from error
