"""VQGAN's published model as a named configuration."""

from __future__ import annotations

from typing import Any

from genkit import Preset

_SIZES: dict[str, Any] = {
    "width": [128, 128, 256, 256, 512],
    "patch": 1,
    "attention_strides": [16],
    "mix": True,
}
# Codes start and revive as elsewhere here; the published ones start within 1 / 1024 of zero.
_QUANTIZER = {"name": "vq", "codebook_size": 1024, "update": "gradient"}
# The published one's convolutions are 4x4, and its norm is batch norm, which several processes
# cannot train through two forward passes.
_DISCRIMINATOR = {
    "name": "patchgan",
    "width": [64, 128, 256, 512],
    "strides": [2, 2, 2, 1, 1],
    "norm": "group",
}
_TRAINING: dict[str, Any] = {
    "resolution": 256,
    "optimizer": {"name": "adam", "betas": [0.5, 0.9]},
    "discriminator_optimizer": {"name": "adam", "betas": [0.5, 0.9]},
    # 4.5e-6 for each of the 16 images of a batch.
    "lr": 7.2e-5,
    "discriminator_lr": 7.2e-5,
    "warmup": 0,
    "schedule": "constant",
    "clip": 0.0,
    "ema": 0.0,
    "reconstruction": "l1",
    "reconstruction_weight": 1.0,
    "adversarial_loss": "hinge",
    "adversarial_weight": 0.8,
    "adversarial_adaptive": True,
    # The authors' value for one's own images; on ImageNet theirs is 250,001.
    "discriminator_start": 10_000,
    "discriminator_ramp": 0,
}


def published() -> Preset:
    """The f16 model of 1024 codes that Esser et al. trained on ImageNet at 256 pixels.

    Theirs has LPIPS of weight 1 beside the reconstruction loss. It is left out, since it needs
    weights that are not here: `--perceptual lpips --perceptual.weights … --perceptual-weight 1`.
    """
    encoder = {
        "name": "vqgan",
        "levels": 1,
        "strides": [16],
        "blocks": 2,
        "latent_channels": 256,
        **_SIZES,
    }
    # The published decoder has one block more at each size than its encoder.
    decoder = {"name": "vqgan", "blocks": 3, **_SIZES}
    settings = {
        **_TRAINING,
        "encoder": encoder,
        "quantizer": _QUANTIZER,
        "decoder": decoder,
        "discriminator": _DISCRIMINATOR,
    }
    return Preset("vqgan", settings, "VQGAN's published f16 model of 1024 codes")
