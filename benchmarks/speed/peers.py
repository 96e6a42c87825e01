"""Other tokenizers, trained on the same images as ours for comparison.

VQ-VAE-2 (Razavi et al. 2019) and LlamaGen's quantizer are rewritten here from published facts of
their best known implementations; the others come from their libraries.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The result of a peer's forward pass: images and the quantizer's weighted loss.
Made = tuple[Tensor, Tensor]
# The same with the indices.
Found = tuple[Tensor, Tensor, Tensor]
CHANNELS, HIDDEN, DIM, CODES = 128, 32, 64, 512
# LlamaGen's: the number of recent indices for code usage, and the temperature of its entropy.
_RECENT, _TEMPERATURE = 65536, 0.01


class OneHotQuantizer(nn.Module):
    """Nearest code by the expanded square; running averages of latents by a one-hot matrix."""

    def __init__(self, size: int = CODES, dim: int = DIM, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        codes = torch.randn(size, dim)
        self.codes: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", codes.clone())

    def forward(self, latents: Tensor) -> Made:
        """The quantized latents `[B, C, h, w]` and the mean squared distance to them."""
        return self.quantize(latents)[:2]

    def quantize(self, latents: Tensor) -> Found:
        """The result of `forward`, and the indices."""
        pixels = latents.permute(0, 2, 3, 1)
        flat = pixels.reshape(-1, self.codes.shape[1])
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codes.t()
        indices = (distances + self.codes.square().sum(1)).argmin(1)
        quantized = F.embedding(indices, self.codes).view(pixels.shape)
        if self.training:
            self._learn(flat.detach(), F.one_hot(indices, len(self.codes)).type(flat.dtype))
        loss = (quantized.detach() - pixels).square().mean()
        quantized = pixels + (quantized - pixels).detach()
        return quantized.permute(0, 3, 1, 2), loss, indices

    @torch.no_grad()
    def _learn(self, flat: Tensor, chosen: Tensor) -> None:
        self.counts.mul_(self.decay).add_(chosen.sum(0), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(chosen.t() @ flat, alpha=1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + len(self.codes) * 1e-5) * total
        self.codes.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def place(self, codes: Tensor) -> None:
        """Start from these codes."""
        self.codes.copy_(codes)
        self.sums.copy_(codes)


class UnitQuantizer(nn.Module):
    """LlamaGen's: nearest code by cosine, codes trained by gradient, usage of codes counted.

    Latents and codes are normalized, and distances are expanded squares. The entropy term has
    weight 0 in LlamaGen's model and in its training command, but its code computes the term
    anyway; this class does so only with `entropy`.
    """

    def __init__(self, size: int, dim: int, entropy: bool = False) -> None:
        super().__init__()
        self.entropy = entropy
        self.codes = nn.Parameter(F.normalize(torch.rand(size, dim) - 0.5, dim=1))
        self.recent: Tensor
        self.register_buffer("recent", torch.zeros(_RECENT))
        self.usage = 0.0

    def quantize(self, latents: Tensor) -> Found:
        """The quantized latents `[B, C, h, w]`, the weighted losses, and the indices."""
        pixels = F.normalize(latents.permute(0, 2, 3, 1).contiguous(), dim=3)
        flat = pixels.view(-1, pixels.shape[3])
        codes = F.normalize(self.codes, dim=1)
        products = torch.einsum("nd,kd->nk", flat, codes)
        squares = flat.square().sum(1, keepdim=True) + codes.square().sum(1)
        distances = squares - 2 * products
        indices = distances.argmin(1)
        quantized = codes[indices].view(pixels.shape)
        loss = (quantized - pixels.detach()).square().mean()
        loss = loss + 0.25 * (quantized.detach() - pixels).square().mean()
        if self.training:
            self._count(indices)
            if self.entropy:
                loss = loss + 0.0 * _entropy(-distances / _TEMPERATURE)
        quantized = pixels + (quantized - pixels).detach()
        return quantized.permute(0, 3, 1, 2), loss, indices

    @torch.no_grad()
    def place(self, codes: Tensor) -> None:
        """Start from these codes."""
        self.codes.copy_(codes)

    def _count(self, indices: Tensor) -> None:
        latest = torch.cat([self.recent, indices.type(self.recent.dtype)])
        self.recent = latest[-_RECENT:]
        self.usage = len(self.recent.unique()) / len(self.codes)


def _entropy(logits: Tensor) -> Tensor:
    """The mean entropy of the rows' softmax minus the entropy of their mean."""
    shares = logits.softmax(1)
    mean = shares.mean(0)
    each = -(shares * logits.log_softmax(1)).sum(1).mean()
    return each + (mean * (mean + 1e-5).log()).sum()


class LibraryQuantizer(nn.Module):
    """vector-quantize-pytorch's, with its k-means start and revival of dead codes."""

    def __init__(self) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.inner = VectorQuantize(
            dim=DIM,
            codebook_size=CODES,
            decay=0.99,
            kmeans_init=True,
            threshold_ema_dead_code=2,
            accept_image_fmap=True,
        )

    def forward(self, latents: Tensor) -> Made:
        """The quantized latents `[B, C, h, w]`, and their mean squared distance."""
        quantized, _, loss = self.inner(latents)
        return quantized, loss.sum()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(HIDDEN, CHANNELS, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.branch(x)
        return added


def _halve(channels: int, out: int) -> nn.Module:
    return nn.Conv2d(channels, out, 4, stride=2, padding=1)


def _double(channels: int, out: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)


def _residuals() -> list[nn.Module]:
    return [Residual(), Residual(), nn.ReLU()]


def _keep(channels: int) -> nn.Module:
    return nn.Conv2d(channels, CHANNELS, 3, padding=1)


class VQVAE2(nn.Module):
    """VQ-VAE-2 with strides 4 and 8, 128 channels, and two residual blocks of 32 per stage."""

    def __init__(self, quantizer: Callable[[], nn.Module] = OneHotQuantizer) -> None:
        super().__init__()
        half = CHANNELS // 2
        first = [_halve(3, half), nn.ReLU(), _halve(half, CHANNELS), nn.ReLU()]
        self.fine = nn.Sequential(*first, _keep(CHANNELS), *_residuals())
        self.coarse = nn.Sequential(_halve(CHANNELS, half), nn.ReLU(), _keep(half), *_residuals())
        self.to_coarse = nn.Conv2d(CHANNELS, DIM, 1)
        self.to_fine = nn.Conv2d(DIM + CHANNELS, DIM, 1)
        self.between = nn.Sequential(_keep(DIM), *_residuals(), _double(CHANNELS, DIM))
        self.enlarge = _double(DIM, DIM)
        last = [_double(CHANNELS, half), nn.ReLU(), _double(half, 3)]
        self.decoder = nn.Sequential(_keep(2 * DIM), *_residuals(), *last)
        self.quantizers = nn.ModuleList([quantizer(), quantizer()])

    def forward(self, images: Tensor) -> Made:
        """Reconstructions of images `[B, 3, H, W]`, and a quarter of the summed losses."""
        fine = self.fine(images)
        coarse, coarse_loss = self.quantizers[1](self.to_coarse(self.coarse(fine)))
        fine = self.to_fine(torch.cat([self.between(coarse), fine], 1))
        fine, fine_loss = self.quantizers[0](fine)
        made = self.decoder(torch.cat([self.enlarge(coarse), fine], 1))
        return made, 0.25 * (coarse_loss + fine_loss)


class Diffusers(nn.Module):
    """diffusers' VQModel with the blocks of its published models, as large as VQ-VAE-2.

    Its one level of stride 4 has 2,048 codes, for about as many bits per pixel as two levels of
    512 codes.
    """

    def __init__(self) -> None:
        super().__init__()
        import diffusers

        kind: Any = diffusers.VQModel
        self.inner: Any = kind(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 48, 80),
            layers_per_block=2,
            latent_channels=3,
            num_vq_embeddings=2048,
            norm_num_groups=16,
        )

    def forward(self, images: Tensor) -> Made:
        """Reconstructions of images `[B, 3, H, W]`, and the quantizer's loss."""
        out = self.inner(images)
        return out.sample, out.commit_loss.mean()


# The package needed by each peer, and its constructor.
_ALL: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "VQ-VAE-2 as published": ("torch", VQVAE2),
    "VQ-VAE-2, library's quantizer": (
        "vector_quantize_pytorch",
        lambda: VQVAE2(LibraryQuantizer),
    ),
    "diffusers VQModel": ("diffusers", Diffusers),
}


def peers() -> dict[str, Callable[[], nn.Module]]:
    """The peers that can be built here, by name."""
    return {name: make for name, (_, make) in _ALL.items() if name not in left_out()}


def left_out() -> list[str]:
    """The peers whose packages are not installed."""
    return [name for name, (needed, _) in _ALL.items() if not importlib.util.find_spec(needed)]


def bits_per_pixel(name: str) -> float:
    """Bits per pixel of a peer's indices without compression."""
    return 11 / 16 if name == "diffusers VQModel" else 9 / 16 + 9 / 64


class PeerStep:
    """A peer's training step as its users run it: float32, Adam 3e-4, mean squared error."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def __call__(self, images: Tensor) -> None:
        """Train on images `[B, 3, H, W]` in [-1, 1]."""
        self.optimizer.zero_grad()
        made, loss = self.model(images)
        (F.mse_loss(made, images) + loss).backward()
        self.optimizer.step()
