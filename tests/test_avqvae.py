"""AREN, pixel attention, fusion and decoder: the sizes, shapes and formulas of docs/paper.md."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import genkit_command
from genkit_avqvae import ARENOptions, HierarchicalOptions, MirrorOptions, PixelOptions
from genkit_avqvae.aren import AREN
from genkit_avqvae.attention import Pixel
from genkit_avqvae.blocks import Down, Fold, Halve, Identity, Unfold, Up
from genkit_avqvae.decoder import Mirror
from genkit_avqvae.fusion import Hierarchical
from torch import nn

import genkit
from genkit.interfaces import Level
from genkit.ops import GroupNorm
from genkit.run.options import layered, resolve_run
from genkit.settings import choose, resolve

PAPER: dict[str, Any] = {
    "width": (128,),
    "blocks": 2,
    "norm": "batch",
    "patch": 1,
    "strides": (8, 16, 32),
    "base_stride": 4,
    "base_channels": 256,
    "latent_channels": 256,
}


DECODER: dict[str, Any] = {"norm": "batch", "patch": 1, "sees": "finest"}


def counted(module: nn.Module) -> int:
    """The number of parameters and batch norm statistics; the paper counts both."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    return sum(tensor.numel() for tensor in [*module.parameters(), *buffers])


def test_blocks_have_the_papers_parameters() -> None:
    assert counted(Identity(128, "batch")) == 313_216
    assert counted(Down(128, 128, "batch")) == 330_240


def test_aren_has_the_papers_parameters() -> None:
    attention = choose("attention", {"name": "pixel", "dim": 96})
    encoder = AREN(ARENOptions(levels=2, attention=attention, **PAPER), 3)
    assert counted(encoder.base) == 1_949_952
    levels = [
        sum(
            counted(parts[level])
            for parts in (encoder.trunks, encoder.projections, encoder.attentions)
        )
        for level in range(2)
    ]
    assert levels == [1_309_504, 2_266_176]
    assert counted(encoder.attentions[0]) == 24_768


def test_plain_fusion_and_decoder_have_the_papers_parameters() -> None:
    fine, coarse = Level(0, 256, 8), Level(1, 256, 16)
    fusion = Hierarchical(HierarchicalOptions(norm="batch"), fine, coarse)
    assert counted(fusion.resize) == 2_498_048
    assert counted(fusion.mix) == 131_328
    assert (
        counted(Mirror(MirrorOptions(width=(128,), blocks=3, **DECODER), [fine, coarse], 3))
        == 4_054_019
    )


def test_exact_fusion_and_decoder_have_the_papers_parameters() -> None:
    fine, coarse = Level(0, 256, 8), Level(1, 256, 16)
    fusion = Hierarchical(HierarchicalOptions(width=208, blocks=2, norm="batch"), fine, coarse)
    assert counted(fusion.resize) == 2_528_864
    assert counted(fusion.mix) == 119_040
    assert (
        counted(Mirror(MirrorOptions(width=(64, 128, 224), blocks=1, **DECODER), [fine, coarse], 3))
        == 4_256_963
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_aren_gives_each_level_its_stride(levels: int, size: tuple[int, int]) -> None:
    encoder = AREN(
        ARENOptions(
            levels=levels,
            width=(8,),
            latent_channels=6,
            attention=choose("attention", "pixel"),
        ),
        3,
    )
    latents = encoder(torch.randn(2, 3, *size))
    assert [level.stride for level in encoder.levels] == [4, 8, 16][:levels]
    assert [tuple(x.shape) for x in latents] == [
        (2, 6, size[0] // s, size[1] // s) for s in (4, 8, 16)[:levels]
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (4, 8), "levels": 3},
        {"strides": (4, 12)},
        {"strides": (2, 8)},
        {"strides": (4, 4)},
        {"patch": 3},
        {"patch": 8},
    ],
)
def test_invalid_strides_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="strides"):
        ARENOptions(**options)


@pytest.mark.parametrize("channels", [3, 20])
def test_downsampling_is_a_strided_1x1_convolution(channels: int) -> None:
    torch.manual_seed(0)
    halve, x = Halve(channels, 5), torch.randn(2, channels, 6, 8)
    expected = nn.functional.conv2d(x, halve.weight, halve.bias, stride=2)
    assert torch.allclose(halve(x), expected, atol=1e-6)


def test_narrow_models_train_in_channels_last_layout() -> None:
    """Runs in a separate process with memory checks: this crashed once (oneDNN issue 6035)."""
    code = (
        "import torch; from genkit_avqvae.blocks import Down; torch.set_num_threads(1)\n"
        "for width in (3, 4, 8, 12, 16):\n"
        "    down = Down(width, width, 'batch').to(memory_format=torch.channels_last)\n"
        "    x = torch.randn(16, width, 64, 64).to(memory_format=torch.channels_last)\n"
        "    for _ in range(3): down(x.clone().requires_grad_()).square().mean().backward()\n"
    )
    environment = {**os.environ, "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_up_doubles_and_down_halves() -> None:
    assert Up(4, 6, "batch")(torch.randn(1, 4, 5, 7)).shape == (1, 6, 10, 14)
    assert Down(4, 6, "batch")(torch.randn(1, 4, 10, 14)).shape == (1, 6, 5, 7)


@pytest.mark.parametrize("norm", ["logn", "div_n", "none"])
@pytest.mark.parametrize("across", [False, True])
def test_pixel_attention_matches_its_formula(norm: Any, across: bool) -> None:
    """V1 + A V2, computed pixel by pixel in float64."""
    torch.manual_seed(0)
    attention = Pixel(PixelOptions(dim=8, norm=norm), 6).double()
    features, values = torch.randn(1, 6, 3, 4).double(), torch.randn(1, 5, 3, 4).double()
    context, others = (
        (torch.randn(1, 6, 2, 3).double(), torch.randn(1, 5, 2, 3).double())
        if across
        else (features, values)
    )
    pixels = context[0, 0].numel()
    bias, divisor = (
        (-math.log(pixels), 1) if norm == "logn" else (0.0, pixels if norm == "div_n" else 1)
    )
    queries, keys = attention.query(features)[0].flatten(1), attention.key(context)[0].flatten(1)
    expected = values[0].flatten(1).clone()
    for i in range(expected.shape[1]):
        for j in range(pixels):
            weight = torch.sigmoid(queries[:, i] @ keys[:, j] / math.sqrt(8) + bias) / divisor
            expected[:, i] += weight * others[0].flatten(1)[:, j]
    found = attention(features, values, context, others) if across else attention(features, values)
    assert torch.allclose(found[0].flatten(1), expected, atol=1e-10)


def test_logn_rows_sum_to_about_one_and_unnormalized_rows_to_n_half() -> None:
    torch.manual_seed(0)
    features, ones = torch.randn(1, 16, 32, 32), torch.ones(1, 1, 32, 32)
    with torch.no_grad():
        sums = {
            norm: float((Pixel(PixelOptions(norm=norm), 16)(features, ones) - 1).mean())
            for norm in ("logn", "none")
        }
    assert 0.5 < sums["logn"] < 2
    assert 300 < sums["none"] < 700


def test_permuting_the_pixels_permutes_the_attention() -> None:
    torch.manual_seed(0)
    attention = Pixel(PixelOptions(), 6)
    features, values, order = torch.randn(1, 6, 4, 4), torch.randn(1, 5, 4, 4), torch.randperm(16)

    def permuted(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    assert torch.allclose(
        attention(permuted(features), permuted(values)),
        permuted(attention(features, values)),
        atol=1e-5,
    )


def test_folding_matches_the_library_and_accepts_empty_batches() -> None:
    x = torch.randn(2, 3, 8, 12)
    folded = Fold(2)(x)
    assert torch.equal(folded, nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(Unfold(2)(folded), x)
    assert Unfold(2)(Fold(2)(x[:0])).shape == (0, 3, 8, 12)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_and_norms_keep_the_shapes(norm: Any, patch: int) -> None:
    encoder = AREN(
        resolve(
            ARENOptions, {"width": (8, 6, 4), "norm": norm, "patch": patch, "latent_channels": 6}
        ),
        3,
    )
    decoder = Mirror(MirrorOptions(width=(8, 6, 4), norm=norm, patch=patch), encoder.levels, 3)
    latents = encoder(torch.randn(2, 3, 32, 48))
    assert [tuple(x.shape) for x in latents] == [(2, 6, 8, 12), (2, 6, 4, 6)]
    assert decoder(latents).shape == (2, 3, 32, 48)
    norms = {
        type(module)
        for part in (encoder, decoder)
        for module in part.modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
    }
    assert norms == {"batch": {nn.BatchNorm2d}, "group": {GroupNorm}, "none": set()}[norm]


@pytest.mark.parametrize(
    "size", [pytest.param((256, 256), marks=pytest.mark.slow), (64, 64), (64, 96)]
)
@pytest.mark.parametrize("preset", ["ah-vqvae-3", "ah-vqvae-3-exact"])
def test_every_stage_of_the_papers_models_has_its_shape(preset: str, size: tuple[int, int]) -> None:
    """Base, AREN 1 to 3, RZ2 and mix of every level, decoder: Table 1 of the paper."""
    torch.manual_seed(0)
    tokenizer = genkit.Tokenizer(resolve_run(layered(preset))).eval()
    (height, width), shapes = size, {}
    encoder: Any = tokenizer.encoder
    stages = {"base": encoder.base, "decoder": tokenizer.decoder}
    for level in range(3):
        stages |= {
            f"trunk {level}": encoder.trunks[level],
            f"projection {level}": encoder.projections[level],
            f"attention {level}": encoder.attentions[level],
        }
        if level < 2:
            fusion: Any = tokenizer.fusions[level]
            stages |= {f"resize {level}": fusion.resize, f"mix {level}": fusion.mix}
    for name, module in stages.items():
        module.register_forward_hook(
            lambda module, args, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    with torch.no_grad():
        out = tokenizer(torch.zeros(1, 3, *size))

    def at(channels: int, stride: int) -> tuple[int, ...]:
        return channels, height // stride, width // stride

    expected = {"base": at(256, 4), "decoder": at(3, 1)}
    resized = 208 if preset.endswith("exact") else 256
    for level, stride in enumerate((8, 16, 32)):
        expected |= {
            f"trunk {level}": at(128, stride),
            f"projection {level}": at(256, stride),
            f"attention {level}": at(256, stride),
        }
        if level < 2:
            expected |= {f"resize {level}": at(resized, stride), f"mix {level}": at(256, stride)}
        assert out.indices[level].shape[1:] == at(256, stride)[1:]
    assert shapes == expected


def test_a_level_can_attend_to_the_coarser_level() -> None:
    torch.manual_seed(0)
    kinds = {}
    for attend in ("self", "coarser"):
        torch.manual_seed(0)
        part = choose("attention", "pixel")
        encoder = AREN(ARENOptions(width=(8,), attention=part, attend=attend), 3).eval()
        kinds[attend] = encoder(torch.ones(1, 3, 32, 32) * torch.linspace(-1, 1, 32))
    assert not torch.allclose(kinds["self"][0], kinds["coarser"][0])
    assert torch.allclose(kinds["self"][1], kinds["coarser"][1])


def test_the_decoder_uses_the_configured_levels() -> None:
    levels = [Level(0, 4, 4), Level(1, 4, 8)]
    latents = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)]
    other = [latents[0], torch.randn(1, 4, 4, 4)]
    for sees, same in (("finest", True), ("all", False)):
        decoder = Mirror(MirrorOptions(sees=sees, width=(8,)), levels, 3).eval()
        assert torch.allclose(decoder(latents), decoder(other)) is same


# Module names as in `genkit inspect`, and their sizes in both versions of AH-VQVAE.
MODULES = {
    "ah-vqvae-exact": {
        "fusions.0": 2_528_864 + 119_040,
        "quantizers.0": 32_768,
        "quantizers.1": 32_768,
        "decoder": 4_256_963,
    },
    "ah-vqvae": {
        "fusions.0": 2_498_048 + 131_328,
        "quantizers.0": 131_072,
        "quantizers.1": 131_072,
        "decoder": 4_054_019,
    },
}
TOTALS = {
    "h-vqvae-exact": 12_446_499,
    "ah-vqvae-exact": 12_496_035,
    "a-vqvae-exact": 7_549_187,
    "h-vqvae": 12_421_635,
    "ah-vqvae": 12_471_171,
    "a-vqvae": 7_510_339,
}


@pytest.mark.parametrize("preset", TOTALS)
def test_presets_have_the_papers_totals(preset: str, tmp_path: Path) -> None:
    """Totals of the model file, as in `genkit inspect`: parameters and batch norm statistics."""
    tokenizer = genkit.Tokenizer(resolve_run(layered(preset)))
    genkit.save(tokenizer, tmp_path / "model.safetensors")
    parameters = genkit.inspect(tmp_path / "model.safetensors")["parameters"]
    assert parameters["total"] == sum(parameters["modules"].values()) == TOTALS[preset]
    for module, count in MODULES.get(preset, {}).items():
        inside = [
            n for name, n in parameters["modules"].items() if f"{name}.".startswith(f"{module}.")
        ]
        assert sum(inside) == count


@pytest.mark.slow
def test_inspect_counts_the_papers_patchgan(tmp_path: Path) -> None:
    command = ["train", "--preset", "a-vqvae,paper-patchgan", "--steps", "0", "--data.heldout", "8"]
    assert genkit_command(*command, "--out", "run", cwd=tmp_path).returncode == 0
    done = genkit_command("inspect", "run", "--json", cwd=tmp_path)
    parameters = json.loads(done.stdout)["parameters"]
    assert parameters["total"] == TOTALS["a-vqvae"]
    assert parameters["discriminator"] == 412_101
    shown = genkit_command("inspect", "run", cwd=tmp_path).stdout
    assert "discriminator: 412,101 parameters and statistics" in shown
    alone = genkit.inspect(tmp_path / "run" / "model.safetensors")["parameters"]
    assert alone == parameters


def test_the_papers_patchgan_has_its_parameters_and_shape() -> None:
    discriminator = resolve_run(layered("ah-vqvae,paper-patchgan")).discriminator.build(3)
    assert counted(discriminator) == 412_101
    assert discriminator(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 8, 8)


def test_the_three_level_preset_reconstructs_any_fitting_size() -> None:
    tokenizer = genkit.Tokenizer(resolve_run(layered("ah-vqvae-3"))).eval()
    images = torch.zeros(1, 3, 64, 96)
    assert [tuple(level.shape) for level in tokenizer.encode(images)] == [
        (1, 8, 12),
        (1, 4, 6),
        (1, 2, 3),
    ]
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
