"""Large images by tiles: equal to the whole image, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, invoke
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import genkit
from genkit.errors import GenkitError, OptionError
from genkit.images import from_pixels, to_uint8
from genkit.plugin.registry import registry
from genkit.reach import reach
from genkit.run.options import layered, resolve_run
from genkit.tiles import decode_tiles, encode_tiles
from genkit.tokenizer import Tokenizer

SIZE = 160, 224
TILE = 128
# Small components. An entry says too whether they see the whole image.
VQGAN: dict[str, Any] = {"width": [8], "blocks": 1}
ENCODERS: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "aren": [
        ({}, False),
        ({"norm": "batch"}, False),
        ({"norm": "group"}, True),
        ({"attention": "pixel"}, True),
    ],
    "timm": [({"model": "test_resnet", "strides": [4, 8], "levels": 1}, False)],
    "vqgan": [(VQGAN, True)],
}
DECODERS: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "mirror": [({}, False), ({"norm": "batch"}, False), ({"norm": "group"}, True)],
    "residual": [({"width": [8]}, True)],
    "vqgan": [(VQGAN, True)],
}
CASES = [
    (kind, name, options, whole)
    for kind, known in (("encoder", ENCODERS), ("decoder", DECODERS))
    for name in registry().names(kind)
    if name != "no-decoder"
    for options, whole in known[name]
]


def built(**parts: Any) -> Tokenizer:
    """A small tokenizer in eval mode, with statistics and codes of a batch."""
    torch.manual_seed(0)
    small = {kind: TINY[kind] for kind in ("encoder", "decoder", "quantizer")} | parts
    tokenizer = Tokenizer(resolve_run(layered(None, small)).tokenizer)
    for module in tokenizer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    tokenizer.train()
    tokenizer(from_pixels(photograph(*SIZE)))
    return tokenizer.eval()


def photograph(*size: int) -> Any:
    """Smooth noise with some detail, uint8 `[1, H, W, 3]`."""
    rng = torch.Generator().manual_seed(0)
    coarse, fine = (
        F.interpolate(torch.rand(1, 3, *each, generator=rng), size, mode="bilinear")
        for each in ((5, 7), (40, 56))
    )
    return to_uint8(1.4 * coarse + 0.6 * fine - 1)


def wrong(tokenizer: Tokenizer, pixels: Any, tile: int, **options: Any) -> float:
    """The share of indices that differ from the indices of the whole image."""
    whole = tokenizer.encode(from_pixels(pixels))
    found = encode_tiles(tokenizer, pixels, tile, **options)
    assert [each.shape for each in found] == [each.shape for each in whole]
    assert min(len(each.unique()) for each in whole) > 3
    differs = torch.cat([(a != b).flatten() for a, b in zip(found, whole, strict=True)])
    return float(differs.double().mean())


@pytest.mark.parametrize(("kind", "name", "options", "whole"), CASES)
def test_tiles_equal_the_whole_image_or_are_refused(
    kind: str, name: str, options: dict[str, Any], whole: bool
) -> None:
    own = {**(TINY[kind] if name in ("aren", "mirror") else {}), "name": name, **options}
    tokenizer = built(**{kind: own})
    pixels = photograph(*SIZE)
    indices = tokenizer.encode(from_pixels(pixels))
    if whole:
        text = f"the {kind} '{name}' sees the whole image at once, .* --approximate-tiles"
        call, given = (encode_tiles, pixels) if kind == "encoder" else (decode_tiles, indices)
        with pytest.raises(OptionError, match=text):
            call(tokenizer, given, TILE)
    elif kind == "encoder":
        # Rounding may decide between two codes.
        assert wrong(tokenizer, pixels, TILE) < 1e-3
    else:
        made = decode_tiles(tokenizer, indices, TILE).astype(int)
        expected = to_uint8(tokenizer.decode(indices)).astype(int)
        assert abs(made - expected).max() <= 1
        assert expected.std() > 2


def test_approximate_tiles_differ_by_a_part_and_blend() -> None:
    tokenizer = built(
        encoder={**TINY["encoder"], "attention": "pixel"},
        decoder={**TINY["decoder"], "norm": "group"},
    )
    pixels = photograph(*SIZE)
    assert 0 < wrong(tokenizer, pixels, TILE, approximate=True) < 0.9
    indices = tokenizer.encode(from_pixels(pixels))
    out = np.zeros((1, *SIZE, 3), np.uint8)
    assert decode_tiles(tokenizer, indices, TILE, approximate=True, out=out) is out
    whole = to_uint8(tokenizer.decode(indices)).astype(int)
    error = abs(out.astype(int) - whole)
    assert 0 < error.mean() < whole.std() / 4


class Flat(nn.Module):
    """Tiles that are black and white in turn."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.white = stride, False

    def forward(self, latents: list[Tensor]) -> Tensor:
        self.white = not self.white
        size = [count * self.stride for count in latents[0].shape[2:]]
        return latents[0].new_full((1, 3, *size), 1.0 if self.white else -1.0)


def test_overlaps_are_blended_linearly() -> None:
    tokenizer = built()
    tokenizer.decoder = Flat(tokenizer.levels[0].stride)
    indices = [torch.randint(0, 16, (1, *level.grid(32, 224))) for level in tokenizer.levels]
    line = decode_tiles(tokenizer, indices, 96, approximate=True)[0, 0, :, 0].astype(int)
    # Neighbouring tiles of 96 pixels overlap by two eighths, rounded to the stride.
    assert np.ptp(line) == 255
    assert abs(np.diff(line)).max() <= np.ptp(line) / 16 + 1


def test_small_images_are_encoded_whole_and_a_tile_may_be_too_small() -> None:
    tokenizer = built(encoder={**TINY["encoder"], "attention": "pixel"})
    pixels = photograph(*SIZE)
    for tile in (0, max(SIZE)):
        assert wrong(tokenizer, pixels, tile) == 0
    with pytest.raises(OptionError, match="tiles of 16 pixels are too small to decode by: give"):
        decode_tiles(tokenizer, tokenizer.encode(from_pixels(pixels)), 16)
    with pytest.raises(OptionError, match="tile must be a whole number of 0 or more, not -1"):
        encode_tiles(tokenizer, pixels, -1)


def test_tiles_take_16_bits_and_memory_maps(tmp_path: Path) -> None:
    tokenizer = built()
    pixels = photograph(*SIZE).repeat(2, 0).astype(np.uint16) * 257
    pixels[1] = pixels[1, ::-1]
    np.save(tmp_path / "a.npy", pixels)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for found, whole in zip(
        encode_tiles(tokenizer, mapped, TILE), tokenizer.encode(from_pixels(pixels)), strict=True
    ):
        assert (found != whole).double().mean() < 1e-3


def test_the_reach_follows_the_weights() -> None:
    tokenizer = built()
    convolutions = [m for m in tokenizer.decoder.modules() if isinstance(m, nn.Conv2d)]
    before = reach(tokenizer, "decode").pixels
    for each in convolutions:
        if each.kernel_size == (3, 3):
            side = each.weight.detach().clone()
            side[:, :, 1, 1] = 0
            with torch.no_grad():
                each.weight.sub_(side)
    after = reach(tokenizer, "decode").pixels
    assert before is not None
    assert after is not None
    assert 0 < after < before
    assert reach(tokenizer, "encode").pixels == 56


class Placed(nn.Module):
    """Counts columns from the border, so that a part of an image has other latents."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.levels = inner, inner.levels

    def forward(self, images: Tensor) -> Any:
        return self.inner(images + torch.arange(images.shape[3], dtype=images.dtype) / 1000)


def test_an_encoder_that_counts_from_the_border_is_refused() -> None:
    tokenizer = built()
    tokenizer.encoder = Placed(tokenizer.encoder)
    assert reach(tokenizer, "encode").pixels is None


def test_commands_take_large_images_by_tiles(tmp_path: Path) -> None:
    genkit.save(built(), tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    Image.fromarray(photograph(192, 192)[0]).save(tmp_path / "images" / "a.png")
    pictures = {}
    for tile in (0, 128):
        tokens, flags = tmp_path / f"{tile}.safetensors", ("--tile", str(tile), "--device", "cpu")
        size = ("--resolution", "192")
        model, images = tmp_path / "model.safetensors", tmp_path / "images"
        done = [
            invoke("encode", model, images, *size, *flags, "--out", tokens),
            invoke("decode", model, tokens, *flags, "--out", tmp_path / f"out-{tile}"),
            invoke("reconstruct", model, images, *size, *flags, "--out", tmp_path / f"both-{tile}"),
        ]
        assert [code for code, _ in done] == [0, 0, 0], done
        (made,) = (tmp_path / f"out-{tile}").iterdir()
        (both,) = (tmp_path / f"both-{tile}").iterdir()
        pictures[tile] = [np.asarray(Image.open(each)).astype(int) for each in (made, both)]
        assert abs(pictures[tile][0] - pictures[tile][1][:, 194:]).max() <= 1
    assert "tiles" not in genkit.load_tokens(tmp_path / "128.safetensors").table
    for whole, tiled in zip(*pictures.values(), strict=True):
        assert whole.shape == tiled.shape
        assert (abs(whole - tiled) > 1).mean() < 1e-3


def test_commands_refuse_tiles_that_change_indices_and_say_so_in_tokens(tmp_path: Path) -> None:
    attentive = {**TINY["encoder"], "attention": "pixel"}
    tokenizer = built(encoder=attentive, decoder={**TINY["decoder"], "norm": "group"})
    genkit.save(tokenizer, model := tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    Image.fromarray(photograph(160, 160)[0]).save(tmp_path / "images" / "a.png")
    size, tokens = ("--resolution", "160"), tmp_path / "tokens.safetensors"
    encode = ("encode", model, tmp_path / "images", *size, "--tile", "128", "--out", tokens)
    code, text = invoke(*encode)
    assert code
    assert "the encoder 'aren' sees the whole image at once" in text
    assert not list(tmp_path.glob("tokens*"))
    assert invoke(*encode, "--approximate-tiles")[0] == 0
    table = genkit.load_tokens(tokens).table
    assert table["tiles"] == "approximate, of 128 pixels"
    decode = ("decode", model, tokens, "--tile", "128", "--out", tmp_path / "out")
    assert "the decoder 'mirror' sees the whole image" in invoke(*decode)[1]
    assert not (tmp_path / "out").exists()
    assert invoke(*decode, "--approximate-tiles")[0] == 0
    reconstruct = ("reconstruct", model, tmp_path / "images", *size, "--out", tmp_path / "both")
    assert "the encoder 'aren' sees" in invoke(*reconstruct, "--tile", "128")[1]
    assert invoke(*reconstruct, "--tile", "128", "--approximate-tiles")[0] == 0


def test_pixels_of_other_shapes_are_refused() -> None:
    tokenizer = built()
    with pytest.raises(GenkitError, match="multiples of 8, not 150 x 224"):
        encode_tiles(tokenizer, photograph(150, 224), TILE)
    with pytest.raises(GenkitError, match=r"pixels must be \[B, H, W, C\], not \[160, 224, 3\]"):
        encode_tiles(tokenizer, photograph(160, 224)[0], TILE)
