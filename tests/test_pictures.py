"""Images of any channels and depth: opening them, and writing them in their own units."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit import GenkitError, Tokenizer
from genkit.errors import CheckpointError, OptionError
from genkit.evaluation.images import all_images
from genkit.images import as_rgb, from_pixels, from_values, rgb_note, to_pixels, to_uint8, to_values
from genkit.interfaces import Values
from genkit.pictures import chosen_format, load_picture, save_picture
from genkit.run.options import layered, resolve_run
from genkit.tokens.decode import decode
from genkit.tokens.engine import made_by
from genkit.tokens.files import write_rows
from genkit.tokens.rows import Rows

TWELVE_BITS = Values("uint16", (0, 4095))


def noise(*shape: int, dtype: Any = np.uint8, most: int = 256) -> Any:
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "values",
    [TWELVE_BITS, Values("uint8", (0, 100)), Values("int16", (-1000, 3000))],
)
def test_whole_numbers_come_back_in_their_units(values: Values) -> None:
    low, high = map(int, values.range)
    array = np.linspace(low, high, 60).round().astype(values.type).reshape(1, 4, 5, 3)
    back = to_values(from_values(array, values), values)
    assert back.dtype == array.dtype
    assert (back == array).all()


def test_values_of_images() -> None:
    pixels = noise(2, 4, 5, 3)
    images = from_pixels(pixels)
    assert (to_values(images, Values()) == pixels).all()
    assert torch.allclose(from_values(pixels, Values()), images, atol=1e-6)
    assert (to_pixels(images, Values()) == to_uint8(images)).all()
    ends = torch.tensor([-3.0, -1, 0, 1, 3]).view(1, 1, 1, 5)
    assert to_pixels(ends, TWELVE_BITS).ravel().tolist() == [0, 0, 32768, 65535, 65535]
    assert to_values(ends, TWELVE_BITS).ravel().tolist() == [0, 0, 2048, 4095, 4095]
    floats = to_values(ends, Values("float32", (-2, 2)))
    assert floats.dtype == np.float32
    assert floats.ravel().tolist() == [-2, -2, 0, 2, 2]


@pytest.mark.parametrize(
    ("channels", "first", "note"),
    [
        (1, [0, 0, 0], "It repeats the grey channel."),
        (2, [0, 0, 0], "It repeats the first of 2 channels."),
        (3, [0, 1, 2], ""),
        (16, [0, 1, 2], "It sees the first three of 16 channels."),
    ],
)
def test_networks_of_colour_images_see_three_channels(
    channels: int, first: list[int], note: str
) -> None:
    images = torch.rand(2, channels, 4, 4)
    assert torch.equal(as_rgb(images), images[:, first])
    assert rgb_note("It", channels) == note


@pytest.mark.parametrize(
    ("channels", "values", "chosen"),
    [
        (1, Values(), "png"),
        (2, Values(), "png"),
        (4, Values(), "png"),
        (1, TWELVE_BITS, "png"),
        (5, Values(), "tiff"),
        (3, TWELVE_BITS, "tiff"),
        (1, Values("float32", (0, 1)), "tiff"),
    ],
)
def test_the_format_that_holds_an_image(
    channels: int, values: Values, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen == "tiff":
        with pytest.raises(OptionError, match=r"PNG does not hold .* give --format tiff or npy"):
            chosen_format("png", channels, values)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert chosen_format(None, channels, values) == "npy"
        with pytest.raises(OptionError, match=r"pip install 'genkit-vq\[tiff\]', or give"):
            chosen_format("tiff", channels, values)
        monkeypatch.undo()
        pytest.importorskip("tifffile")
    assert chosen_format(None, channels, values) == chosen
    picture = noise(4, 6, channels, dtype=values.type, most=int(values.range[1]) + 1)
    for ending in (chosen, "npy"):
        save_picture(tmp_path / f"a.{ending}", picture)
        found = load_picture(tmp_path / f"a.{ending}")
        assert found.dtype == picture.dtype
        assert (found == picture).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_for_pil(channels: int) -> None:
    pixels = noise(2, 8, 6, channels)
    found = genkit.to_pil(from_pixels(pixels))
    assert [image.mode for image in found] == [
        {1: "L", 2: "LA", 4: "RGBA"}.get(channels, "RGB")
    ] * 2
    kept = pixels[0, ..., 0] if channels == 1 else pixels[0, ..., : 3 if channels == 5 else None]
    assert (np.asarray(found[0]) == kept).all()


def test_16_bits_for_pil() -> None:
    deep = noise(1, 4, 6, 1, dtype=np.uint16, most=65536)
    (image,) = genkit.to_pil(from_pixels(deep), bits=16)
    assert image.mode == "I;16"
    assert (np.asarray(image) == deep[0, ..., 0]).all()
    with pytest.raises(OptionError, match="8 bits, or 16 with one channel, not 16 with 3"):
        genkit.to_pil(torch.zeros(1, 3, 4, 4), bits=16)


def test_sources_of_images(tmp_path: Path) -> None:
    pixels = noise(6, 8, 3)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    expected = from_pixels(pixels[None])
    path = tmp_path / "a.png"
    for source in (path, str(path), tmp_path / "a.npy", png(image), image, pixels, [pixels]):
        assert torch.equal(genkit.open_images(source), expected)
    assert genkit.open_images([path, image, pixels]).shape == (3, 3, 6, 8)
    assert torch.equal(genkit.open_images(pixels[None]), expected)
    turned = image.getexif()
    turned[0x0112] = 6
    upright = genkit.open_images(png(image, exif=turned))
    assert torch.equal(upright, expected.rot90(-1, (2, 3)))


def test_channels_of_opened_images() -> None:
    grey, clear = Image.fromarray(noise(4, 6)), Image.fromarray(noise(4, 6, 4))
    assert genkit.open_images(png(grey)).shape == (1, 1, 4, 6)
    three = genkit.open_images(png(grey), channels=3)
    assert torch.equal(three, genkit.open_images(grey).repeat(1, 3, 1, 1))
    colours = genkit.open_images(noise(4, 6, 3), channels=1)
    assert torch.equal(colours, genkit.open_images(Image.fromarray(noise(4, 6, 3)), channels=1))
    for background in ((0, 0, 0), (255, 255, 255)):
        whole = Image.new("RGBA", clear.size, (*background, 255))
        whole.alpha_composite(clear)
        found = genkit.open_images(png(clear), background=background)
        assert torch.equal(found, from_pixels(np.array(whole.convert("RGB"))[None]))
    kept = genkit.open_images(png(clear), channels=4)
    assert torch.equal(kept, from_pixels(np.array(clear)[None]))
    assert genkit.open_images(png(clear), channels=2).shape == (1, 2, 4, 6)
    deep = noise(4, 6, dtype=np.uint16, most=4096)
    found = genkit.open_images(png(Image.fromarray(deep)), range=(0, 4095))
    assert torch.allclose(found, from_values(deep[None, ..., None], TWELVE_BITS), atol=2e-5)
    assert genkit.open_images(noise(8, 6, 5)).shape == (1, 5, 8, 6)


@pytest.mark.parametrize("shape", [(40, 70), (70, 41), (9, 10), (3, 200), (16, 24)])
def test_sizes_as_the_data_sets_crop(shape: tuple[int, int], tmp_path: Path) -> None:
    Image.fromarray(noise(*shape, 3)).save(tmp_path / "a.png")
    pixels = all_images(str(tmp_path), (16, 24)).images([0])
    found = genkit.open_images(tmp_path / "a.png", size=(16, 24))
    assert torch.equal(found, from_pixels(pixels))
    deep = genkit.open_images(noise(*shape, 5, dtype=np.uint16, most=65536), size=(16, 24))
    assert deep.shape == (1, 5, 16, 24)
    flat = genkit.open_images(np.full((*shape, 1), 0.5), size=(16, 24))
    assert torch.allclose(flat, torch.zeros(1, 1, 16, 24), atol=2e-5)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ("absent.png", {}, "'absent.png' does not exist"),
        (b"text", {}, "image 0 cannot be read: it is not an image in a supported format"),
        (".", {}, "it is a folder: give the files in it"),
        ([], {}, "there are no images"),
        ([noise(4, 6), noise(4, 8)], {}, r"differ, .* \[1, 4, 6\] and \[1, 4, 8\]: give size"),
        (noise(4, 6, 5), {"channels": 3}, "it has 5 channels, not 3"),
        (noise(4, 6, 5), {"range": (0, 10)}, "outside the range 0 to 10"),
        (np.full((4, 6), np.nan), {}, "values from nan to nan: give their range"),
        (np.zeros((4, 6), np.int16), {}, "its integers have no range: give it"),
        (np.zeros((20, 20, 17)), {}, "at most 16 channels"),
        ([3], {}, "int is not a path, bytes, a PIL image or an array"),
        (noise(40, 40), {"max_pixels": 10}, ""),
    ],
)
def test_images_that_cannot_be_opened(sources: Any, options: Any, message: str) -> None:
    if not message:
        sources, message = png(Image.fromarray(sources)), "it has more than 20 pixels; the limit"
    with pytest.raises(GenkitError, match=message):
        genkit.open_images(sources, **options)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return {
        **{"encoder": {"name": "aren", "levels": 1, "width": [8]}, "decoder": "mirror"},
        "quantizer": {"name": "vq", "codebook_size": 16},
    }


@pytest.mark.parametrize(
    ("channels", "values", "ending"),
    [(1, Values(), "png"), (2, Values(), "png"), (1, TWELVE_BITS, "png"), (5, TWELVE_BITS, "npy")],
)
def test_a_model_of_other_channels_and_depths(
    channels: int, values: Values, ending: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Saved, loaded, given images and decoded: what comes out is of the originals' kind."""
    run = resolve_run(layered(None, tiny))
    tokenizer = Tokenizer(run.tokenizer, channels).eval()
    table = {"type": values.type, "range": list(values.range)}
    tokenizer.facts = {"resolution": 16, **({"values": table} if values != Values() else {})}
    genkit.save(tokenizer, tmp_path / "model.safetensors")
    tokenizer = genkit.load(tmp_path / "model.safetensors")
    assert (tokenizer.channels, tokenizer.values) == (channels, values)
    originals = [
        noise(20, 30, channels, dtype=values.type, most=int(values.range[1]) + 1) for _ in range(2)
    ]
    images = genkit.open_images(originals, tokenizer)
    assert images.shape == (2, channels, 16, 16)
    levels = [level.int() for level in tokenizer.encode(images)]
    table = {**made_by(tokenizer), "resolution": [16, 16]}
    write_rows(tmp_path / "tokens.safetensors", Rows(levels, ["a", "b"]), [], table)
    tokens = genkit.load_tokens(tmp_path / "tokens.safetensors")
    decode(tokenizer, tokens, tmp_path / "out", format=None if ending == "png" else ending)
    files = sorted((tmp_path / "out").iterdir())
    expected = to_values(tokenizer.decode(tokenizer.encode(images)), values)
    if ending == "npy":
        found = np.load(files[0])
    else:
        with Image.open(files[0]) as file:
            assert file.mode == {1: "L", 2: "LA"}[channels] if values == Values() else "I;16"
        found = np.stack([load_picture(file) for file in files])
    assert found.dtype == expected.dtype
    assert (found == expected).all()


@pytest.mark.parametrize("table", [3, {"type": "int8", "range": [0, 1]}, {"type": "uint16"}])
def test_damaged_values(table: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer(resolve_run(layered(None, tiny)).tokenizer, 1)
    tokenizer.facts = {"values": table}
    genkit.save(tokenizer, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        genkit.load(tmp_path / "model.safetensors")
