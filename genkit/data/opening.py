"""Opening of image files: the supported formats, and conversion of the first frame to RGB."""

from __future__ import annotations

import functools
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from genkit.data import MAX_PIXELS

Result = TypeVar("Result")

# Unsupported formats: for EPS Pillow runs another program, and for MPEG it only reads the size.
_NEVER = ("EPS", "MPEG")
# The file extension of NumPy arrays. Next to pictures they hold other facts, such as features.
ARRAYS = ".npy"
_PNG = b"\x89PNG\r\n\x1a\n"
# PNG chunks with text or a colour profile.
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
BITS_PER_SAMPLE = 258
ORIENTATION = 0x0112


def read_rgb(
    source: Path | IO[bytes],
    background: Sequence[int] = (255, 255, 255),
    most: int = MAX_PIXELS,
) -> Image.Image:
    """The first frame of an image file, upright, as RGB, with transparency over `background`."""
    return from_opened(source, lambda image: to_rgb(image, background), most)


def from_opened(
    source: Path | IO[bytes], do: Callable[[Image.Image], Result], most: int = MAX_PIXELS
) -> Result:
    """The result of `do` on an opened image file; `ValueError` above `most` pixels."""
    refuse_endless(source)
    try:
        with opened(source, most) as image:
            return do(image)
    except ValueError:
        # Pillow refuses a PNG with long texts or a large colour profile, although its pixels are
        # fine. Retry without them.
        if (content := _png_without_notes(source)) is None:
            raise
    with opened(BytesIO(content), most) as image:
        return do(image)


@contextmanager
def opened(source: Path | IO[bytes], most: int) -> Iterator[Image.Image]:
    """An opened image file. PostScript is refused, because Pillow would run it as a program."""
    with warnings.catch_warnings(), _limit(most):
        warnings.simplefilter("ignore")  # Pillow warns of oddities in readable files.
        try:
            image = Image.open(source, formats=kinds())
        except UnidentifiedImageError as error:
            # Pillow's message would name an object in memory.
            raise ValueError("it is not an image in a supported format") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"it has more than {2 * most} pixels; {_allowed(most)}") from error
        with image:
            refuse_too_large(*image.size, most)
            yield image


def refuse_endless(source: Path | IO[bytes]) -> None:
    """`ValueError` for a pipe or a device."""
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise ValueError("it is not a file")


def refuse_too_large(width: int, height: int, most: int) -> None:
    """`ValueError` for an image that takes too much memory once decoded."""
    if width * height > most:
        raise ValueError(f"it has {width} x {height} pixels; {_allowed(most)}")


def _allowed(most: int) -> str:
    return f"the limit is --data.max-pixels {most} (behind a location: ?max-pixels={most})"


@contextmanager
def _limit(most: int) -> Iterator[None]:
    """Set Pillow's pixel limit, which is global; Pillow refuses images above twice the limit."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@functools.cache
def kinds() -> list[str]:
    """The supported image formats, in the order that they are tried."""
    Image.init()
    often = ["JPEG", "PNG", "WEBP"]
    return often + [kind for kind in Image.ID if kind not in often and _has_pixels(kind)]


def _has_pixels(kind: str) -> bool:
    """Whether Pillow decodes a format; it can only identify some others."""
    factory = Image.OPEN[kind][0]
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return kind not in _NEVER and not stub


@functools.cache
def endings() -> frozenset[str]:
    """The file extensions of pictures, such as `.png`."""
    known = {*kinds(), "MPO"}  # Pillow opens this kind as a JPEG.
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in known)


def _png_without_notes(source: Path | IO[bytes]) -> bytes | None:
    """A PNG without its texts and colour profile; None for other formats."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _png_without_notes(file)
    source.seek(0)
    if source.read(len(_PNG)) != _PNG:
        return None
    kept = [_PNG]
    while len(head := source.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in _NOTES:
            source.seek(length + 4, 1)
        else:
            kept += [head, source.read(length + 4)]
    return b"".join(kept)


def to_rgb(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """An opened image, upright, as RGB over a background."""
    if (shift := spare_bits(image)) is not None:
        image = _eight_bits(image, shift)
    else:
        _scale_transparency(image)
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F"):
        raise ValueError("it has 32-bit pixels, whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(
            Image.new("RGBA", image.size, (*background, 255)), image
        ).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def spare_bits(image: Image.Image) -> int | None:
    """The bits per pixel beyond eight of a grey image; None for images that Pillow converts well.

    Pillow would clip the values of the others.
    """
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
        return max(0, int(bits[0]) - 8)
    # Pillow scales these to 16 bits, whatever maximum value the file states.
    return 8 if image.mode == "I" and image.format == "PPM" else None


def _eight_bits(image: Image.Image, shift: int) -> Image.Image:
    clear = image.info.get("transparency")
    ImageOps.exif_transpose(image, in_place=True)
    pixels = np.asarray(image).astype(np.int64)
    grey = Image.fromarray((pixels >> shift).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    return grey


def _scale_transparency(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG to eight bits, as Pillow does with the pixels."""
    clear = image.info.get("transparency")
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return
    raw = image.tile[0].args
    if raw == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif raw in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
