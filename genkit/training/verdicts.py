"""A discriminator's scores in training: running means, and alarms when one side wins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.distributed import all_sum, processes
from genkit.run.options import TokenizerRun

# Steps that the means of the alarms look back on.
_RECENT = 100
# Steps with hardly a gap between the scores after which the tokenizer has won: more, because a
# tokenizer that has just improved is ahead until the discriminator has followed.
_PATIENCE = 200
# An alarm begins at its first limit and ends at its second. With one limit a mean that wavers
# around it would raise the alarm again and again.
#
# Scores beyond 1 and -1 have no hinge loss. In bce they are compared as 2 p - 1, so that 0.9 is a
# probability of 0.95.
_AHEAD = {"hinge": (1.0, 0.8), "non-saturating": (1.0, 0.8), "bce": (0.9, 0.8)}
# The hinge loss of a gap of 0.05 is 0.975; without any gap it is 1.
_GAP = (0.05, 0.1)


class LogitMeans(nn.Module):
    """Running means of the discriminator's logits of real and reconstructed images.

    They are what LeCAM compares with (Tseng et al. 2021, arXiv 2104.03310), and the same on all
    processes.
    """

    means: Tensor
    steps: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def value(self) -> Tensor:
        """Both means, corrected for their start at 0."""
        return self.means / (1 - self.decay ** self.steps.clamp(min=1))

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """How far logits lie beyond the running mean of the other kind, squared.

        It is |D(x) - a_made|_+^2 + |a_real - D(y)|_+^2: Eq. 4, with the authors' code's positive
        parts.
        """
        means = self.value()
        return F.relu(real - means[1]).square().mean() + F.relu(means[0] - made).square().mean()

    @torch.no_grad()
    def update(self, real: Tensor, made: Tensor) -> None:
        """Take the logits of a step into the running means."""
        now = all_sum(torch.stack([real.mean(), made.mean()])) / processes()
        self.means.lerp_(now, 1 - self.decay)
        self.steps.add_(1)


class Verdicts(nn.Module):
    """Which side wins, by the discriminator's logits since the adversarial loss counts.

    All of it is in buffers, so that a skipped step is undone and a resumed run has the same alarms.
    Between two rows nothing waits for the device.
    """

    sums: Tensor
    raised: Tensor

    def __init__(self, run: TokenizerRun) -> None:
        super().__init__()
        self.run = run
        self.means = LogitMeans(1 - 1 / _RECENT)
        # The forward passes of the step so far, and the alarms of the last row.
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("raised", torch.zeros(2))

    @torch.no_grad()
    def add(self, real: Tensor, made: Tensor, last: bool) -> None:
        """Take in the logits of a forward pass; the means move after the `last` one of a step."""
        if self.run.adversarial_loss == "bce":
            real, made = (real / 2).tanh(), (made / 2).tanh()
        self.sums.add_(torch.stack([real.mean(), made.mean()]))
        if last:
            self.means.update(*(self.sums / self.run.accumulate))
            self.sums.zero_()

    def alarms(self) -> list[dict[str, Any]]:
        """The alarms of a row, each with its `kind` and a `message` that ends with advice."""
        state = torch.cat([self.means.value(), self.means.steps[None], self.raised])
        real, made, steps, *raised = state.tolist()
        ahead = _AHEAD[self.run.adversarial_loss][int(raised[0])]
        # On the ramp the tokenizer has not yet been asked in full to answer.
        wins = steps >= self.run.discriminator_ramp + _RECENT and min(real, -made) > ahead
        loses = steps >= _PATIENCE and real - made < _GAP[int(raised[1])]
        self.raised.copy_(torch.tensor([float(wins), float(loses)]))
        scores = self._scores(real, made)
        found = []
        if wins:
            message = f"the discriminator wins: {scores}. {self._against_discriminator()}"
            found.append({"kind": "the discriminator wins", "message": message})
        if loses:
            message = (
                "the tokenizer wins: the discriminator cannot distinguish reconstructions from "
                f"real images. {scores[0].upper()}{scores[1:]}. {self._against_tokenizer()}"
            )
            found.append({"kind": "the tokenizer wins", "message": message})
        return found

    def _scores(self, real: float, made: float) -> str:
        what = "scores"
        if self.run.adversarial_loss == "bce":
            what, real, made = "probabilities", (real + 1) / 2, (made + 1) / 2
        return (
            f"its mean {what} are {real:.2f} for real images and {made:.2f} for reconstructions, "
            f"over about {_RECENT} steps"
        )

    def _against_discriminator(self) -> str:
        run = self.run
        cures = ["a lower --discriminator-lr"]
        if not run.r1_weight and run.mixed_precision != "fp16":
            cures.append("--r1-weight 1")
        if not run.lecam_weight:
            cures.append("--lecam-weight 0.01")
        return f"Try {', '.join(cures)}, or a lower --adversarial-weight."

    def _against_tokenizer(self) -> str:
        run = self.run
        cures = ["a higher --discriminator-lr", "a longer --discriminator-head-start"]
        cures += ["a lower --r1-weight"] if run.r1_weight else []
        cures += ["a lower --lecam-weight"] if run.lecam_weight else []
        return f"Try {', '.join(cures)}, or a wider --discriminator."
