"""The adversarial side of training: the discriminator, its optimizer, and both sides' losses."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.distributed import all_sum, processes
from genkit.run.options import TokenizerRun
from genkit.training.compiling import eager
from genkit.training.learner import Learner
from genkit.training.optimizers import learning_rate, optimizer
from genkit.training.verdicts import LogitMeans, Verdicts


def discriminator_loss(kind: str, real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss, from its logits `[B, 1, h, w]` of real and reconstructed images.

    `hinge` (Lim and Ye 2017) and `non-saturating` use the hinge loss, `bce` binary cross-entropy.
    """
    if kind == "bce":
        return (F.softplus(-real).mean() + F.softplus(made).mean()) / 2
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def tokenizer_loss(kind: str, made: Tensor) -> Tensor:
    """The tokenizer's adversarial loss, from the logits D of its reconstructions.

    It is -D for `hinge`, else -log sigmoid(D). Hinge against -log sigmoid is MAGVIT-v2's pairing;
    with `bce` it is Goodfellow et al.'s (2014) non-saturating game.
    """
    return -made.mean() if kind == "hinge" else F.softplus(-made).mean()


def gradient_penalty(real: Tensor, images: Tensor) -> Tensor:
    """R1: half the squared gradient of the logits of real images, a mean over images.

    Mescheder et al. 2018, arXiv 1801.04406, Eq. 9. Each image's verdict is the mean of its logits.
    """
    verdicts = real.mean((1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(verdicts, images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean() / 2


class Adversary:
    """A discriminator in training: on its own, after the tokenizer's step, on the same images."""

    def __init__(
        self, run: TokenizerRun, accelerator: Accelerator, discriminator: nn.Module
    ) -> None:
        self.run, self.accelerator, self.plain = run, accelerator, discriminator
        # A part of it may be frozen and stays so.
        self.trained = [each for each in discriminator.parameters() if each.requires_grad]
        self.means, self.verdicts = LogitMeans(run.lecam_decay), Verdicts(run)
        self.learner = Learner(
            "discriminator",
            discriminator,
            accelerator,
            optimizer(run, run.discriminator_optimizer, run.discriminator_lr),
            learning_rate(run, run.discriminator_lr),
            clip=run.clip,
            accumulate=run.accumulate,
            beside={"logit_means": self.means, "verdicts": self.verdicts},
        )

    def weight(self, step: int) -> float:
        """Weight of the adversarial loss at a step: 0 in the head start, then rising on the ramp.

        At weight 0 the adversarial loss is left out.
        """
        run = self.run
        since = step - run.discriminator_start - run.discriminator_head_start
        share = min(1.0, (since + 1) / run.discriminator_ramp) if run.discriminator_ramp else 1.0
        return run.adversarial_weight * share if since >= 0 else 0.0

    def loss(self, reconstructions: Tensor, likeness: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The tokenizer's weighted adversarial loss, and its weight with all that scales it.

        `likeness` is the reconstruction loss that the adaptive weight compares with. The loss goes
        through the plain module with its weights frozen, so that no gradients are exchanged.
        """
        for parameter in self.trained:
            parameter.requires_grad_(False)
        with self.accelerator.autocast():
            loss = tokenizer_loss(self.run.adversarial_loss, self.plain(reconstructions).float())
        for parameter in self.trained:
            parameter.requires_grad_(True)
        weight = loss.new_full((), self.weight(step))
        if self.run.adversarial_adaptive:
            ratio = _ratio(likeness, loss, reconstructions)
            weight = weight * ratio.clamp(max=self.run.adversarial_limit)
        return loss * weight, weight

    def step(
        self, images: Tensor, reconstructions: Tensor, step: int, last: bool = True
    ) -> tuple[dict[str, Tensor], bool]:
        """Train the discriminator on a batch of real and reconstructed images.

        Its weights move after the `last` batch of a step. Returns its losses, `lecam` and `r1`
        beside `discriminator` where their weights ask for them, its mean logits, and figures of its
        gradient; False if they are not finite: then nothing of the step stays.
        """
        run = self.run
        smooth = run.r1_weight > 0 and step % run.r1_every == 0
        images = images.detach().requires_grad_(smooth)
        model = self.learner.model
        with eager(smooth and run.compile), self.accelerator.autocast():
            real, made = model(images).float(), model(reconstructions.detach()).float()
        losses = {"discriminator": discriminator_loss(run.adversarial_loss, real, made)}
        if run.lecam_weight:
            losses["lecam"] = run.lecam_weight * self.means.loss(real, made)
            self.means.update(real, made)
        if self.weight(step):
            self.verdicts.add(real, made, last)
        if smooth:
            losses["r1"] = run.r1_weight * run.r1_every * gradient_penalty(real, images)
        loss = torch.stack(list(losses.values())).sum()
        self.learner.backward(loss)
        scores = {"real_score": real.mean(), "made_score": made.mean()}
        scores["score_gap"] = scores["real_score"] - scores["made_score"]
        figures = {name: each.detach() for name, each in {**losses, **scores}.items()}
        if not last:
            return figures, True
        norm, taken = self.learner.finish([loss])
        if not taken:
            self.learner.undo()
        return figures | {f"discriminator_{name}": each for name, each in norm.items()}, taken


def _ratio(reconstruction: Tensor, adversarial: Tensor, images: Tensor) -> Tensor:
    """Ratio of both losses' gradients, taken at the reconstructed images of all processes.

    After Esser et al. 2021 (VQGAN, Eq. 7).
    """
    squares = [
        torch.autograd.grad(loss, images, retain_graph=True)[0].square().sum()
        for loss in (reconstruction, adversarial)
    ]
    # Each process's loss is a mean over its own share of the images.
    norms = all_sum(torch.stack(squares)).sqrt() / processes()
    return norms[0] / (norms[1] + 1e-4)
