"""LPIPS, by its authors' package (Zhang et al. 2018, arXiv 1801.03924)."""

from __future__ import annotations

import os
import warnings

import lpips
import torchvision
from torch import Tensor, nn

from genkit.errors import DataError, OptionError
from genkit.ops import without_autocast
from genkit_backbones import LPIPSOptions
from genkit_backbones.models import as_colours, check_colours, fitted, read

_BEHIND = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


class LPIPS(nn.Module):
    """Learned perceptual similarity; the package has its linear weights, but not the network's."""

    def __init__(self, options: LPIPSOptions, channels: int) -> None:
        super().__init__()
        check_colours(channels)
        name = _BEHIND[options.net]
        if not options.weights:
            raise OptionError(
                f"LPIPS looks through a trained {name}: give torchvision's file of its weights "
                "with --perceptual.weights FILE, or --perceptual.weights hub to fetch it"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It speaks to torchvision in words of long ago.
            self.inner = lpips.LPIPS(net=options.net, pnet_rand=True, verbose=False)
        network = getattr(torchvision.models, name)()
        if options.weights == "hub":
            try:
                weights = torchvision.models.get_model_weights(name).DEFAULT
                state = dict(weights.get_state_dict(check_hash=True))
            except OSError as error:
                raise DataError(
                    f"torchvision's weights of {name} cannot be fetched: {error}\n"
                    "Where there is no network, give its file with --perceptual.weights FILE."
                ) from error
        else:
            state = read(options.weights)
        network.load_state_dict(fitted(network, state, os.path.basename(options.weights), name))
        # The package cuts the network's features into slices that keep their numbers as names.
        slices = [module for key, module in self.inner.net.named_children() if "slice" in key]
        for part in slices:
            for number, layer in part.named_children():
                layer.load_state_dict(network.features[int(number)].state_dict())

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """A scalar, given images `[B, channels, H, W]` in [-1, 1] and their reconstructions."""
        with without_autocast(images.device):
            distances: Tensor = self.inner(
                as_colours(reconstructions.float()), as_colours(images.float())
            )
        return distances.mean()
