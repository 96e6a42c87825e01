"""The paper's models as presets.

The paper does not specify its decoder, the resizing between levels or the codebook size. `plain`
is the natural reading. `exact` has widths fitted to the paper's parameter counts; the authors may
have used others.
"""

from __future__ import annotations

from typing import Any

from genkit import Preset

_ENCODER = {
    "name": "aren",
    "width": [128],
    "blocks": 2,
    "norm": "batch",
    "patch": 1,
    "strides": [8, 16, 32],
    "base_stride": 4,
    "base_channels": 256,
    "latent_channels": 256,
}
_DECODER = {"norm": "batch", "patch": 1, "sees": "finest"}
_PARTS: dict[str, dict[str, Any]] = {
    "plain": {
        "quantizer": {"name": "vq", "codebook_size": 512},
        "fusion": {"name": "hierarchical", "width": 0, "blocks": 1, "norm": "batch"},
        "decoder": {"name": "mirror", "width": [128], "blocks": 3, **_DECODER},
    },
    "exact": {
        "quantizer": {"name": "vq", "codebook_size": 128},
        "fusion": {"name": "hierarchical", "width": 208, "blocks": 2, "norm": "batch"},
        "decoder": {"name": "mirror", "width": [64, 128, 224], "blocks": 1, **_DECODER},
    },
}
_MODELS = {
    "h-vqvae": (2, "none", "H-VQVAE: two levels"),
    "ah-vqvae": (2, "pixel", "AH-VQVAE: two levels, attention"),
    "a-vqvae": (1, "pixel", "A-VQVAE: one level, attention"),
    "ah-vqvae-3": (3, "pixel", "three levels, attention"),
}
# Training settings from a related paper of the first author.
_TRAINING: dict[str, Any] = {
    "resolution": 256,
    "optimizer": {"name": "adam", "betas": [0.5, 0.999]},
    "discriminator_optimizer": {"name": "adam", "betas": [0.5, 0.999]},
    "lr": 1e-4,
    "ema": 0.0,
    "reconstruction": "l1",
    "reconstruction_weight": 1.0,
}
_PATCHGAN = {
    "discriminator": {
        "name": "patchgan",
        "width": [128, 128, 128, 64, 64],
        "norm": "batch",
        "norm_logits": True,
    },
    "adversarial_loss": "bce",
    "discriminator_lr": 1e-4,
}


def paper_presets() -> list[Preset]:
    """The paper's models and a three-level one, in both readings, and the paper's discriminator."""
    presets = [Preset("paper-patchgan", _PATCHGAN, "the paper's discriminator; add it to a model")]
    for model, (levels, attention, what) in _MODELS.items():
        for reading, parts in _PARTS.items():
            encoder = {
                **_ENCODER,
                "levels": levels,
                "attention": {"name": "pixel", "dim": 96} if attention == "pixel" else attention,
                # A single level has no fusion, whose 1x1 convolution the plain reading keeps.
                "mix": levels == 1 and reading == "plain",
            }
            name = model if reading == "plain" else f"{model}-{reading}"
            settings = {**_TRAINING, "encoder": encoder, **parts}
            presets.append(Preset(name, settings, f"{what}, {reading} reading"))
    return presets
