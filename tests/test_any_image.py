"""Images of any number of channels and bits, read exactly and scaled as stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, flags, invoke, need
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder
from PIL import Image

import genkit
from genkit.data.split import Subset
from genkit.errors import UnreadableImage
from genkit.images import from_pixels
from genkit.interfaces import Values

SIDE = 24


def noise(*shape: int, high: int = 65536) -> np.ndarray[Any, Any]:
    dtype = np.uint16 if high > 256 else np.uint8
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def split(path: Path, **options: Any) -> Subset:
    return Folder(FolderOptions(location=str(path), **options), (SIDE, SIDE), 0).split("all")


def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    """A PNG of any depth, or a `.npy` or TIFF file."""
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        need("tifffile")
        import tifffile

        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    elif pixels.dtype == np.uint16 and pixels.ndim == 3:
        path.write_bytes(deep_png(pixels))
    else:
        Image.fromarray(pixels).save(path)


def deep_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG with 16 bits in each channel, which Pillow cannot write."""
    import struct
    import zlib

    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


@pytest.mark.parametrize(
    ("name", "shape", "high"),
    [
        ("grey.png", (SIDE, SIDE), 256),
        ("colour.png", (SIDE, SIDE, 3), 256),
        ("deep.png", (SIDE, SIDE), 65536),
        ("deep-colour.png", (SIDE, SIDE, 3), 65536),
        ("array.npy", (SIDE, SIDE), 256),
        ("two.npy", (SIDE, SIDE, 2), 65536),
        ("first.npy", (5, SIDE, SIDE), 65536),
        ("many.npy", (SIDE, SIDE, 16), 256),
        ("five.tif", (SIDE, SIDE, 5), 65536),
        ("colour.tif", (SIDE, SIDE, 3), 65536),
        ("grey.tif", (SIDE, SIDE), 65536),
    ],
)
def test_every_value_comes_back(
    name: str, shape: tuple[int, ...], high: int, tmp_path: Path
) -> None:
    pixels = noise(*shape, high=high)
    write(tmp_path / name, pixels)
    images = split(tmp_path)
    last = np.moveaxis(pixels, 0, 2) if shape[0] < SIDE else pixels.reshape(SIDE, SIDE, -1)
    assert images.channels == last.shape[2]
    assert (images.values == Values()) == (high == 256)
    for seeds in (None, [3]):
        found = images.images([0], seeds)
        assert found.dtype == pixels.dtype
        same = [(found[0] == way).all() for way in (last, last[:, ::-1])]
        assert any(same)
        assert same[0] or seeds


def test_floats_and_signed_integers_take_a_range(tmp_path: Path) -> None:
    scan = np.linspace(-1024, 3071, SIDE * SIDE).astype(np.int16).reshape(SIDE, SIDE)
    np.save(tmp_path / "scan.npy", scan)
    with pytest.raises(UnreadableImage, match=r"integers have no range: give it"):
        split(tmp_path).images([0])
    images = split(tmp_path, range=(-1024, 3071))
    assert images.values == Values("int16", (-1024, 3071))
    expected = (scan.astype(float) + 1024) / 4095
    assert np.abs(images.images([0])[0, :, :, 0] / 65535 - expected).max() < 1e-5
    with pytest.raises(UnreadableImage, match=r"from -1024 to 3071, outside the range 0 to 4095"):
        split(tmp_path, range=(0, 4095)).images([0])


def test_twelve_bits_fill_the_whole_range(tmp_path: Path) -> None:
    write(tmp_path / "a.png", noise(SIDE, SIDE, high=4096))
    found = split(tmp_path, range=(0, 4095)).images([0])
    assert found.max() > 65000


def test_bands_are_chosen_in_order(tmp_path: Path) -> None:
    pixels = noise(SIDE, SIDE, 5)
    np.save(tmp_path / "a.npy", pixels)
    images = split(tmp_path, bands=(4, 1))
    assert images.channels == 2
    assert (images.images([0])[0] == pixels[:, :, [3, 0]]).all()
    with pytest.raises(UnreadableImage, match=r"has 5 channels, and --data\.bands asks for 6"):
        split(tmp_path, bands=(6,)).images([0])


def test_grey_and_colour_in_one_folder_are_colour(tmp_path: Path) -> None:
    write(tmp_path / "grey.png", noise(SIDE, SIDE, high=256))
    write(tmp_path / "colour.png", noise(SIDE, SIDE, 3, high=256))
    images = split(tmp_path)
    assert images.channels == 3
    grey = images.images([1])[0]
    assert (grey[:, :, 0] == grey[:, :, 2]).all()
    asked = split(tmp_path, channels=1)
    assert asked.images([0, 1]).shape == (2, SIDE, SIDE, 1)


def test_a_colour_image_among_many_grey_ones_is_reported(tmp_path: Path) -> None:
    """Only some headers are looked at before training."""
    for number in range(200):
        write(tmp_path / f"{number:03d}.png", noise(SIDE, SIDE, high=256))
    write(tmp_path / "001.png", noise(SIDE, SIDE, 3, high=256))
    images = split(tmp_path)
    assert images.channels == 1
    with pytest.raises(UnreadableImage, match=r"has 3 channels, not 1: --data\.channels"):
        images.images([1])


def test_other_numbers_of_bands_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(SIDE, SIDE, 5))
    np.save(tmp_path / "b.npy", noise(SIDE, SIDE, 4))
    with pytest.raises(UnreadableImage, match="it has 4 channels, not 5"):
        split(tmp_path).images([1])


def test_four_bands_are_not_colour_and_alpha(tmp_path: Path) -> None:
    """Pillow would drop the fourth, and an RGB image among them has no infrared."""
    pixels = noise(SIDE, SIDE, 4, high=256)
    need("tifffile")
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    write(tmp_path / "b.png", pixels[:, :, :3])
    images = split(tmp_path)
    assert images.channels == 4
    assert (images.images([0])[0] == pixels).all()
    with pytest.raises(UnreadableImage, match="it has 3 channels, not 4"):
        images.images([1])


@pytest.mark.parametrize(("channels", "kept"), [(4, True), (2, True), (3, False), (1, False)])
def test_alpha_is_kept_where_it_is_asked_for(channels: int, kept: bool, tmp_path: Path) -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    found = split(tmp_path, channels=channels).images([0])[0]
    assert found.shape[2] == channels
    # Over white, or black and clear.
    assert (found == (0 if kept else 255)).all()


def test_arrays_that_are_no_images_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "fine.npy", noise(SIDE, SIDE, high=256))
    np.save(tmp_path / "flat.npy", np.zeros(5))
    np.save(tmp_path / "complex.npy", np.zeros((8, 8), dtype=complex))
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "large.npy", np.zeros((30, 30), dtype=np.uint8))
    images = split(tmp_path, max_pixels=800)
    assert len(images) == 1
    reasons = " ".join(images.problems.values())
    for text in ("array of 5", "complex", "Python objects", "30 x 30 pixels; the limit is"):
        assert text in reasons


def test_arrays_next_to_pictures_are_no_images(tmp_path: Path) -> None:
    """There they hold other facts, such as features."""
    write(tmp_path / "a.png", noise(SIDE, SIDE, high=256))
    np.save(tmp_path / "a.npy", np.zeros(512))
    images = Folder(FolderOptions(location=str(tmp_path)), (SIDE, SIDE), 0)
    assert len(images.files) == 1
    assert images.others == {".npy": 1}


@pytest.mark.parametrize("kind", ["12-bit", "bands"])
def test_a_tokenizer_of_other_images_goes_through_every_command(kind: str, tmp_path: Path) -> None:
    """Its files remember the channels and the range, which other images are then read with."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        shape = (40, 48) if kind == "12-bit" else (40, 48, 5)
        pixels = np.random.default_rng(number).integers(0, 4096, shape).astype(np.uint16)
        write(folder / f"{number}.{'png' if kind == '12-bit' else 'npy'}", pixels)
    settings = {**TINY, "steps": 2, "validate_every": 2, "workers": 1, "batch_size": 2}
    settings["data"] = {"heldout": 0.3, "range": "0,4095"}
    run = tmp_path / "run"
    code, text = invoke("train", "--data", folder, *flags(settings), "--out", run)
    assert code == 0, text
    info: Any = genkit.inspect(run)
    assert info["channels"] == (1 if kind == "12-bit" else 5)
    assert info["training"]["values"] == {"type": "uint16", "range": [0, 4095]}
    assert genkit.evaluate(run)["images"] >= 1
    tokens = genkit.encode(run, folder)
    own = genkit.load(run)
    images = Folder(FolderOptions(location=str(folder), range=(0, 4095)), (32, 32), 0).split("all")
    batch = from_pixels(torch.from_numpy(images.images([0])))
    assert torch.equal(own.encode(batch)[0][0].int(), tokens.levels[0][0])


def test_a_colour_model_reads_grey_images_and_refuses_bands(trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "grey.png", noise(40, 40))
    assert len(genkit.encode(trained, tmp_path)) == 1
    (tmp_path / "grey.png").unlink()
    np.save(tmp_path / "a.npy", noise(40, 40, 5))
    with pytest.raises(genkit.errors.GenkitError, match="it has 5 channels, not 3"):
        genkit.encode(trained, tmp_path)


@pytest.mark.parametrize("size", [(1, 20), (20, 1), (1, 1), (2, 7)])
def test_thin_images_are_measured_at_native_size(
    size: tuple[int, int], trained: Path, tmp_path: Path
) -> None:
    write(tmp_path / "thin.png", noise(*size, 3, high=256))
    write(tmp_path / "other.png", noise(33, 20, 3, high=256))
    code, output = invoke("evaluate", trained, "--data", tmp_path, "--resolution", "native")
    assert code == 0, output
    assert output.startswith("2 images of ") or "\n2 images of " in output
