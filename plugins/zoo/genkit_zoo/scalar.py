"""Scalar quantizers, which round each dimension of a code by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ, LatentQuantize, ResidualFSQ

from genkit import Level
from genkit_zoo import LatentOptions, ResidualFSQOptions, ScalarOptions
from genkit_zoo.wrapped import Wrapped, mean_square


class NoisyFSQ(FSQ):  # type: ignore[misc]
    """The library's FSQ with noise on the requested share of values; the library's uses half."""

    def maybe_apply_noise(self, bounded_z: Tensor) -> Tensor:
        """Codes with uniform noise in ±0.5 on some values (Parker et al. 2024, 2411.19842)."""
        if not self.training or not self.noise_dropout:
            return bounded_z
        noisy = torch.rand_like(bounded_z) < self.noise_dropout
        noise = torch.rand_like(bounded_z) - 0.5
        return torch.where(noisy, bounded_z + noise, bounded_z).clamp(-1, 1)


class Scalar(Wrapped):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505)."""

    def __init__(self, options: ScalarOptions, level: Level) -> None:
        inner = NoisyFSQ(
            list(options.values),
            dim=level.channels,
            num_codebooks=options.codebooks,
            preserve_symmetry=options.symmetric,
            noise_dropout=options.noise,
            orthogonal_rotation=options.rotate,
        )
        super().__init__(inner, math.prod(options.values), options.codebooks)

    def quantize(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Wrapped`; the loss is 0."""
        quantized, indices = self.inner(flat)
        return quantized, indices, flat.new_zeros(())

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        # The library would take another dimension for that of images.
        several = indices if self.codebooks > 1 else indices[..., 0]
        codes: Tensor = self.inner.indices_to_codes(several.flatten(0, 1))
        return codes.view(*indices.shape[:2], -1)


class ResidualScalar(Wrapped):
    """Residual FSQ: each round quantizes the residual of the previous ones."""

    def __init__(self, options: ResidualFSQOptions, level: Level) -> None:
        inner = ResidualFSQ(
            dim=level.channels, levels=list(options.values), num_quantizers=options.codebooks
        )
        super().__init__(inner, math.prod(options.values), options.codebooks)

    def quantize(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Wrapped`; the loss is 0."""
        quantized, indices = self.inner(flat)
        return quantized, indices, flat.new_zeros(())

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        layers = zip(self.inner.layers, self.inner.scales, indices.unbind(-1), strict=True)
        codes = [
            F.embedding(each, layer.implicit_codebook) * scale for layer, scale, each in layers
        ]
        return self.inner.project_out(torch.stack(codes).sum(0))


class Latent(Wrapped):
    """Latent quantization: the nearest of a few learned values (Hsu et al. 2023, arXiv 2305.18378).

    The library computes indices as if values stayed evenly spaced, so after training they do not
    match the values that it returns. Here an index is the position of the returned value.
    """

    def __init__(self, options: LatentOptions, level: Level) -> None:
        inner = LatentQuantize(
            list(options.values),
            dim=level.channels,
            num_codebooks=options.codebooks,
            optimize_values=options.learn,
        )
        if not options.learn:
            # The library holds these outside its parameters and buffers, so they would neither move
            # to a device nor be saved.
            inner.values_per_latent = nn.ParameterList(
                nn.Parameter(values, requires_grad=False) for values in inner.values_per_latent
            )
        super().__init__(inner, math.prod(options.values), options.codebooks)
        self.options = options

    def quantize(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Wrapped`."""
        entered = self.inner.project_in(flat).unflatten(-1, (self.codebooks, -1))
        digits = torch.stack(
            [
                (entered[..., place, None] - values).abs().argmin(-1)
                for place, values in enumerate(self.inner.values_per_latent)
            ],
            dim=-1,
        )
        values = self._values(digits)
        loss = self.options.commitment_weight * mean_square(entered, values.detach())
        if self.options.learn:
            loss = loss + self.options.codebook_weight * mean_square(values, entered.detach())
        through = entered + (values - entered).detach()
        quantized: Tensor = self.inner.project_out(through.flatten(-2))
        return quantized, (digits * self.inner._basis).sum(-1), loss

    def codes(self, indices: Tensor) -> Tensor:
        """See `Wrapped`."""
        digits = indices[..., None] // self.inner._basis % self.inner._levels
        return self.inner.project_out(self._values(digits).flatten(-2))

    def _values(self, digits: Tensor) -> Tensor:
        learned = self.inner.values_per_latent
        return torch.stack([values[digits[..., i]] for i, values in enumerate(learned)], dim=-1)
