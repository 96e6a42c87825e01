"""Vector quantization with a learned codebook (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit import Level, Quantized
from genkit.distributed import all_sum, from_first, process, processes, random_rows, row_ends
from genkit.ops import HostNumber, count_codes, nearest_codes
from genkit_avqvae import VQOptions

_KMEANS_ROUNDS = 10
_KMEANS_TOKENS_PER_CODE = 64
_ENTROPY_TERMS = 2**24
# Values that are summed at a time.
_PART = 2**16
# A code unused for this share of training so far is re-seeded.
_YOUNG = 0.05


class VectorQuantizer(nn.Module):
    """Replaces each latent by its nearest code, with straight-through or rotated gradients.

    The loss is commitment_weight * |z - sg(e)|^2, plus |sg(z) - e|^2 if codes learn by gradient.
    `update=ema` makes codes moving averages of their latents (appendix A.1). `update=linear` learns
    a matrix over a codebook that is fixed, except for its initialisation and re-seeding (Zhu et al.
    2024, SimVQ, arXiv 2411.02038). `gradient=rotation` rotates and scales the gradient from the
    code to the latent (the rotation trick, Fifty et al. 2024, arXiv 2410.06424). With
    `distance=product` a latent's code is that of the largest product z e (Shi et al. 2024, IBQ,
    arXiv 2412.02692).

    The codebook `[K, codebook_dim]` stays identical on all processes. Counts and sums are summed
    over processes. Samples are drawn from all processes' latents, with a generator seeded by the
    number of updates. A code is re-seeded with a latent of the batch once `revive` x K latents
    passed without using it, or 5% of all latents so far if that is less.
    """

    codebook: Tensor
    started: Tensor
    counts: Tensor
    idle: Tensor
    updates: Tensor

    def __init__(self, options: VQOptions, level: Level) -> None:
        super().__init__()
        self.options = options
        self.level = level
        self.codebook_size = options.codebook_size
        dim = options.codebook_dim or level.channels
        projected = dim != level.channels
        self.enter = nn.Conv2d(level.channels, dim, 1) if projected else nn.Identity()
        self.leave = nn.Conv2d(dim, level.channels, 1) if projected else nn.Identity()
        codebook = self._normalized(torch.randn(options.codebook_size, dim))
        if options.update == "gradient":
            self.codebook = nn.Parameter(codebook)
            self.codebook.by_adam = True  # type: ignore[attr-defined]
        else:
            self.register_buffer("codebook", codebook)
        self.linear = nn.Parameter(torch.eye(dim)) if options.update == "linear" else None
        self.register_buffer("started", torch.tensor(False))
        # Not persistent: only training needs these, so model files leave them out.
        self.register_buffer("counts", torch.zeros(options.codebook_size), persistent=False)
        self.register_buffer("idle", torch.zeros(options.codebook_size), persistent=False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64), persistent=False)
        # The version of `started` that was checked last. It changes when a state is loaded, which
        # may be one from before the initialisation.
        self._ready = -1
        self._updates = HostNumber()

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents `[B, C, h, w]`; see `genkit.interfaces.Quantizer`."""
        entered = self.enter(latents)
        flat = self._normalized(entered.permute(0, 2, 3, 1).flatten(0, 2))
        if self.training and self._ready != self.started._version:
            self._start(flat.detach())
        codebook = self._codes()
        indices = self._best(flat, codebook)
        codes = F.embedding(indices, codebook)
        # Exported graphs leave out losses, whose computation depends on the number of latents.
        exported = torch.compiler.is_exporting()
        loss = flat.new_zeros(()) if exported else self._loss(flat, codes, codebook)
        if self.training:
            self._learn(flat.detach(), indices)
        through = _rotated(flat, codes) if self.options.gradient == "rotation" else flat
        return Quantized(
            self._to_latents(_StraightThrough.apply(through, codes), latents),
            indices.view(latents.shape[0], *latents.shape[2:]),
            loss,
        )

    def decode(self, indices: Tensor) -> Tensor:
        """The quantized latents `[B, C, h, w]` of indices `[B, h, w]`."""
        codes = F.embedding(indices, self._codes())
        return self.leave(codes.permute(0, 3, 1, 2).contiguous())

    def _to_latents(self, flat: Tensor, like: Tensor) -> Tensor:
        images, _, height, width = like.shape
        latents = flat.view(images, height, width, flat.shape[1]).permute(0, 3, 1, 2)
        if not like.is_contiguous(memory_format=torch.channels_last):
            latents = latents.contiguous()
        return self.leave(latents)

    def _normalized(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.options.distance == "cosine" else vectors

    def _best(self, flat: Tensor, codebook: Tensor) -> Tensor:
        """The index of each latent's code: the nearest one, or that of the largest product."""
        if self.options.distance != "product":
            return nearest_codes(flat, codebook)
        # One more coordinate gives all codes one length; then the nearest code has the largest
        # product, since |z - e|^2 = |z|^2 - 2 z e + |e|^2.
        squares = codebook.detach().square().sum(1)
        last = (squares.max() - squares).sqrt()
        return nearest_codes(F.pad(flat, (0, 1)), torch.cat([codebook.detach(), last[:, None]], 1))

    def _codes(self) -> Tensor:
        # The gradient of the entropy loss needs the codes of the forward pass. Copy them, because
        # the update below modifies the codebook in place.
        moves = self.training and self.options.entropy_weight > 0
        codebook = self.codebook.clone() if moves else self.codebook
        return self._normalized(codebook if self.linear is None else codebook @ self.linear)

    def _loss(self, flat: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
        loss: Tensor = self.options.commitment_weight * _MeanSquare.apply(flat, codes)
        if self.options.update != "ema":
            loss = loss + F.mse_loss(codes, flat.detach())
        if self.options.entropy_weight:
            loss = loss + self.options.entropy_weight * self._entropy_loss(flat, codebook)
        return loss

    def _entropy_loss(self, flat: Tensor, codebook: Tensor) -> Tensor:
        """Mean entropy of the latents' soft assignments minus the entropy of their mean.

        It is low if each assignment is confident and all codes are used evenly (Yu et al. 2023,
        arXiv 2310.05737, section 3.2). Assignments are softmax(-|z - e|^2 / (temperature * variance
        of the codes)). Training uses the latents of all processes. If there are too many, every nth
        latent is used.
        """
        together = processes() if self.training else 1
        latents = len(flat) * together
        # An odd step covers all columns of the images. It continues over the processes.
        step = -(-latents * len(codebook) // _ENTROPY_TERMS) | 1
        number = -(-latents // step) / together
        flat = flat[-len(flat) * (process() if self.training else 0) % step :: step]
        width = self.options.entropy_temperature * codebook.detach().var(0).sum().clamp(min=1e-12)
        # -|z - e|^2 without |z|^2, which is constant per latent and so does not change the softmax.
        nearness = (2 * flat @ codebook.t() - codebook.square().sum(1)) / width
        shares = nearness.softmax(1)
        each = -(shares * nearness.log_softmax(1)).sum() / number
        mean = shares.sum(0) / number
        if self.training:
            # The gradient only reaches this process's share, because gradients are averaged later.
            mean = mean + (all_sum(mean.detach().clone()) / together - mean).detach()
        return each + torch.special.xlogy(mean, mean.clamp(min=1e-30)).sum()

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """Initialise the codes by k-means, unless already done, and the counts evenly."""
        if not self.started and self.options.kmeans_start:
            # The learned matrix is still the identity, so codebook and codes are the same.
            self.codebook.copy_(from_first(self._kmeans(flat)))
        self.started.fill_(True)
        if not self.counts.any():
            tokens = all_sum(torch.tensor(float(len(flat)), device=flat.device))
            self.counts.fill_(tokens / self.codebook_size)
        self._ready = self.started._version

    def _kmeans(self, flat: Tensor) -> Tensor:
        generator = self._generator()
        ends = row_ends(flat)
        number = min(int(ends[-1]), self.codebook_size * _KMEANS_TOKENS_PER_CODE)
        flat = random_rows(flat, ends, number, generator)
        codes = self._drawn(flat, self.codebook_size, generator)
        for _ in range(_KMEANS_ROUNDS):
            counts, sums = self._totals(flat, nearest_codes(flat, codes))
            codes = self._normalized(sums / counts.clamp(min=1)[:, None])
            empty = (counts == 0).nonzero().squeeze(1)
            codes[empty] = self._drawn(flat, len(empty), generator)
        return codes

    @torch.no_grad()
    def _learn(self, flat: Tensor, indices: Tensor) -> None:
        """Update counts and moving averages from all processes' latents; re-seed unused codes."""
        counts, sums = self._totals(flat, indices)
        if processes() > 1:
            counts, sums = all_sum(torch.cat([counts[:, None], sums], dim=1)).tensor_split([1], 1)
            counts = counts.squeeze(1)
        self._updates.add_one(self.updates)
        decay = self.options.ema_decay
        # A lower bound keeps the counts of long unused codes positive, for the division below.
        least = max(1e-12, torch.finfo(self.counts.dtype).tiny)
        self.counts.mul_(decay).add_(counts, alpha=1 - decay).clamp_(min=least)
        if self.options.update == "ema":
            share = ((1 - decay) / self.counts)[:, None]
            self.codebook.addcmul_(sums.addcmul_(counts[:, None], self.codebook, value=-1), share)
        if self.options.revive:
            latents = counts.sum()
            self.idle.add_(latents).masked_fill_(counts > 0, 0)
            # Latents move fast early in training, so unused codes are re-seeded sooner.
            patience = (self.updates * latents * _YOUNG).clamp(
                max=self.options.revive * self.codebook_size
            )
            self._revive(flat, self.idle > patience)

    def _revive(self, flat: Tensor, unused: Tensor) -> None:
        # A GPU is not asked whether any code is unused, because the host would wait for it.
        asked = flat.device.type == "cpu"
        if asked and not unused.any():
            return
        number = int(unused.sum()) if asked else self.codebook_size
        drawn = random_rows(flat, row_ends(flat), number, self._generator())
        # Each unused code takes the next of the drawn latents.
        codes = drawn[(unused.cumsum(0) - 1).clamp_(min=0)]
        if self.linear is not None:
            # The rows that the learned matrix maps to these codes; unchecked, it asks no GPU.
            codes = torch.linalg.solve_ex(self.linear, codes, left=False).result
            codes.nan_to_num_(0, 0, 0)
        # A low count, that of one batch, lets a re-seeded code adapt fast to its latents.
        weight = (1 - self.options.ema_decay) * self.counts.mean()
        # Safe to modify in place: autograd saved either other rows or a copy.
        self.codebook.data.copy_(torch.where(unused[:, None], codes, self.codebook))
        self.counts.copy_(torch.where(unused, weight, self.counts))
        self.idle.masked_fill_(unused, 0)

    def _totals(self, flat: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        counts = count_codes(indices, self.codebook_size).to(flat.dtype)
        sums = flat.new_zeros(self.codebook_size, flat.shape[1]).index_add_(0, indices, flat)
        return counts, sums

    def _drawn(self, flat: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """`number` random latents of those given, repeated only if there are fewer."""
        rounds = -(-number // len(flat))
        orders = [torch.randperm(len(flat), generator=generator) for _ in range(rounds)]
        order = torch.cat([torch.empty(0, dtype=torch.int64), *orders])[:number]
        return flat[order.to(flat.device)]

    def _generator(self) -> torch.Generator:
        # Seeded by saved state only, so that a resumed run draws the same samples.
        return torch.Generator().manual_seed(
            1_000_003 * self.level.index + self._updates.of(self.updates)
        )


class _MeanSquare(torch.autograd.Function):
    """The mean squared difference of latents and codes, without a gradient for the codes."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(latents, codes)
        # In parts, because `torch.dist` of very long vectors is less accurate.
        parts = (each.flatten().split(_PART) for each in (latents, codes))
        distances = torch.stack([torch.dist(*part) for part in zip(*parts, strict=True)])
        return torch.dot(distances, distances).div_(latents.numel())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        latents, codes = ctx.saved_tensors
        return (latents - codes.detach()) * (2 * gradient / latents.numel()), None


class _StraightThrough(torch.autograd.Function):
    """The codes; their gradient goes to the latents."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        return codes.detach().view_as(codes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _rotated(flat: Tensor, codes: Tensor) -> Tensor:
    """The latents `[N, d]`, rotated and scaled onto their codes with constant factors.

    Eq. 3 of Fifty et al. 2024: |e| / |z| (z - 2 r r^T z + 2 e' z'^T z), where z' and e' are unit
    vectors and r = (z' + e') / |z' + e'|.
    """
    unit, target = F.normalize(flat, dim=1).detach(), F.normalize(codes, dim=1).detach()
    between = F.normalize(unit + target, dim=1)
    scale = codes.norm(dim=1, keepdim=True) / flat.norm(dim=1, keepdim=True).clamp(min=1e-6)
    along = (flat * between).sum(1, keepdim=True)
    onto = (flat * unit).sum(1, keepdim=True)
    return scale.detach() * (flat - 2 * along * between + 2 * onto * target)
