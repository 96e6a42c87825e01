"""Large images by overlapping tiles, in the memory of one tile.

Tiles begin at multiples of the coarsest stride. `encode_tiles` keeps the indices that no border of
a tile reaches, so they equal the indices of the whole image, except where rounding decides between
two codes. `decode_tiles` keeps the pixels that no border reaches. Components that see the whole
image need `approximate`: then the middles of tiles are kept as they are, and pixels are blended.
By default tiles have 1,024 pixels on a side, and images go whole through components that see all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from genkit.errors import GenkitError, OptionError
from genkit.images import Pixels, from_pixels, to_uint8
from genkit.reach import Way, reach
from genkit.tokenizer import Tokenizer
from genkit.tokens import TILE

# With `approximate`, this part of a tile on each side is left to its neighbours.
_APPROXIMATE = 8


class _Tile(NamedTuple):
    """The pixels of a tile along one side of an image, and which pixels of it are kept."""

    start: int
    stop: int
    first: int
    last: int


def encode_tiles(
    tokenizer: Tokenizer,
    images: Pixels | Tensor,
    tile: int | None = None,
    *,
    approximate: bool = False,
) -> list[Tensor]:
    """The indices of pixels `[B, H, W, C]` as `tokenizer.encode` returns them, on the CPU.

    `images` may be a memory map. Those up to `tile` pixels high and wide are encoded whole; so are
    all with `tile` 0. Raises `OptionError` for an encoder that sees the whole image, unless
    `approximate`, and for a `tile` that is too small.
    """
    size = _size(images)
    tile = _chosen(tokenizer, "encode", size, tile, approximate)
    if is_whole(size, tile):
        return [level.cpu() for level in tokenizer.encode(_floats(tokenizer, images))]
    rows, columns, _ = _grid(tokenizer, "encode", size, tile, approximate)
    counts = zip(tokenizer.levels, tokenizer.codebooks, strict=True)
    result = [
        torch.empty(len(images), *level.grid(*size), *([count] if count > 1 else [])).long()
        for level, (count, _) in counts
    ]
    for number in range(len(images)):
        for y in rows:
            for x in columns:
                part = images[number : number + 1, y.start : y.stop, x.start : x.stop]
                found = tokenizer.encode(_floats(tokenizer, part))
                for level, whole, own in zip(tokenizer.levels, result, found, strict=True):
                    (top, bottom), (left, right) = (
                        (each.first // level.stride, each.last // level.stride) for each in (y, x)
                    )
                    above, before = y.start // level.stride, x.start // level.stride
                    whole[number, top:bottom, left:right] = own[
                        0, top - above : bottom - above, left - before : right - before
                    ]
    return result


def decode_tiles(
    tokenizer: Tokenizer,
    indices: list[Tensor],
    tile: int | None = None,
    *,
    approximate: bool = False,
    convert: Callable[[Tensor], Pixels] = to_uint8,
    out: Pixels | None = None,
) -> Pixels:
    """The pixels `[B, H, W, C]` of indices as `tokenizer.decode` takes them.

    `convert` turns images `[B, C, H, W]` in [-1, 1] into pixels. `out`, such as a memory map, is an
    array to write to. Raises `OptionError` as `encode_tiles` does, for the decoder.
    """
    tokenizer.check_indices(indices)
    finest = tokenizer.levels[0].stride
    size = indices[0].shape[1] * finest, indices[0].shape[2] * finest
    tile = _chosen(tokenizer, "decode", size, tile, approximate)
    if is_whole(size, tile):
        pixels = convert(_decoded(tokenizer, indices))
        if out is None:
            return pixels
        out[...] = pixels
        return out
    rows, columns, blend = _grid(tokenizer, "decode", size, tile, approximate)
    for number in range(len(indices[0])):
        one = [level[number : number + 1] for level in indices]
        strips = (_strip(tokenizer, one, y, columns, blend) for y in rows)
        for top, strip in _joined(strips, rows, blend):
            made = convert(strip)[0]
            if out is None:
                out = np.empty((len(indices[0]), *size, made.shape[2]), made.dtype)
            out[number, top : top + len(made)] = made
    assert out is not None
    return out


def reconstruct_tiles(
    tokenizer: Tokenizer,
    images: Pixels | Tensor,
    tile: int | None = None,
    *,
    approximate: bool = False,
    convert: Callable[[Tensor], Pixels] = to_uint8,
) -> Pixels:
    """The reconstructions of pixels `[B, H, W, C]` of any size.

    They are padded to the coarsest stride, and cropped back; otherwise as of `encode_tiles` and
    `decode_tiles`.
    """
    height, width = _size(images)
    images = pad_pixels(tokenizer, np.asarray(images))
    size = _size(images)
    ways: tuple[Way, ...] = get_args(Way)
    tile = min(_chosen(tokenizer, way, size, tile, approximate) for way in ways)
    if is_whole(size, tile):
        with torch.no_grad(), tokenizer.evaluating():
            made = convert(tokenizer(_floats(tokenizer, images)).images)
    else:
        for way in ways:
            check_tiles(tokenizer, way, size, tile, approximate)
        indices = encode_tiles(tokenizer, images, tile, approximate=approximate)
        made = decode_tiles(tokenizer, indices, tile, approximate=approximate, convert=convert)
    return made[:, :height, :width]


def pad_pixels(tokenizer: Tokenizer, pixels: Pixels) -> Pixels:
    """Pixels `[B, H, W, C]` padded as `tokenizer.pad` pads images."""
    stride = tokenizer.levels[-1].stride
    missing = [-side % stride for side in pixels.shape[1:3]]
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def check_tiles(
    tokenizer: Tokenizer, way: Way, size: tuple[int, int], tile: int | None, approximate: bool
) -> bool:
    """Whether images of a size are only approximated; `OptionError` if tiles are refused."""
    tile = _chosen(tokenizer, way, size, tile, approximate)
    return not is_whole(size, tile) and _grid(tokenizer, way, size, tile, approximate)[2]


def _chosen(
    tokenizer: Tokenizer, way: Way, size: tuple[int, int], tile: int | None, approximate: bool
) -> int:
    """The tile that is used: by default none for a component that sees the whole image."""
    if tile is not None or is_whole(size, tile):
        return TILE if tile is None else tile
    return TILE if approximate or reach(tokenizer, way).pixels is not None else 0


def is_whole(size: tuple[int, int], tile: int | None) -> bool:
    """Whether images of a height and width fit one tile; `OptionError` for an impossible tile."""
    tile = TILE if tile is None else tile
    if type(tile) is not int or tile < 0:
        raise OptionError(f"tile must be a whole number of 0 or more, not {tile!r}")
    return not tile or max(size) <= tile


def _size(images: Pixels | Tensor) -> tuple[int, int]:
    if images.ndim != 4:
        raise GenkitError(f"pixels must be [B, H, W, C], not {list(images.shape)}")
    return images.shape[1], images.shape[2]


def _floats(tokenizer: Tokenizer, pixels: Pixels | Tensor) -> Tensor:
    """Images in [-1, 1] on the tokenizer's device."""
    # A memory map may be read-only, which tensors cannot be.
    copied = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    return from_pixels(copied.to(next(tokenizer.parameters()).device))


def _decoded(tokenizer: Tokenizer, indices: list[Tensor]) -> Tensor:
    device = next(tokenizer.parameters()).device
    return tokenizer.decode([level.to(device) for level in indices])


def _grid(
    tokenizer: Tokenizer, way: Way, size: tuple[int, int], tile: int, approximate: bool
) -> tuple[list[_Tile], list[_Tile], bool]:
    """The tiles along the height and the width, and whether they only approximate the whole."""
    unit = tokenizer.levels[-1].stride
    if any(length % unit for length in size):
        raise GenkitError(
            f"height and width must be multiples of {unit}, not {size[0]} x {size[1]}"
        )
    found = reach(tokenizer, way)
    margin = found.pixels
    if margin is None:
        if not approximate:
            changed = "indices" if way == "encode" else "pixels"
            raise OptionError(
                f"{found.component} sees the whole image at once, so tiles would change its "
                f"{changed}: allow that with --approximate-tiles, or give --tile 0 to {way} "
                "images whole, which takes much more memory"
            )
        margin = max(1, tile // _APPROXIMATE // unit) * unit
    if tile < (least := 2 * margin + unit):
        raise OptionError(
            f"tiles of {tile} pixels are too small to {way} by: give --tile {least} or more"
        )
    height, width = (_tiles(length, tile, margin, unit) for length in size)
    return height, width, found.pixels is None


def _tiles(length: int, tile: int, margin: int, unit: int) -> list[_Tile]:
    """Tiles of equal length along a side of an image, as few as possible and as small as these."""
    if length <= tile:
        return [_Tile(0, length, 0, length)]
    most = (tile - 2 * margin) // unit * unit
    count = -(-(length - 2 * margin) // most)
    # Every tile keeps `step` pixels or less, and the last one ends with the image.
    step = -(-(length - 2 * margin) // (count * unit)) * unit
    starts = [*range(0, length - step - 2 * margin, step), length - step - 2 * margin]
    cuts = [0, *(start + margin for start in starts[1:]), length]
    return [
        _Tile(start, start + step + 2 * margin, first, last)
        for start, first, last in zip(starts, cuts, cuts[1:], strict=False)
    ]


def _strip(
    tokenizer: Tokenizer, indices: list[Tensor], y: _Tile, columns: list[_Tile], blend: bool
) -> Tensor:
    """The images of the tiles beside each other, joined: `[1, C, h, W]` on the CPU."""
    parts = []
    for x in columns:
        chosen = [
            level[:, y.start // stride : y.stop // stride, x.start // stride : x.stop // stride]
            for level, stride in zip(
                indices, [each.stride for each in tokenizer.levels], strict=True
            )
        ]
        parts.append(_decoded(tokenizer, chosen).float().cpu().transpose(2, 3))
    strips = [part for _, part in _joined(iter(parts), columns, blend)]
    return torch.cat(strips, 2).transpose(2, 3)


def _joined(
    parts: Iterator[Tensor], tiles: list[_Tile], blend: bool
) -> Iterator[tuple[int, Tensor]]:
    """The pixels of tiles along the third dimension, each with its place, without overlaps.

    Where two tiles overlap, `blend` mixes them linearly. Otherwise each keeps its part.
    """
    before: Tensor | None = None
    for number, (part, tile) in enumerate(zip(parts, tiles, strict=True)):
        following = tiles[number + 1] if number + 1 < len(tiles) else None
        if not blend:
            yield tile.first, part[:, :, tile.first - tile.start : tile.last - tile.start]
            continue
        if before is not None:
            common = before.shape[2]
            weights = ((torch.arange(common) + 0.5) / common).view(1, 1, -1, 1)
            part[:, :, :common] = before.lerp(part[:, :, :common], weights)
        stop = following.start - tile.start if following else part.shape[2]
        # The rest overlaps with the next tile.
        before = part[:, :, stop:].clone()
        yield tile.start, part[:, :, :stop]
