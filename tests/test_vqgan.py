"""VQGAN's encoder and decoder and the residual decoder: sizes, shapes, formulas, a run."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Silent, tiny_run
from genkit_vqgan import DecoderOptions, EncoderOptions, ResidualOptions
from genkit_vqgan.blocks import Attention, Block, norm, shuffle
from genkit_vqgan.decoder import Decoder
from genkit_vqgan.encoder import Encoder
from genkit_vqgan.residual import Residual
from torch import Tensor, nn

import genkit
from genkit import Level, testing
from genkit.errors import OptionError
from genkit.settings import choose

SMALL: dict[str, Any] = {"width": (8, 12, 16)}


def counted(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conv(channels: int, out: int, size: int) -> int:
    return channels * out * size**2 + out


def block(channels: int, out: int) -> int:
    skip = conv(channels, out, 1) if channels != out else 0
    return 2 * channels + conv(channels, out, 3) + 2 * out + conv(out, out, 3) + skip


def attention(channels: int) -> int:
    return 2 * channels + 4 * conv(channels, channels, 1)


def test_levels_share_the_downsampling_path() -> None:
    encoder = Encoder(
        EncoderOptions(levels=2, width=(8, 12, 16, 20), patch=1, latent_channels=6), 3
    )
    way = conv(3, 8, 3) + block(8, 8)
    for width, out, attends in ((8, 12, 0), (12, 16, 0), (16, 20, 1)):
        way += conv(width, width, 3) + block(width, out) + attends * attention(out)
    heads = 2 * 16 + conv(16, 6, 3) + 2 * 20 + conv(20, 6, 3)
    assert counted(encoder) == way + heads + 2 * block(20, 20) + attention(20)


def test_the_residual_decoder_has_its_parameters() -> None:
    levels = [Level(0, 6, 4), Level(1, 4, 8)]
    common = conv(10, 16, 3) + block(16, 16) + block(12, 12) + 2 * 12 + conv(12, 12, 3)
    for upsample, doubling in (("shuffle", conv(16, 48, 3)), ("nearest", conv(16, 12, 3))):
        decoder = Residual(ResidualOptions(width=(8, 12, 16), upsample=upsample), levels, 3)
        assert counted(decoder) == common + doubling


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_each_level_has_its_stride(levels: int, size: tuple[int, int], patch: int) -> None:
    height, width = size
    encoder = Encoder(EncoderOptions(levels=levels, patch=patch, latent_channels=6, **SMALL), 3)
    latents = encoder(torch.randn(2, 3, height, width))
    assert [level.stride for level in encoder.levels] == [4, 8, 16][:levels]
    assert [tuple(x.shape) for x in latents] == [
        (2, 6, height // stride, width // stride) for stride in (4, 8, 16)[:levels]
    ]
    for decoder in (
        Decoder(DecoderOptions(patch=patch, **SMALL), encoder.levels, 3),
        Residual(ResidualOptions(patch=patch, **SMALL), encoder.levels, 3),
    ):
        assert decoder(latents).shape == (2, 3, height, width)
        assert decoder([x[:0] for x in latents]).shape == (0, 3, height, width)
    assert [len(x) for x in encoder(torch.zeros(0, 3, height, width))] == [0] * levels


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 1, "strides": (16,), "patch": 1, "mix": True},
        {"levels": 3, "strides": (2, 8, 32), "attention_strides": (0,)},
        {"patch": 4, "blocks": 2},
        {"levels": 1, "strides": (2,)},
    ],
)
def test_encoders_satisfy_the_contract(options: dict[str, Any]) -> None:
    testing.check_encoder("vqgan", latent_channels=6, **options)


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("vqgan", {"patch": 1, "mix": True, "blocks": 2}),
        ("vqgan", {"sees": "finest", "patch": 4}),
        ("vqgan", {"width": (7,), "attention_strides": (0,)}),
        ("residual", {"patch": 1}),
        ("residual", {"sees": "finest", "upsample": "nearest"}),
        ("residual", {"width": (7,), "patch": 4}),
    ],
)
@pytest.mark.parametrize("strides", [(4,), (4, 16), (4, 8, 16)])
def test_decoders_satisfy_the_contract(
    decoder: str, options: dict[str, Any], strides: tuple[int, ...]
) -> None:
    testing.check_decoder(decoder, strides=strides, **{**SMALL, **options})


def described(module: nn.Module, *inputs: Any) -> list[list[float]]:
    """The shapes of a module's parameters, and its outputs."""
    result = module(*inputs)
    tensors = result if isinstance(result, list) else [result]
    shapes = [[float(n) for n in parameter.shape] for parameter in module.parameters()]
    return [*shapes, *(x.flatten().tolist() for x in tensors)]


NETS: dict[str, Any] = {
    "norm_groups": 4,
    "norm_eps": 0.01,
    "bias": False,
    "shortcut": "output",
    "middle_blocks": 3,
    "middle_attention": False,
    "image_range": "unit",
}
ENCODERS: dict[str, Any] = {
    **NETS,
    "down": "asymmetric",
    "head_kernel": "1",
    "levels": 1,
    "width": (8, 16),
    "blocks": 2,
    "patch": 1,
    "strides": (2, 8),
    "attention_strides": (0,),
    "latent_channels": 8,
    "mix": True,
}
DECODERS: dict[str, Any] = {
    **NETS,
    "upsample": "shuffle",
    "adaptive": True,
    "width": (8, 16),
    "blocks": 3,
    "patch": 1,
    "attention_strides": (4,),
    "sees": "finest",
    "mix": True,
}


@pytest.mark.parametrize(("option", "value"), ENCODERS.items())
def test_every_option_of_the_encoder_changes_it(option: str, value: Any) -> None:
    images, found = torch.randn(1, 3, 16, 16), []
    for options in ({}, {option: value}):
        torch.manual_seed(0)
        chosen: dict[str, Any] = {"latent_channels": 6, **SMALL, **options}
        found.append(described(Encoder(EncoderOptions(**chosen), 3), images))
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("decoder", "config", "option", "value"),
    [(Decoder, DecoderOptions, *item) for item in DECODERS.items()]
    + [
        (Residual, ResidualOptions, option, {**DECODERS, "upsample": "nearest"}[option])
        for option in ("width", "blocks", "patch", "sees", "upsample")
    ],
)
def test_every_option_of_the_decoders_changes_them(
    decoder: Any, config: Any, option: str, value: Any
) -> None:
    levels, found = [Level(0, 6, 4), Level(1, 6, 8)], []
    latents = [torch.randn(1, 6, 4, 4), torch.randn(1, 6, 2, 2)]
    for options in ({}, {option: value}):
        torch.manual_seed(0)
        found.append(described(decoder(config(**{**SMALL, **options}), levels, 3), latents))
    assert found[0] != found[1]


def test_every_option_is_tested() -> None:
    def names(config: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(config)}

    assert names(EncoderOptions) == set(ENCODERS)
    assert names(DecoderOptions) == set(DECODERS)
    assert names(ResidualOptions) == {"width", "blocks", "patch", "sees", "upsample"}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (EncoderOptions, {"levels": 3, "strides": (4, 8)}, "3 levels need at least 3 strides"),
        (EncoderOptions, {"strides": (4, 12)}, "must be powers of two, not 2, 4, 12"),
        (EncoderOptions, {"strides": (8, 4)}, "must grow from level to level"),
        (EncoderOptions, {"strides": (4, 4)}, "must grow from level to level"),
        (EncoderOptions, {"patch": 8}, "be at least the patch size"),
        (EncoderOptions, {"patch": 3}, "must be powers of two, not 3, 4, 8"),
        (EncoderOptions, {"attention_strides": (8, 12)}, "must be powers of two, not 8, 12"),
        (DecoderOptions, {"attention_strides": (3,)}, "must be powers of two, not 3"),
        (DecoderOptions, {"patch": 6}, "must be powers of two, not 6"),
        (ResidualOptions, {"patch": 3}, "must be powers of two, not 3"),
    ],
)
def test_invalid_options_are_refused(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("decoder", ["vqgan", "residual"])
def test_a_decoder_names_unsupported_levels(decoder: str) -> None:
    with pytest.raises(OptionError, match="strides must be powers of two, not 6"):
        choose("decoder", decoder).build([Level(0, 8, 6)], 3)
    with pytest.raises(OptionError, match="patches of 2 pixels are larger than the finest"):
        choose("decoder", decoder).build([Level(0, 8, 1)], 3)


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (512, 32), (64, 16), (12, 3), (10, 2), (7, 1), (1, 1)]
)
def test_groups_divide_the_channels_and_have_four_of_them(channels: int, groups: int) -> None:
    assert norm(channels).num_groups == groups


def test_attention_matches_its_formula() -> None:
    """x + C1(softmax(Q K^T / sqrt(C)) V), computed pixel by pixel in float64."""
    torch.manual_seed(0)
    attention, x = Attention(8).double(), torch.randn(2, 8, 3, 4).double()
    nn.init.normal_(attention.norm.weight)
    for image, found in zip(x, attention(x), strict=True):
        entered = attention.enter(attention.norm(image[None]))[0].flatten(1)
        queries, keys, values = entered.split(8)
        attended = torch.zeros(8, 12).double()
        for i in range(12):
            likeness = torch.stack([queries[:, i] @ keys[:, j] / math.sqrt(8) for j in range(12)])
            for j, weight in enumerate(likeness.softmax(0)):
                attended[:, i] += weight * values[:, j]
        expected = image + attention.leave(attended.view(1, 8, 3, 4))[0]
        assert torch.allclose(found, expected, atol=1e-10)


def test_permuting_the_pixels_permutes_the_attention() -> None:
    torch.manual_seed(0)
    attention, x, order = Attention(8), torch.randn(1, 8, 4, 4), torch.randperm(16)

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    assert torch.allclose(attention(permuted(x)), permuted(attention(x)), atol=1e-5)


def test_the_first_convolution_equals_one_over_folded_patches() -> None:
    """It equals a 3x3 convolution over patches folded into channels, with the same weights."""
    torch.manual_seed(0)
    enter, images = Encoder(EncoderOptions(patch=2, **SMALL), 3).enter, torch.randn(2, 3, 8, 12)
    weight = nn.functional.pixel_unshuffle(enter.weight, 2)
    folded = nn.functional.pixel_unshuffle(images, 2)
    expected = nn.functional.conv2d(folded, weight, enter.bias, padding=1)
    assert torch.allclose(enter(images), expected, atol=1e-5)


def test_shuffling_starts_as_nearest_neighbour() -> None:
    """Every 2x2 patch is constant for any input, and the patches differ."""
    torch.manual_seed(0)
    larger = shuffle(6, 5)(torch.randn(2, 6, 4, 3))
    assert larger.shape == (2, 5, 8, 6)
    assert torch.equal(
        larger, larger[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    assert larger[:, :, ::2, ::2].std() > 0.1
    constant = shuffle(6, 5)(torch.ones(1, 6, 8, 8))[:, :, 2:-2, 2:-2]
    assert torch.allclose(constant, constant[:, :, :1, :1].expand_as(constant), atol=1e-6)


def test_zero_initialized_blocks_start_as_identities_and_learn() -> None:
    torch.manual_seed(0)
    still, x = Block(8, 8, still=True), torch.randn(2, 8, 4, 4)
    assert torch.equal(still(x), x)
    assert not torch.equal(Block(8, 8)(x), x)
    for _ in range(2):
        still.zero_grad()
        (still(x) - x.flip(1)).square().mean().backward()
        with torch.no_grad():
            for parameter in still.parameters():
                parameter -= 0.1 * parameter.grad
    assert all(bool(parameter.grad.any()) for parameter in still.parameters())


@pytest.mark.slow
def test_narrow_models_train_in_channels_last_layout() -> None:
    """Runs in a separate process with memory checks, as for the strided convolutions of AREN."""
    code = (
        "import torch; from genkit_vqgan import *; from genkit_vqgan.encoder import Encoder\n"
        "from genkit_vqgan.residual import Residual; from genkit_vqgan.decoder import Decoder\n"
        "torch.set_num_threads(1)\n"
        "for width in (3, 8, 16):\n"
        "    encoder = Encoder(EncoderOptions(width=(width,), patch=1), 3)\n"
        "    decoders = [Residual(ResidualOptions(width=(width,), patch=1), encoder.levels, 3),\n"
        "                Decoder(DecoderOptions(width=(width,), patch=1), encoder.levels, 3)]\n"
        "    for module in (encoder, *decoders): module.to(memory_format=torch.channels_last)\n"
        "    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)\n"
        "    for decoder in decoders:\n"
        "        for _ in range(2): decoder(encoder(x)).square().mean().backward()\n"
    )
    environment = {**os.environ, "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_also_computes_in_bfloat16() -> None:
    encoder = Encoder(EncoderOptions(**SMALL), 3)
    decoders = [
        Decoder(DecoderOptions(**SMALL), encoder.levels, 3),
        Residual(ResidualOptions(**SMALL), encoder.levels, 3),
    ]
    for decoder in decoders:
        with torch.autocast("cpu", torch.bfloat16):
            images = decoder(encoder(torch.rand(2, 3, 32, 32)))
        images.float().square().mean().backward()
        assert all(bool(p.grad.isfinite().all()) for p in decoder.parameters())


PARTS: dict[str, Any] = {
    "encoder": {"name": "vqgan", "levels": 2, "width": [8], "latent_channels": 8},
    "decoder": {"name": "residual", "width": [8]},
}


def test_a_trained_model_reconstructs_the_same_once_loaded(tmp_path: Path) -> None:
    reporter: Silent = tiny_run(tmp_path / "run", PARTS)
    assert reporter.done
    assert all(math.isfinite(row["loss"]) for row in reporter.rows)
    tokenizer = genkit.load(tmp_path / "run" / "model.safetensors")
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    indices = tokenizer.encode(images)
    assert [tuple(level.shape) for level in indices] == [(2, 8, 12), (2, 4, 6)]
    genkit.save(tokenizer, tmp_path / "again.safetensors")
    again = genkit.load(tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(tokenizer(images).images, again(images).images)
    assert torch.allclose(tokenizer.decode(indices), tokenizer(images).images, atol=1e-5)
