"""Image files of every format, depth and colour mode are decoded to the right pixels."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder
from PIL import Image, PngImagePlugin

from genkit import Subset
from genkit.data.opening import read_rgb
from genkit.errors import UnreadableImage

RED = (200, 30, 40)


def folder(location: Path, split: str = "all", resolution: int = 16, **options: Any) -> Subset:
    size = resolution, resolution
    return Folder(FolderOptions(location=str(location), **options), size, 0).split(split)


def test_folder_reads_every_kind_of_image(tmp_path: Path) -> None:
    """One plain red picture in many forms; each must come out red."""
    red = Image.new("RGB", (40, 30), RED)
    red.save(tmp_path / "plain.png")
    red.save(tmp_path / "photo.JPG", quality=95)
    red.save(tmp_path / "web.webp", lossless=True)
    red.save(tmp_path / "old.bmp")
    red.save(tmp_path / "scan.tiff")
    red.quantize(4).save(tmp_path / "palette.png")
    red.convert("RGBA").save(tmp_path / "alpha.png")
    red.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    red.save(
        tmp_path / "moving.gif",
        save_all=True,
        append_images=[Image.new("RGB", (40, 30), (0, 0, 255))],
    )
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (5, 4), RED).save(tmp_path / "deep" / "er" / "smaller-than-the-crop.png")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = folder(tmp_path)
    assert len(dataset) == 10
    assert not dataset.problems
    images = dataset.images(range(10))
    off = np.abs(images.astype(int) - np.array(RED)).max((1, 2, 3))
    names = [dataset.name(index) for index in range(len(dataset))]
    assert (off < 8).all(), dict(zip(names, off, strict=True))


def test_grey_and_sixteen_bits(tmp_path: Path) -> None:
    Image.new("L", (20, 20), 100).save(tmp_path / "grey.png")
    Image.fromarray(np.full((20, 20), 100 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    dataset = folder(tmp_path)
    assert dataset.channels == 1
    assert (dataset.images([0, 1]) == 100 * 257).all()


@pytest.mark.parametrize("most", [255, 1023, 4095, 65535])
def test_grey_with_the_number_of_levels_in_the_file(tmp_path: Path, most: int) -> None:
    kind = ">u2" if most > 255 else "u1"
    pixels = np.full((20, 20), round(most * 0.4)).astype(kind)
    (tmp_path / "binary.pgm").write_bytes(b"P5 20 20 %d\n" % most + pixels.tobytes())
    text = " ".join(map(str, pixels.reshape(-1).tolist()))
    (tmp_path / "text.pgm").write_text(f"P2 20 20 {most}\n{text}\n")
    off = folder(tmp_path).images([0, 1]) / (257 if most > 255 else 1) - 102
    assert np.abs(off).max() <= 1


def test_twelve_bits_of_a_tiff_are_scaled(tmp_path: Path) -> None:
    pixels = np.full((20, 20), 100 * 16, dtype=np.uint16)
    packed = [[a >> 4, (a & 15) << 4 | b >> 8, b & 255] for a, b in pixels.reshape(-1, 2).tolist()]
    data = bytes(byte for three in packed for byte in three)
    entries = [(256, 20), (257, 20), (258, 12), (259, 1), (262, 1), (273, 8), (278, 20)]
    fields = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*entries, (279, len(data))]]
    directory = struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    (tmp_path / "scan.tif").write_bytes(head + data + directory)
    assert (folder(tmp_path).images([0]) == round(1600 / 4095 * 65535)).all()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("bits", "colour", "clear"),
    [(1, 0, [1]), (2, 0, [2]), (4, 0, [9]), (8, 0, [77]), (16, 0, [300]), (16, 2, [300, 9, 70])],
)
def test_one_colour_of_a_png_is_transparent(
    bits: int, colour: int, clear: list[int], tmp_path: Path
) -> None:
    """At every depth: the upper row has the transparent colour, the lower row another one."""
    (tmp_path / "clear.png").write_bytes(png_of_two_rows(bits, colour, clear))
    image = read_rgb(tmp_path / "clear.png", RED)
    assert image.getpixel((0, 0)) == RED
    assert image.getpixel((0, 1)) != RED


def png_of_two_rows(bits: int, colour: int, clear: list[int]) -> bytes:
    other = [2**bits - 1 - value for value in clear]
    rows = [
        b"\0" + int("".join(f"{value:0{bits}b}" for value in row * 8), 2).to_bytes(bits * len(row))
        for row in (clear, other)
    ]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">II5B", 8, 2, bits, colour, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def test_long_texts_and_profiles_of_a_png_do_not_matter(tmp_path: Path) -> None:
    """Pillow refuses each: a long text, a colour profile, many texts, a text after the pixels."""
    long = PngImagePlugin.PngInfo()
    long.add_text("workflow", "x" * 3_000_000, zip=True)
    many = PngImagePlugin.PngInfo()
    for number in range(66):
        many.add_text(str(number), "x" * 1_020_000, zip=True)
    red = Image.new("RGB", (20, 20), RED)
    red.save(tmp_path / "long.png", pnginfo=long)
    red.save(tmp_path / "many.png", pnginfo=many)
    red.save(tmp_path / "profile.png", icc_profile=bytes(2_000_000))
    whole = (tmp_path / "long.png").read_bytes()
    start, end = whole.index(b"zTXt") - 4, whole.index(b"IDAT") - 4
    (tmp_path / "behind.png").write_bytes(
        whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:]
    )
    dataset = folder(tmp_path)
    assert len(dataset) == 4
    assert (dataset.images(range(4)) == RED).all()
    assert (dataset.images(range(4), range(4)) == RED).all()


@pytest.mark.parametrize("name", ["features.h5", "a.grib", "a.bufr", "a.png", "a.mpg"])
def test_formats_with_unreadable_pixels_are_not_images(name: str, photographs: Path) -> None:
    start = {"grib": b"GRIB\0\0\0\1", "bufr": b"BUFR", "mpg": b"\0\0\1\xb3\x10\x01\x00\x13"}
    content = start.get(name.rpartition(".")[2], b"\x89HDF\r\n\x1a\n")
    (photographs / name).write_bytes(content + bytes(100))
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert (name in dataset.problems) == (name == "a.png")


def test_warnings_of_pillow_are_not_shown(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), RED).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    note = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12"
    segment = b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment + whole[2:])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        dataset = folder(tmp_path)
        dataset.images([0])
        dataset.images([0], [0])
    assert not seen


def test_pixels_without_a_stated_range_are_skipped(tmp_path: Path) -> None:
    Image.new("F", (20, 20), 1.5).save(tmp_path / "float.tiff")
    Image.new("I", (20, 20), 200).save(tmp_path / "int.tiff")
    for number, value in ((0, "1.5"), (1, "200")):
        with pytest.raises(UnreadableImage, match=f"values from {value} to .*: give their range"):
            folder(tmp_path).images([number])


def test_strips_are_cropped_before_they_are_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (2, 30000), RED).save(tmp_path / "high.png")
    Image.new("RGB", (30000, 2), RED).save(tmp_path / "wide.png")
    dataset = folder(tmp_path, resolution=64)
    assert (dataset.images([0, 1]) == RED).all()
    assert all(
        image.nbytes <= 64 * 64 * 16 * 3
        for image in (dataset.dataset._decoded(number, varied=False) for number in range(2))
    )


def test_transparency_is_blended_with_the_background_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (*RED, 0)).save(tmp_path / "clear.png")
    assert (folder(tmp_path).images([0]) == 255).all()
    assert (folder(tmp_path, background=(1, 2, 3)).images([0]) == (1, 2, 3)).all()


def test_exif_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    picture.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # Upright after a quarter turn clockwise: the left half ends up on top.
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_rgb(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    assert np.asarray(upright)[5, 10, 0] > 150
    assert np.asarray(upright)[35, 10, 0] < 50
