"""Recomputing blocks: the same gradients and statistics from less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, comparable, flags, genkit_command, same, tiny_run, weights
from option_looks import LEVELS
from torch import Tensor, nn

from genkit.interfaces import Conditioning
from genkit.layout import Grid, Layout
from genkit.settings import choose
from genkit.training import recompute as recomputing
from genkit.training.adversary import gradient_penalty
from genkit.training.prior import Fit
from genkit.training.recompute import blocks, recompute

SMALL = {"width": [8, 8], "latent_channels": 8}
IMAGES = [3], [(3, 3, 32, 32)]
LATENTS = [LEVELS, 3], [(3, 8, 8, 8), (3, 8, 4, 4)]
# Kind, settings, and how many blocks are recomputed one by one.
NETS: dict[str, tuple[str, Mapping[str, Any], int]] = {
    "aren": ("encoder", {**SMALL, "base_channels": 8, "norm": "batch", "attention": "pixel"}, 7),
    "vqgan": ("encoder", {**SMALL, "blocks": 2}, 13),
    "timm": ("encoder", {"model": "test_resnet", "latent_channels": 8}, 3),
    "mirror": ("decoder", {"width": [8], "norm": "group"}, 2),
    "vqgan-decoder": ("decoder", {"name": "vqgan", "width": [8], "adaptive": True}, 9),
    "residual": ("decoder", {"width": [8]}, 4),
    "patchgan": ("discriminator", {"norm": "batch", "dropout": 0.5}, 1),
    "stylegan": ("discriminator", {"width": [4, 8, 8]}, 4),
    "multiscale": ("discriminator", {}, 2),
}


def made(name: str) -> nn.Module:
    kind, settings, _ = NETS[name]
    given = LATENTS[0] if kind == "decoder" else IMAGES[0]
    torch.manual_seed(0)
    net: nn.Module = choose(kind, {"name": name, **settings}).build(*given)
    return net.train()


def inputs(name: str) -> Any:
    shapes = (LATENTS if NETS[name][0] == "decoder" else IMAGES)[1]
    torch.manual_seed(1)
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    return tensors if len(tensors) > 1 else tensors[0]


def passed(net: nn.Module, given: Any) -> list[Tensor]:
    """Outputs, the gradients of inputs and parameters, and the buffers, after two passes."""
    leaves = [*(given if isinstance(given, list) else [given]), *net.parameters()]
    found: list[Tensor] = []
    for seed in range(2):
        torch.manual_seed(seed)
        out = net(given)
        outputs = out if isinstance(out, list) else [out]
        torch.stack([each.square().mean() for each in outputs]).sum().backward()
        found += outputs
    return [*found, *(x.grad for x in leaves if x.grad is not None), *net.buffers()]


@pytest.mark.parametrize("name", NETS)
def test_gradients_and_statistics_stay_the_same(name: str) -> None:
    plain = made(name)
    again = copy.deepcopy(plain)
    assert len(blocks(again)) == NETS[name][2]
    recompute(again)
    assert [*again.state_dict()] == [*plain.state_dict()]
    expected, found = passed(plain, inputs(name)), passed(again, inputs(name))
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_priors_draw_the_same_noise_and_dropout_again(name: str) -> None:
    settings = {"name": name, "width": 32, "heads": 2, "depth": 2, "dropout": 0.5}
    layout = Layout([Grid(4, 4, 1, 7), Grid(2, 2, 1, 5)])
    sequence = torch.arange(6 * 20).view(6, 20) % 5

    def gradients(change: Callable[[nn.Module], None]) -> list[Tensor]:
        torch.manual_seed(0)
        fit = Fit(choose("prior", {**settings, "token_noise": 0.5}).build(layout, Conditioning(3)))
        nn.init.normal_(fit.model.codes.head.weight)
        change(fit)
        fit.train()(sequence, torch.arange(6) % 3, 7).backward()
        return [each.grad for each in fit.parameters() if each.grad is not None]

    expected = gradients(lambda fit: None)
    assert any(bool(each.any()) for each in expected)
    # Block by block, and the loss as a whole, which is so for a net without blocks.
    for change in (recompute, _whole):
        for one, other in zip(gradients(change), expected, strict=True):
            assert torch.equal(one, other)


def _whole(fit: nn.Module) -> None:
    vars(fit)["forward"] = partial(recomputing._recomputed, fit, fit.forward)


class Counting(nn.Module):
    """A block whose result depends on how often it was called, as that of spectral norm does."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.inner(x).tanh() / self.calls


def test_a_block_starts_again_with_the_buffers_that_it_had() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Counting(), Counting())
    again = copy.deepcopy(plain)
    recompute(again)
    x = torch.randn(3, 4, requires_grad=True)
    other_x = x.detach().clone().requires_grad_()
    for one, other in zip(passed(again, x), passed(plain, other_x), strict=True):
        assert torch.equal(one, other)
    assert [float(each.calls) for each in again] == [3.0, 3.0]


@pytest.mark.parametrize("name", ["patchgan", "stylegan"])
def test_second_derivatives_stay_the_same(name: str) -> None:
    """R1 takes a gradient of a gradient."""
    plain = made(name)
    again = copy.deepcopy(plain)
    recompute(again)
    found = []
    for net in (plain, again):
        images = inputs(name)
        torch.manual_seed(2)
        gradient_penalty(net(images), images).backward()
        found.append([each.grad for each in net.parameters() if each.grad is not None])
    assert len(found[0]) > 3
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """With a discriminator that is frozen for a pass, two gradients through it, and R1."""
    settings = {
        "encoder": {"norm": "batch"},
        "discriminator": {"name": "stylegan", "width": [4, 4]},
        "discriminator_head_start": 1,
        "adversarial_adaptive": True,
        "r1_weight": 0.1,
        "r1_every": 2,
        "accumulate": 2,
        "steps": 4,
    }
    tiny_run(tmp_path / "plain", settings)
    tiny_run(tmp_path / "again", settings, {"recompute": True})
    assert same(weights(tmp_path / "again"), weights(tmp_path / "plain"))
    assert comparable(tmp_path / "again") == comparable(tmp_path / "plain")


@pytest.mark.slow
def test_two_processes_end_with_the_same_bits(tmp_path: Path) -> None:
    """Batch norms exchange their moments a second time, in the backward pass."""
    settings = {
        **TINY,
        **{"encoder": {"norm": "batch", "width": [8, 8]}, "batch_size": 2, "steps": 4},
        **{"discriminator": "stylegan", "discriminator_start": 1, "discriminator_head_start": 1},
    }
    for name, more in (("plain", []), ("again", ["--recompute"])):
        out = tmp_path / name
        done = genkit_command("train", *flags(settings), "--processes", "2", "--out", out, *more)
        assert done.returncode == 0, done.stderr
    assert same(weights(tmp_path / "again"), weights(tmp_path / "plain"))
    assert comparable(tmp_path / "again") == comparable(tmp_path / "plain")
