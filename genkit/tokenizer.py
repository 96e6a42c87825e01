"""The tokenizer: the one path from images to indices and back.

Training, evaluation and users all call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from genkit.errors import GenkitError
from genkit.interfaces import Level, Quantized, Quantizer, Values
from genkit.models import RGB, TokenizerOptions
from genkit.ops.later import together
from genkit.ops.precision import float32_by_default, without_autocast


class Output(NamedTuple):
    """The result of a tokenizer's forward pass.

    It holds images `[B, channels, H, W]`, the indices of each level, and the quantizers' loss.
    """

    images: Tensor
    indices: list[Tensor]
    loss: Tensor


class Tokenizer(nn.Module):
    """Encoder, one quantizer per level, fusions between levels, and decoder.

    Images are `[B, channels, H, W]` in [-1, 1]; H and W are multiples of the coarsest level's
    stride. Lists over levels run from the finest to the coarsest. Encoder and decoder may be
    converted to float16, bfloat16 or float64; quantizers and their weights stay in float32.
    """

    def __init__(self, options: TokenizerOptions, channels: int = RGB) -> None:
        super().__init__()
        self.options, self.channels = options, channels
        # How the tokenizer was trained; read from and saved in its checkpoint.
        self.facts: dict[str, Any] = {}
        self.encoder = options.encoder.build(channels)
        self.levels: list[Level] = list(self.encoder.levels)
        pairs = zip(self.levels, self.levels[1:], strict=False)
        self.fusions = nn.ModuleList(
            [options.fusion.build(level, coarser) for level, coarser in pairs]
        )
        with float32_by_default():
            self.quantizers = _Unconverted(
                [options.quantizer.build(level) for level in self.levels]
            )
        self.decoder = options.decoder.build(self.levels, channels)

    @property
    def codebook_sizes(self) -> list[int]:
        """The number of codes per codebook, for every level."""
        return [size for _, size in self.codebooks]

    @property
    def codebooks(self) -> list[tuple[int, int]]:
        """The number of codebooks and of codes in each, for every level."""
        return [
            (int(getattr(quantizer, "codebooks", 1)), int(quantizer.codebook_size))
            for quantizer in self._quantizers
        ]

    @property
    def values(self) -> Values:
        """The values of pixels in the images that it was trained on."""
        return Values.of(self.facts.get("values"))

    @property
    def _quantizers(self) -> list[Quantizer]:
        return cast("list[Quantizer]", list(self.quantizers))

    @property
    def bits_per_pixel(self) -> float:
        """Bits of an image's indices, log2 K each, per pixel."""
        levels = zip(self.levels, self.codebooks, strict=True)
        return sum(count * math.log2(size) / level.stride**2 for level, (count, size) in levels)

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Output:
            """Reconstruct images."""

    def forward(self, images: Tensor) -> Output:
        """Reconstruct images; in eval mode the result is clamped to [-1, 1].

        In training mode, quantizers and other modules update their statistics. If no parameter
        requires a gradient, the tokenizer is frozen and computes as in eval mode.
        """
        # Skip the range check in training: it would wait for the device at every step.
        self._check_images(images, in_range=not self.training)
        if self.training and not any(each.requires_grad for each in self.parameters()):
            with self.evaluating():
                return self._reconstruct(images)
        return self._reconstruct(images)

    def _reconstruct(self, images: Tensor) -> Output:
        if _is_empty(images):
            return Output(torch.zeros_like(images), self._no_indices(images), images.new_zeros(()))
        quantized = self._quantized(self.encoder(_as_of(self.encoder, images)))
        images = self.decoder([_as_of(self.decoder, level.latents) for level in quantized])
        if not self.training:
            images = images.clamp(-1, 1)
        loss = torch.stack([level.loss for level in quantized]).sum()
        return Output(images, [level.indices for level in quantized], loss)

    def _quantized(self, latents: list[Tensor]) -> list[Quantized]:
        """`quantize`, with one question to a GPU for the searches of all levels."""
        if self.training or torch.compiler.is_compiling():
            return self.quantize(latents)
        return together(lambda: self.quantize(latents))

    def quantize(self, latents: list[Tensor]) -> list[Quantized]:
        """Quantize the encoder's latents from the coarsest level to the finest.

        Each level's latents are fused with the quantized latents of the next coarser level.
        """
        result: list[Quantized] = []
        for index in reversed(range(len(self.levels))):
            level = latents[index]
            if result:
                fusion = self.fusions[index]
                level = fusion(level, _as_of(fusion, result[0].latents))
            with float32_by_default(), without_autocast(level.device):
                result.insert(0, self.quantizers[index](level.float()))
        return result

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """The indices of images of any float type: int64 `[B, h, w]` per level, finest first.

        A level with Q codebooks has `[B, h, w, Q]`. Encoding always computes as in eval mode and
        changes no state.
        """
        self._check_images(images, in_range=True)
        if _is_empty(images):
            return self._no_indices(images)
        with self.evaluating():
            latents = self.encoder(_as_of(self.encoder, images))
            return [level.indices for level in self._quantized(latents)]

    @torch.no_grad()
    def decode(self, indices: list[Tensor]) -> Tensor:
        """The images `[B, channels, H, W]` in [-1, 1] of indices as `encode` returns them.

        Indices may be of any integer type. Decoding always computes as in eval mode.
        """
        self.check_indices(indices)
        if _is_empty(indices[0]):
            size = [count * self.levels[0].stride for count in indices[0].shape[1:3]]
            empty = torch.empty(0, self.channels, *size, device=indices[0].device)
            return _as_of(self.decoder, empty)
        with self.evaluating():
            return self._images(self._latents(indices))

    @torch.no_grad()
    def dequantize(self, indices: list[Tensor]) -> list[Tensor]:
        """The quantized latents `[B, C, h, w]` of every level that `decode` makes of indices."""
        self.check_indices(indices)
        with self.evaluating():
            return self._latents(indices)

    @torch.no_grad()
    def decode_latents(self, latents: list[Tensor]) -> Tensor:
        """The images `[B, channels, H, W]` in [-1, 1] of latents as `dequantize` returns them."""
        with self.evaluating():
            return self._images(latents)

    def _latents(self, indices: list[Tensor]) -> list[Tensor]:
        with float32_by_default(), without_autocast(indices[0].device):
            return [
                quantizer.decode(level.long())
                for quantizer, level in zip(self._quantizers, indices, strict=True)
            ]

    def _images(self, latents: list[Tensor]) -> Tensor:
        images: Tensor = self.decoder([_as_of(self.decoder, each) for each in latents])
        return images.clamp(-1, 1)

    def pad(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` whose sides are multiples of the coarsest level's stride.

        The last row and column are repeated; images that fit already are returned as they are.
        """
        stride = self.levels[-1].stride
        missing = [-side % stride for side in images.shape[2:]]
        if not any(missing):
            return images
        return functional.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put every module into eval mode, and restore its mode afterwards."""
        trained = [module for module in self.modules() if module.training]
        for module in trained:
            module.training = False
        try:
            yield
        finally:
            for module in trained:
                module.training = True

    def _no_indices(self, images: Tensor) -> list[Tensor]:
        """The indices of an empty batch, without calling any component."""
        height, width = images.shape[2:]
        return [
            torch.empty(
                (0, *level.grid(height, width), *_several(count)),
                dtype=torch.int64,
                device=images.device,
            )
            for level, (count, _) in zip(self.levels, self.codebooks, strict=True)
        ]

    def _check_images(self, images: Tensor, in_range: bool = False) -> None:
        if not isinstance(images, Tensor):
            raise GenkitError(f"images must be a tensor, not {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise GenkitError(
                f"images must be floats [B, {self.channels}, H, W] in [-1, 1], not "
                f"{images.dtype} {list(images.shape)}; convert uint8 with genkit.images.from_pixels"
            )
        stride = self.levels[-1].stride
        height, width = images.shape[2:]
        if not height or not width or height % stride or width % stride:
            raise GenkitError(
                f"height and width must be multiples of {stride}, not {height} x {width}"
            )
        if not in_range or torch.compiler.is_compiling() or not images.numel():
            return
        largest = float(images.detach().abs().amax())
        if not largest <= 1.01:
            raise GenkitError(f"images must lie in [-1, 1]; these reach {largest:.4g}")

    def check_indices(self, indices: list[Tensor]) -> None:
        """Raise `GenkitError` if `decode` cannot take `indices`."""
        if not isinstance(indices, (list, tuple)) or len(indices) != len(self.levels):
            count = len(indices) if isinstance(indices, (list, tuple)) else "one tensor"
            raise GenkitError(
                f"indices must be a list of {len(self.levels)} tensors, one per level, not {count}"
            )
        for level, values, (count, _) in zip(self.levels, indices, self.codebooks, strict=True):
            several = _several(count)
            whole = isinstance(values, Tensor) and not _is_no_integer(values)
            if not whole or values.ndim != 3 + len(several):
                form = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else ""
                wanted = ", ".join(["B", "h", "w", *map(str, several)])
                raise GenkitError(
                    f"indices of level {level.index} must be integers [{wanted}], "
                    f"not {form or type(values).__name__}"
                )
        images = indices[0].shape[0]
        height, width = (count * self.levels[0].stride for count in indices[0].shape[1:3])
        for level, values, (count, size) in zip(self.levels, indices, self.codebooks, strict=True):
            expected = [images, *level.grid(height, width), *_several(count)]
            if list(values.shape) != expected:
                raise GenkitError(
                    f"indices of level {level.index} have shape {list(values.shape)}; "
                    f"with {list(indices[0].shape)} for level 0 they must be {expected}"
                )
            if torch.compiler.is_compiling() or not values.numel():
                continue
            # Compare as int64: smaller types may not hold the size, and some have no minimum.
            values = values.long()
            if values.min() < 0 or values.max() >= size:
                raise GenkitError(
                    f"indices of level {level.index} must lie between 0 and {size - 1}"
                )


class _Unconverted(nn.ModuleList):
    """Modules that move between devices with the rest, but keep their dtypes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def _as_of(module: nn.Module, values: Tensor) -> Tensor:
    """Values in the dtype of the module's weights, if it has any."""
    for parameter in module.parameters():
        return values.to(parameter.dtype)
    return values


def _is_empty(values: Tensor) -> bool:
    return not torch.compiler.is_compiling() and len(values) == 0


def _several(codebooks: int) -> list[int]:
    """The last dimension of the indices; empty with one codebook."""
    return [codebooks] if codebooks > 1 else []


def _is_no_integer(values: Tensor) -> bool:
    return values.is_floating_point() or values.is_complex() or values.dtype == torch.bool
