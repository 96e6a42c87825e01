"""Adversarial training: losses, start, head start and ramp, limit, logits, clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, same, tiny_run, weights
from safetensors.torch import load_file

from genkit.run.options import TokenizerRun, layered, resolve_run
from genkit.tokenizer import Tokenizer
from genkit.training.adversary import (
    Adversary,
    discriminator_loss,
    gradient_penalty,
    tokenizer_loss,
)
from genkit.training.fit import check_fit
from genkit.training.verdicts import LogitMeans


def run(**settings: Any) -> TokenizerRun:
    return resolve_run(layered(None, TINY, settings))


def made_from(options: TokenizerRun, accelerator: Any) -> Adversary:
    return Adversary(options, accelerator, options.discriminator.build(3))


def test_an_accumulated_discriminator_is_clipped_once(tmp_path: Path) -> None:
    """Two accumulated halves of a batch give the discriminator the same step as the whole batch."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    real, made = torch.rand(2, 8, 3, 32, 32) * 2 - 1
    after = []
    for parts in (1, 2):
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        settings = {"discriminator": {"name": "patchgan", "norm": "none"}, "clip": 0.01}
        adversary = made_from(
            run(**settings, optimizer="sgd", accumulate=parts), Accelerator(cpu=True)
        )
        before = torch.cat([p.detach().flatten().clone() for p in adversary.plain.parameters()])
        for number, (a, b) in enumerate(zip(real.chunk(parts), made.chunk(parts), strict=True), 1):
            if number == 1:
                adversary.learner.begin(500)
            adversary.step(a, b, 500, last=number == parts)
        now = torch.cat([p.detach().flatten() for p in adversary.plain.parameters()])
        after.append(now - before)
    assert torch.cosine_similarity(*after, dim=0) > 0.999


def test_adversarial_losses_match_their_formulas() -> None:
    real, made = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    hinge = ((1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()) / 2
    assert torch.isclose(discriminator_loss("hinge", real, made), hinge)
    assert torch.isclose(discriminator_loss("non-saturating", real, made), hinge)
    assert torch.isclose(
        discriminator_loss("bce", real, made), (bce(real, ones) + bce(made, zeros)) / 2
    )
    assert torch.isclose(tokenizer_loss("hinge", made), -made.mean())
    assert torch.isclose(tokenizer_loss("bce", made), bce(made, ones))
    assert torch.isclose(tokenizer_loss("non-saturating", made), bce(made, ones))


def test_the_discriminator_starts_and_ramps(tmp_path: Path) -> None:
    settings = {
        "discriminator": "patchgan",
        "discriminator_start": 2,
        "discriminator_head_start": 2,
        "discriminator_ramp": 4,
        "adversarial_weight": 0.5,
        "log_every": 1,
    }
    metrics = tiny_run(tmp_path / "run", settings).rows
    for name in ("discriminator", "real_score", "made_score", "score_gap"):
        assert [name in row for row in metrics] == [False] * 2 + [True] * 6
    for row in metrics[2:]:
        assert row["score_gap"] == pytest.approx(row["real_score"] - row["made_score"], abs=1e-6)
    for name in ("adversarial", "adversarial_weight"):
        assert [name in row for row in metrics] == [False] * 4 + [True] * 4
    assert [row["adversarial_weight"] for row in metrics[4:]] == [0.125, 0.25, 0.375, 0.5]

    from accelerate import Accelerator

    adversary = made_from(run(**settings), Accelerator(cpu=True))
    assert [adversary.weight(step) for step in (0, 3, 4, 5, 7, 100)] == [
        0,
        0,
        0.125,
        0.25,
        0.5,
        0.5,
    ]


def test_the_discriminator_alone_learns_in_its_head_start(tmp_path: Path) -> None:
    settings = {
        "discriminator": {"name": "patchgan", "norm": "none"},
        "discriminator_head_start": 8,
        "accumulate": 2,
    }
    tiny_run(tmp_path / "plain", {"accumulate": 2})
    tiny_run(tmp_path / "run", settings)
    tiny_run(tmp_path / "late", settings, {"discriminator_head_start": 7})
    assert same(weights(tmp_path / "run"), weights(tmp_path / "plain"))
    assert not same(weights(tmp_path / "late"), weights(tmp_path / "plain"))
    judges = []
    for step in ("step-00000004", "step-00000008"):
        state = load_file(tmp_path / "run" / "checkpoints" / step / "tensors.safetensors")
        prefix = "/modules/discriminator/"
        judges.append({name: x for name, x in state.items() if name.startswith(prefix)})
    # The hinge loss does not move the last bias while every score is within the margins.
    moved = [not torch.equal(x, judges[1][name]) for name, x in judges[0].items() if x.ndim > 1]
    assert moved
    assert all(moved)


def test_adversarial_gradients_reach_only_the_images() -> None:
    from accelerate import Accelerator

    settings = run(discriminator="patchgan", adversarial_adaptive=True)
    adversary = made_from(settings, Accelerator(cpu=True))
    made = torch.rand(2, 3, 32, 32).requires_grad_()
    adversary.loss(made, (made - 1).abs().mean(), 600)[0].backward()
    assert made.grad is not None
    assert made.grad.any()
    assert all(
        parameter.grad is None and parameter.requires_grad
        for parameter in adversary.plain.parameters()
    )


def test_the_adaptive_weight_balances_both_gradients_at_the_image() -> None:
    from accelerate import Accelerator

    settings = {
        "discriminator": "patchgan",
        "adversarial_adaptive": True,
        "adversarial_weight": 1.0,
        "adversarial_limit": 1e6,
        "discriminator_head_start": 0,
        "discriminator_ramp": 0,
    }
    adversary = made_from(run(**settings), Accelerator(cpu=True))
    made = torch.rand(2, 3, 32, 32).requires_grad_()
    reconstruction = (made - 1).square().mean()
    wanted = torch.autograd.grad(reconstruction, made, retain_graph=True)[0].norm()
    got = torch.autograd.grad(adversary.loss(made, reconstruction, 0)[0], made)[0].norm()
    # Up to the epsilon in the denominator.
    assert 0.5 * wanted < got < 1.01 * wanted


def test_the_adaptive_factor_is_limited() -> None:
    """A flat discriminator asks for a huge factor, a steep one for a small one."""
    from accelerate import Accelerator

    settings = {
        "discriminator": {"name": "patchgan", "norm": "none"},
        "adversarial_adaptive": True,
        "adversarial_weight": 0.5,
        "discriminator_head_start": 0,
        "discriminator_ramp": 0,
    }
    made = torch.rand(2, 3, 32, 32).requires_grad_()
    likeness = (made - 1).abs().mean()
    for limits, wanted in (({}, 5.0), ({"adversarial_limit": 3.0}, 1.5)):
        adversary = made_from(run(**settings, **limits), Accelerator(cpu=True))
        head = [each for each in adversary.plain.parameters() if each.ndim > 1][-1]
        with torch.no_grad():
            head.mul_(1e-3)
        assert float(adversary.loss(made, likeness, 0)[1]) == wanted
        with torch.no_grad():
            head.mul_(1e7)
        assert 0 < float(adversary.loss(made, likeness, 0)[1]) < 0.5


def test_lecam_matches_its_formula_with_running_means() -> None:
    verdicts, decay = LogitMeans(0.9), 0.9
    means = [0.0, 0.0]
    for step in range(1, 6):
        real, made = torch.randn(3, 1, 2, 2) + 1, torch.randn(3, 1, 2, 2) - 1
        # Bias-corrected, so that the initial zeros do not count.
        now = [each / (1 - decay ** max(1, step - 1)) for each in means]
        expected = (real - now[1]).clamp(min=0).square().mean()
        expected += (now[0] - made).clamp(min=0).square().mean()
        assert torch.isclose(verdicts.loss(real, made), expected)
        verdicts.update(real, made)
        means = [
            decay * mean + (1 - decay) * float(logits.mean())
            for mean, logits in zip(means, (real, made), strict=True)
        ]


def test_r1_is_the_squared_gradient_norm() -> None:
    """For logits that are linear in the image, the penalty is half the squared weights."""
    weight = torch.randn(1, 3, 8, 8, requires_grad=True)
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    real = (images * weight).sum((1, 2, 3)).view(4, 1, 1, 1)
    penalty = gradient_penalty(real, images)
    assert torch.isclose(penalty, weight.square().sum() / 2)
    penalty.backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, weight)


def test_every_discriminator_loss_is_logged(tmp_path: Path) -> None:
    settings = {
        "discriminator": "patchgan",
        "discriminator_head_start": 2,
        "lecam_weight": 0.1,
        "r1_weight": 1.0,
        "r1_every": 4,
        "log_every": 1,
    }
    metrics = tiny_run(tmp_path / "run", settings).rows
    assert ["r1" in row for row in metrics] == [True, False, False, False] * 2
    assert all(row["lecam"] > 0 for row in metrics)
    tiny_run(tmp_path / "plain", {"discriminator": "patchgan", "discriminator_head_start": 2})
    one, two = (
        torch.cat([p.flatten() for p in weights(tmp_path / name).values() if p.is_floating_point()])
        for name in ("run", "plain")
    )
    assert not torch.equal(one, two)


class Lazy(torch.nn.Module):
    """A discriminator with a frozen part whose statistics must not change."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.frozen = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.BatchNorm2d(4))
        self.frozen.requires_grad_(False).eval()
        self.head = torch.nn.Conv2d(4, 1, 1)

    def forward(self, images: torch.Tensor) -> Any:
        return self.head(self.frozen(images))


def test_a_frozen_part_of_a_discriminator_stays_frozen() -> None:
    from accelerate import Accelerator

    options, lazy = run(discriminator="patchgan"), Lazy(None)
    before = {name: value.clone() for name, value in lazy.frozen.state_dict().items()}
    check_fit(options, Tokenizer(options), None, lazy)
    assert lazy.training
    assert not lazy.frozen.training
    assert not lazy.frozen[1].training
    adversary = Adversary(options, Accelerator(cpu=True), lazy)
    images, made = torch.rand(2, 2, 3, 32, 32).unbind()
    for step in range(3):
        adversary.learner.begin(step)
        adversary.loss(made.clone().requires_grad_(), made.mean(), step)[0].backward()
        adversary.step(images, made, step)
    assert all(p.grad is None and not p.requires_grad for p in lazy.frozen.parameters())
    assert all(p.requires_grad for p in lazy.head.parameters())
    after = lazy.frozen.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
