"""LPIPS, computed by its authors' package (Zhang et al. 2018, arXiv 1801.03924)."""

from __future__ import annotations

import os
import warnings

import lpips
import torch
import torchvision
from torch import Tensor, nn

from genkit.checkpoint.model import fingerprint
from genkit.errors import DataError, OptionError
from genkit.evaluation.metrics import MeanMetric
from genkit.images import as_rgb, rgb_note
from genkit.ops import without_autocast
from genkit_backbones import LPIPSOptions
from genkit_backbones.models import fitted, read

_BEHIND = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


class LPIPS(nn.Module):
    """LPIPS as a loss. The package contains LPIPS's linear weights, but not the network's."""

    def __init__(self, options: LPIPSOptions, channels: int) -> None:
        super().__init__()
        self.note = rgb_note("LPIPS", channels)
        self.inner = _network(options, "--perceptual.weights {}")

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar, given images `[B, channels, H, W]` in [-1, 1] and their reconstructions."""
        with without_autocast(images.device):
            distances: Tensor = self.inner(as_rgb(reconstructions.float()), as_rgb(images.float()))
        return distances.mean()


class LPIPSMetric(MeanMetric):
    """LPIPS as a metric."""

    label, better, decimals = "LPIPS", "lower", 4

    def __init__(self, options: LPIPSOptions, channels: int) -> None:
        super().__init__(options, channels)
        self.note = rgb_note("LPIPS", channels)
        self.network = _network(options, "--metric 'lpips?weights={}'").eval()
        # The path of the weights is not in the record. With other weights the figure is another.
        self.details = {"weights_hash": fingerprint(self.network)[:16]}

    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The distance `[B]` of each reconstruction from its image."""
        with torch.no_grad():
            distances: Tensor = self.network.to(images.device)(
                as_rgb(reconstructions), as_rgb(images)
            )
        return distances.flatten()


def _network(options: LPIPSOptions, flag: str) -> nn.Module:
    """The package's network with trained weights; `flag` is the option to name in messages."""
    name = _BEHIND[options.net]
    if not options.weights:
        raise OptionError(
            f"LPIPS needs a pretrained {name}: give torchvision's file of its weights "
            f"with {flag.format('FILE')}, or download it with {flag.format('hub')}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The package uses deprecated arguments of torchvision.
        inner: nn.Module = lpips.LPIPS(net=options.net, pnet_rand=True, verbose=False)
    network = getattr(torchvision.models, name)()
    if options.weights == "hub":
        try:
            weights = torchvision.models.get_model_weights(name).DEFAULT
            state = dict(weights.get_state_dict(check_hash=True))
        except OSError as error:
            raise DataError(
                f"torchvision's weights of {name} cannot be downloaded: {error}\n"
                f"Without a network connection, give a local file with {flag.format('FILE')}."
            ) from error
    else:
        state = read(options.weights)
    network.load_state_dict(fitted(network, state, os.path.basename(options.weights), name))
    # The package splits the network's features into slices, which keep the layers' numbers as
    # names.
    behind = inner.get_submodule("net")
    slices = [module for key, module in behind.named_children() if "slice" in key]
    for part in slices:
        for number, layer in part.named_children():
            layer.load_state_dict(network.features[int(number)].state_dict())
    return inner
