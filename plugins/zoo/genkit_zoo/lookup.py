"""Quantizers with several learned codebooks: residual, grouped residual and multi-head."""

from __future__ import annotations

from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, ema_inplace

from genkit import Level
from genkit.distributed import processes, random_rows, row_ends
from genkit.ops import HostNumber, nearest_codes
from genkit_zoo import GroupedResidualVQOptions, MultiHeadVQOptions, ResidualVQOptions
from genkit_zoo.wrapped import Wrapped

# The library would log to the terminal if the first batch is small.
logger.disable("vector_quantize_pytorch")


class ExactCodebook(Codebook):  # type: ignore[misc]
    """The library's codebook with genkit's nearest-code search, unchanged in eval mode.

    The library's search needs two latents x codes tables (distances and one-hot assignments), and
    its k-means uses the first batch even in eval mode. Its samples depend on the number of
    processes. Here samples are drawn from all processes' latents, with a generator seeded by the
    number of updates.
    """

    updates: Tensor
    number: int
    host_updates: HostNumber
    # The version of `initted` that was checked last: it changes when a state is loaded.
    ready = -1

    def init_embed_(self, data: Tensor, mask: Tensor | None = None) -> None:
        """Initialise by k-means, in training only and if enabled."""
        if self.training and self.ready != self.initted._version:
            super().init_embed_(data, mask)
            self.ready = self.initted._version

    def sample_fn(self, samples: Tensor, number: int) -> Tensor:
        """`number` random latents `[heads, N, d]` of all processes, repeated if too few."""
        return torch.stack([self._drawn(each, row_ends(each), number) for each in samples])

    def replace(self, batch_samples: Tensor, batch_mask: Tensor, **_: Any) -> None:
        """Re-seed codes `[heads, K]` with different latents `[heads, N, d]`.

        If there are too few latents, the remaining codes stay as they are.
        """
        for head, (latents, dead) in enumerate(zip(batch_samples, batch_mask, strict=True)):
            number = int(dead.sum()) if _is_asked(dead) else self.codebook_size
            ends = row_ends(latents)
            drawn = self._drawn(latents, ends, number).to(self.embed)
            if not number:
                continue
            # Each dead code takes the next of the drawn latents, while there are any.
            place = dead.cumsum(0) - 1
            dead = dead & (place < ends[-1])
            codes = drawn[place.clamp_(min=0)]
            size = self.cluster_size[head].masked_fill(dead, self.reset_cluster_size)
            for target, value in (
                (self.embed.data, codes),
                (self.embed_avg, codes * self.reset_cluster_size),
            ):
                target[head] = torch.where(dead[:, None], value, target[head])
            self.cluster_size[head] = size

    def expire_codes_(self, batch_samples: Tensor, seq_mask: Tensor | None = None) -> None:
        """Re-seed rarely used codes.

        For a codebook shared by all rounds, the library passes latents without heads and with
        gradients, whose graph the moving averages would keep alive.
        """
        if not self.has_dead_code_replacement or not self.training:
            return
        heads, _, dim = self.embed.shape
        dead = self.cluster_size < self.threshold_ema_dead_code
        if not _is_asked(dead) or dead.any():
            self.replace(batch_samples.detach().reshape(heads, -1, dim), dead)

    def _drawn(self, latents: Tensor, ends: Tensor, number: int) -> Tensor:
        seed = 1_000_003 * self.number + self.host_updates.of(self.updates)
        return random_rows(latents, ends, number, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, Tensor, None]:
        """Codes and indices of latents `[B, N, d]` or `[heads, B, N, d]`; distances are None."""
        heads = x.float() if x.ndim == 4 else x.float()[None]
        flat = heads.flatten(1, 2)
        self.init_embed_(flat.detach())
        embed = self.embed if self.learnable_codebook else self.embed.detach()
        pairs = list(zip(flat, embed, strict=True))
        indices = torch.stack(
            [nearest_codes(each.detach(), codes.detach()) for each, codes in pairs]
        )
        nearest = torch.stack(
            [F.embedding(i, codes) for i, codes in zip(indices, embed, strict=True)]
        )
        if self.training:
            self.update_codebook(flat.detach(), indices)
            self.host_updates.add_one(self.updates)
        codes, indices = nearest.view_as(heads), indices.view(heads.shape[:-1])
        return (codes, indices, None) if x.ndim == 4 else (codes[0], indices[0], None)

    def track_cluster_size_and_embed_avg(self, flatten: Tensor, indices: Tensor, *_: Any) -> None:
        """Update the moving averages with latents `[heads, N, d]` of indices `[heads, N]`."""
        sizes, sums = torch.zeros_like(self.cluster_size), torch.zeros_like(self.embed_avg)
        for head, (latents, found) in enumerate(zip(flatten, indices, strict=True)):
            sizes[head].index_add_(0, found, sizes.new_ones(()).expand(len(found)))
            sums[head].index_add_(0, found, latents)
        self.all_reduce_fn(sizes)
        self.all_reduce_fn(sums)
        ema_inplace(self.cluster_size, sizes, self.decay)
        ema_inplace(self.embed_avg, sums, self.decay)


def _is_asked(dead: Tensor) -> bool:
    """Whether the host asks if any code is dead: it would wait for a GPU's answer."""
    return dead.device.type == "cpu"


class Residual(Wrapped):
    """Residual VQ: each codebook quantizes the residual of the previous ones.

    Zeghidour et al. 2021, SoundStream, arXiv 2107.03312, algorithm 1.
    """

    def __init__(self, options: ResidualVQOptions, level: Level) -> None:
        inner = ResidualVQ(dim=level.channels, **_residual(options, level.channels))
        super().__init__(_exact(inner, level), options.codebook_size, options.codebooks)

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        return _summed(self.inner, indices)


class GroupedResidual(Wrapped):
    """Residual VQ of each channel group by itself.

    Yang et al. 2023, HiFi-Codec, arXiv 2305.02765. Codebooks are ordered by group.
    """

    def __init__(self, options: GroupedResidualVQOptions, level: Level) -> None:
        groups, remainder = divmod(level.channels, options.groups)
        if remainder:
            raise ValueError(
                f"{level.channels} channels cannot be split into {options.groups} groups"
            )
        inner = GroupedResidualVQ(
            dim=level.channels, groups=options.groups, **_residual(options, groups)
        )
        codebooks = options.groups * options.codebooks
        super().__init__(_exact(inner, level), options.codebook_size, codebooks)
        self.groups = options.groups

    def quantize(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Wrapped`."""
        # The library draws a seed for a dropout that is off here, and a GPU's host waits for it.
        pairs = zip(self.inner.rvqs, flat.chunk(self.groups, dim=-1), strict=True)
        quantized, indices, losses = zip(*[inner(part) for inner, part in pairs], strict=True)
        return torch.cat(quantized, dim=-1), torch.cat(indices, dim=-1), torch.stack(losses)

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        groups = zip(self.inner.rvqs, indices.chunk(self.groups, dim=-1), strict=True)
        return torch.cat([_summed(inner, each) for inner, each in groups], dim=-1)


class MultiHead(Wrapped):
    """Multi-head VQ: each head projects the latents and has its own codebook."""

    def __init__(self, options: MultiHeadVQOptions, level: Level) -> None:
        learned = options.update == "gradient"
        inner = VectorQuantize(
            level.channels,
            options.codebook_size,
            codebook_dim=options.codebook_dim,
            heads=options.codebooks,
            separate_codebook_per_head=True,
            decay=options.ema_decay,
            threshold_ema_dead_code=options.revive,
            commitment_weight=options.commitment_weight,
            orthogonal_reg_weight=options.orthogonal_weight,
            rotation_trick=options.gradient == "rotation",
            ema_update=not learned,
            learnable_codebook=learned,
            sync_codebook=processes() > 1,
        )
        super().__init__(_exact(inner, level), options.codebook_size, options.codebooks)

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        codebook = self.inner._codebook.embed
        heads = zip(indices.unbind(-1), codebook, strict=True)
        codes = [F.embedding(each, codes) for each, codes in heads]
        return self.inner.project_out(torch.cat(codes, dim=-1))


def _summed(inner: Any, indices: Tensor) -> Tensor:
    """The latents `[B, N, C]` of indices `[B, N, Q]` of one residual quantizer."""
    layers = zip(inner.layers, indices.unbind(-1), strict=True)
    codes = [F.embedding(each, layer._codebook.embed[0]) for layer, each in layers]
    return inner.project_out(torch.stack(codes).sum(0))


def _residual(options: ResidualVQOptions, channels: int) -> dict[str, Any]:
    return {
        "codebook_size": options.codebook_size,
        "num_quantizers": options.codebooks,
        "codebook_dim": options.codebook_dim or channels,
        "shared_codebook": options.shared,
        "rotation_trick": options.gradient == "rotation",
        "decay": options.ema_decay,
        "commitment_weight": options.commitment_weight,
        "kmeans_init": options.kmeans_start,
        "threshold_ema_dead_code": options.revive,
        # By default the library caches its first answer for the lifetime of the process.
        "sync_codebook": processes() > 1,
    }


def _exact(inner: nn.Module, level: Level) -> nn.Module:
    """`inner` with each of its codebooks turned into an `ExactCodebook`."""
    codebooks: list[Any] = [module for module in inner.modules() if type(module) is Codebook]
    for number, codebook in enumerate(codebooks):
        codebook.__class__ = ExactCodebook
        # The instance attribute of the library would hide our method.
        del codebook.sample_fn
        codebook.number = number + 1000 * level.index
        # Not persistent: only training needs it, so model files leave it out.
        codebook.host_updates = HostNumber()
        codebook.register_buffer("updates", torch.zeros((), dtype=torch.int64), persistent=False)
        codebook.embed.by_adam = True
        if not codebook.initted:
            # The library sets codes to zero until k-means; random codes make an untrained model
            # usable.
            codebook.embed.data.normal_()
    return inner
