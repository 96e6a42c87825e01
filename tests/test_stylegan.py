"""StyleGAN2's discriminator and multi-scale ones: formulas, gradients, a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run
from genkit_discriminators import MultiscaleOptions, PatchGANOptions, StyleGANOptions
from genkit_discriminators.multiscale import Multiscale
from genkit_discriminators.patchgan import PatchGAN
from genkit_discriminators.stylegan import Blur, StyleGAN, deviation
from torch import Tensor, nn
from torch.nn import functional as F

import genkit
from genkit import testing
from genkit.settings import resolve
from genkit.training.adversary import discriminator_loss

SMALL = StyleGANOptions(width=(6, 8, 10))


def counted(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("options", [{"width": (8,)}, {"width": (6, 8, 10), "group": 1}])
def test_stylegan_satisfies_the_contract(options: dict[str, Any]) -> None:
    testing.check_discriminator("stylegan", **options)


def test_stylegan_has_its_parameters() -> None:
    def conv(channels: int, out: int, size: int) -> int:
        return channels * out * size**2 + out

    def block(channels: int, out: int) -> int:
        return conv(channels, channels, 3) + conv(channels, out, 3) + channels * out

    body = conv(3, 6, 1) + block(6, 8) + block(8, 10)
    head = conv(10, 10, 3) + (10 * 16 * 10 + 10) + (10 + 1)
    assert counted(StyleGAN(dataclasses.replace(SMALL, group=1), 3)) == body + head
    # The standard deviation is one more channel.
    assert counted(StyleGAN(SMALL, 3)) == body + head + 10 * 9


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (17, 30), (1, 1)])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_each_image_of_any_size_gets_one_logit(size: tuple[int, int], images: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(images, 3, *size, requires_grad=True)
    logits = StyleGAN(SMALL, 3)(x)
    assert logits.shape == (images, 1, 1, 1)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(bool(each.any()) for each in x.grad)


@pytest.mark.parametrize(
    ("images", "group", "members"), [(8, 4, 4), (6, 4, 3), (4, 8, 4), (5, 4, 1), (1, 4, 1)]
)
def test_the_deviation_matches_its_formula(images: int, group: int, members: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(images, 3, 2, 5).double()
    groups = images // members
    expected = torch.zeros(images)
    for first in range(groups):
        inside = [first * members + k for k in range(members)]
        deviations = []
        for feature in x.flatten(1).unbind(1):
            values = [float(feature[image]) for image in inside]
            mean = sum(values) / members
            variance = sum((value - mean) ** 2 for value in values) / members
            deviations.append(math.sqrt(variance + 1e-8))
        expected[inside] = sum(deviations) / len(deviations)
    found = deviation(x, group)
    assert found.shape == (images, 1, 2, 5)
    assert torch.allclose(found, expected[:, None, None, None].expand_as(found), atol=1e-5)


def test_identical_images_are_distinguished_from_varied_ones() -> None:
    torch.manual_seed(0)
    varied = torch.randn(4, 3, 16, 16)
    alike = varied[:1].repeat(4, 1, 1, 1)
    with_it, without = StyleGAN(SMALL, 3), StyleGAN(dataclasses.replace(SMALL, group=1), 3)
    assert not torch.allclose(with_it(varied)[0], with_it(alike)[0], atol=1e-5)
    assert torch.allclose(without(varied)[0], without(alike)[0], atol=1e-5)


@pytest.mark.parametrize(("option", "value"), [("width", (6, 8, 12)), ("group", 2)])
def test_every_option_changes_it(option: str, value: Any) -> None:
    images, found = torch.randn(4, 3, 16, 16), []
    for options in (SMALL, dataclasses.replace(SMALL, **{option: value})):
        torch.manual_seed(0)
        found.append(StyleGAN(options, 3)(images))
    assert not torch.equal(*found)
    assert {field.name for field in dataclasses.fields(StyleGANOptions)} == {"width", "group"}


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 2)])
def test_blurring_keeps_constants_and_matches_its_filter(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for stride, padding in ((1, (2, 3)), (2, (1, 2))):
        blur = Blur(stride, padding).double()
        assert not blur.state_dict()
        assert torch.allclose(
            blur(torch.full((1, 2, *size), 3.0).double()), torch.tensor(3.0).double()
        )
        x = torch.randn(1, 2, *size).double()
        padded = F.pad(x, padding * 2, "replicate")[0, 1]
        found = blur(x)[0, 1]
        for i in range(found.shape[0]):
            for j in range(found.shape[1]):
                expected = sum(
                    (1, 3, 3, 1)[k] * (1, 3, 3, 1)[m] * padded[stride * i + k, stride * j + m] / 64
                    for k in range(4)
                    for m in range(4)
                )
                assert torch.allclose(found[i, j], torch.as_tensor(expected))


def test_mirrored_images_have_mirrored_features() -> None:
    """Main path and skip of a block are aligned: mirrored weights give mirrored features."""
    torch.manual_seed(0)
    block, x = StyleGAN(SMALL, 3).blocks[0], torch.randn(1, 6, 8, 12)
    expected = block(x).flip(3)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(3)
    assert torch.allclose(block(x.flip(3)), expected, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "discriminator",
    [StyleGAN(SMALL, 3), Multiscale(resolve(MultiscaleOptions, {}), 3)],
    ids=["style", "scales"],
)
def test_a_gradient_penalty_has_gradients(precision: Any, discriminator: nn.Module) -> None:
    """R1 (Mescheder et al. 2018): |dD/dx|^2 at real images, differentiated by the weights."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = discriminator(images).float()
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    discriminator.zero_grad()
    gradient.square().sum((1, 2, 3)).mean().backward()
    weights = [parameter for parameter in discriminator.parameters() if parameter.ndim > 1]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)
    assert all(bool(weight.grad.any()) for weight in weights)


def test_several_scales_are_the_mean_of_their_losses() -> None:
    """The loss over all logits equals the mean of the scales' losses, as in Eq. 3 of the paper."""
    torch.manual_seed(0)
    both, images = Multiscale(resolve(MultiscaleOptions, {}), 3).eval(), torch.randn(2, 3, 64, 32)
    halved = F.avg_pool2d(images, 3, 2, padding=1, count_include_pad=False)
    scales: list[Tensor] = [both.scales[0](images), both.scales[1](halved)]
    assert [tuple(x.shape[2:]) for x in scales] == [(8, 4), (4, 2)]
    logits = both(images)
    assert logits.shape == (2, 1, 16, 4)
    for kind in ("hinge", "bce"):
        expected = sum(discriminator_loss(kind, x, -x) for x in scales) / 2
        assert torch.allclose(discriminator_loss(kind, logits, -logits), torch.as_tensor(expected))


@pytest.mark.parametrize("options", [{"scales": 1}, {"scales": 3}, {"each": "stylegan"}])
def test_several_scales_satisfy_the_contract(options: dict[str, Any]) -> None:
    testing.check_discriminator("multiscale", **options)
    patch = counted(PatchGAN(PatchGANOptions(), 3))
    if "scales" in options:
        built = Multiscale(resolve(MultiscaleOptions, options), 3)
        assert counted(built) == options["scales"] * patch


@pytest.mark.parametrize(
    "discriminator",
    [
        {"name": "stylegan", "width": [8, 8]},
        {"name": "multiscale", "each": {"name": "patchgan", "width": [8], "strides": [2, 1]}},
    ],
)
def test_a_model_trained_against_it_reconstructs_the_same_once_loaded(
    discriminator: dict[str, Any], tmp_path: Path
) -> None:
    early = {"discriminator_head_start": 1, "discriminator_ramp": 2}
    reporter = tiny_run(tmp_path / "run", {"discriminator": discriminator, **early})
    assert reporter.done
    assert all(math.isfinite(row["discriminator"]) for row in reporter.rows)
    tokenizer = genkit.load(tmp_path / "run" / "model.safetensors")
    genkit.save(tokenizer, tmp_path / "again.safetensors")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    again = genkit.load(tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(tokenizer(images).images, again(images).images)
