"""VQGAN's published model as a preset."""

from __future__ import annotations

from typing import Any

from genkit import Preset

_SIZES: dict[str, Any] = {
    "width": [128, 128, 256, 256, 512],
    "patch": 1,
    "attention_strides": [16],
    "mix": True,
}
# Codes are initialised and re-seeded as by default; the published ones start within 1 / 1024 of
# zero.
_QUANTIZER = {"name": "vq", "codebook_size": 1024, "update": "gradient"}
# The published discriminator has 4x4 convolutions and batch norm. Several processes cannot train
# batch norm through two forward passes.
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
    # 4.5e-6 per image in a batch of 16.
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
    # The authors' value for custom data; they use 250,001 on ImageNet.
    "discriminator_start": 10_000,
    "discriminator_ramp": 0,
}


def published() -> Preset:
    """The f16 model with 1024 codes that Esser et al. trained on ImageNet at 256 pixels.

    Their LPIPS loss of weight 1 is left out, because it needs weights that are not included. Add it
    with `--perceptual lpips --perceptual.weights … --perceptual-weight 1`.
    """
    encoder = {
        "name": "vqgan",
        "levels": 1,
        "strides": [16],
        "blocks": 2,
        "latent_channels": 256,
        **_SIZES,
    }
    # The published decoder has one more block per resolution than the encoder.
    decoder = {"name": "vqgan", "blocks": 3, **_SIZES}
    settings = {
        **_TRAINING,
        "encoder": encoder,
        "quantizer": _QUANTIZER,
        "decoder": decoder,
        "discriminator": _DISCRIMINATOR,
    }
    return Preset("vqgan", settings, "VQGAN's published f16 model with 1024 codes")
