"""Published tokenizers as presets."""

from __future__ import annotations

from typing import Any

from genkit import Preset

Settings = dict[str, Any]

_F16, _F8 = [128, 128, 256, 256, 512], [128, 256, 256, 512]
# The group norms of taming-transformers and of all that follow it.
_NORMS: Settings = {"norm_groups": 32, "norm_eps": 1e-6}
# MaskGIT's networks and what follows them: no attention, few biases.
_PLAIN: Settings = {"attention_strides": [0], "middle_attention": False, "bias": False}


def _networks(
    width: list[int],
    channels: int,
    blocks: tuple[int, int],
    attention: int,
    shared: Settings | None = None,
    encoder: Settings | None = None,
    decoder: Settings | None = None,
) -> Settings:
    """An encoder and a decoder of one level, whose stride follows from the widths."""
    common = {
        "name": "vqgan",
        "width": width,
        "patch": 1,
        "attention_strides": [attention],
        "mix": True,
        **_NORMS,
        **(shared or {}),
    }
    own = {
        "levels": 1,
        "strides": [2 ** (len(width) - 1)],
        "blocks": blocks[0],
        "latent_channels": channels,
        "down": "asymmetric",
    }
    return {
        "encoder": {**common, **own, **(encoder or {})},
        "decoder": {**common, "blocks": blocks[1], **(decoder or {})},
    }


def _codes(size: int, **options: Any) -> Settings:
    """A table of codes that learns by gradient.

    Codes are initialised and re-seeded as by default; the published ones start within 1 / K of
    zero.
    """
    return {"name": "vq", "codebook_size": size, "update": "gradient", **options}


def _magvit2(width: list[int], channels: int, blocks: int, **decoder: Any) -> Settings:
    shared = {**_PLAIN, "mix": False, "middle_blocks": blocks}
    return _networks(
        width,
        channels,
        (blocks, blocks),
        0,
        shared,
        {"down": "symmetric", "head_kernel": "1"},
        {"upsample": "shuffle", **decoder},
    )


# The published tokenizers: networks, quantizer, and a line of help.
_PUBLISHED: dict[str, tuple[Settings, Settings, str]] = {
    "taming-f16": (
        _networks(_F16, 256, (2, 3), 16),
        _codes(1024),
        "taming-transformers' VQGAN, stride 16, 1024 codes",
    ),
    "taming-f16-16384": (
        _networks(_F16, 256, (2, 3), 16),
        _codes(16384),
        "taming-transformers' VQGAN, stride 16, 16384 codes",
    ),
    "taming-gumbel-f8": (
        _networks([128, 128, 256, 512], 256, (2, 3), 8),
        {"name": "categorical", "codebook_size": 8192, "kl_weight": 1e-8},
        "taming-transformers' Gumbel VQGAN, stride 8, 8192 codes",
    ),
    "ldm-f8-16384": (
        _networks(_F8, 4, (2, 3), 8),
        _codes(16384),
        "latent-diffusion's tokenizer, stride 8, 16384 codes",
    ),
    "ldm-f4": (
        _networks([128, 256, 512], 3, (2, 3), 0),
        _codes(8192),
        "latent-diffusion's tokenizer, stride 4, 8192 codes",
    ),
    "amused-f16": (
        _networks(
            [128, 256, 256, 512, 768],
            64,
            (2, 3),
            0,
            {"middle_attention": False, "image_range": "unit"},
        ),
        _codes(8192),
        "aMUSEd's tokenizer, stride 16, 8192 codes",
    ),
    "llamagen-f16": (
        _networks(_F16, 256, (2, 3), 16, {"mix": False}),
        _codes(16384, codebook_dim=8, distance="cosine"),
        "LlamaGen's tokenizer, stride 16, 16384 codes of length 1",
    ),
    "llamagen-f8": (
        _networks(_F8, 256, (2, 3), 8, {"mix": False}),
        _codes(16384, codebook_dim=8, distance="cosine"),
        "LlamaGen's tokenizer, stride 8, 16384 codes of length 1",
    ),
    "ibq-16384": (
        _networks(_F16, 256, (4, 5), 16),
        _codes(16384, distance="product"),
        "IBQ's tokenizer, stride 16, 16384 codes by product",
    ),
    "maskgit-f16": (
        _networks(
            _F16,
            256,
            (2, 2),
            0,
            {**_PLAIN, "mix": False, "shortcut": "output", "image_range": "unit"},
            {"down": "average", "head_kernel": "1"},
        ),
        _codes(1024),
        "MaskGIT's tokenizer, stride 16, 1024 codes",
    ),
    "open-magvit2-f16": (
        _magvit2(_F16, 18, 4, adaptive=True),
        {"name": "lfq", "bits": 18},
        "Open-MAGVIT2's tokenizer, stride 16, codes of 18 signs",
    ),
    "simvq-f8": (
        _magvit2(_F8, 128, 2),
        {"name": "simvq", "codebook_size": 65536, "gradient": "straight-through"},
        "SimVQ's tokenizer, stride 8, 65536 codes",
    ),
}
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
    # The published training had neither head start nor ramp, and a limit of 10,000: from its first
    # step on, an untrained discriminator could outweigh all other losses.
    "discriminator_head_start": 1000,
    "discriminator_ramp": 2000,
    "adversarial_limit": 10.0,
}

# Height and width of the images that a tokenizer was trained on, if not 256.
_RESOLUTION = {"simvq-f8": 128}


def published() -> list[Preset]:
    """The tokenizers that others have published, and VQGAN with its training.

    `vqgan` is the f16 model with 1024 codes that Esser et al. trained on ImageNet at 256 pixels.
    Its discriminator has a head start, a ramp and a limit, which theirs had not. Their LPIPS loss
    of weight 1 is left out, because it needs weights that are not included. Add it with
    `--perceptual lpips --perceptual.weights … --perceptual-weight 1`. The other presets set the
    tokenizer alone.
    """
    networks, quantizer, _ = _PUBLISHED["taming-f16"]
    vqgan = {**_TRAINING, **networks, "quantizer": quantizer, "discriminator": _DISCRIMINATOR}
    return [
        Preset("vqgan", vqgan, "VQGAN's published f16 model with 1024 codes, and its training"),
        *(
            Preset(
                name,
                {**networks, "quantizer": quantizer, "resolution": _RESOLUTION.get(name, 256)},
                text,
            )
            for name, (networks, quantizer, text) in _PUBLISHED.items()
        ),
    ]
