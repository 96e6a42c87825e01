"""Images of any height and width: trained on, kept whole, padded and cropped back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, flags, invoke
from PIL import Image

import genkit
from genkit.errors import GenkitError, OptionError
from genkit.images import from_pixels
from genkit.size import Size
from genkit.tokens.decode import decode

SHAPES = ((70, 41), (40, 96), (64, 64), (33, 50))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of four shapes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, shape in enumerate(SHAPES):
        pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (64, Size(64, 64)),
        ("64", Size(64, 64)),
        ("128x256", Size(128, 256)),
        ([32, 48], Size(32, 48)),
        ("128x", None),
        ("x", None),
        ("1x2x3", None),
        (True, None),
        (6.5, None),
        ([1, 2, 3], None),
    ],
)
def test_sizes_as_they_are_written(value: Any, size: Size | None) -> None:
    assert Size.of(value) == size
    if size:
        assert Size.of(size.plain) == Size.of(str(size)) == size


def test_a_run_on_images_that_are_not_square(mixed: Path, tmp_path: Path) -> None:
    """Trained, resumed, evaluated, encoded and decoded, and a prior on it that draws."""
    run, prior = tmp_path / "run", tmp_path / "prior"
    settings = {**TINY, "resolution": "32x48", "steps": 2, "data": {"heldout": 0.3}}
    code, text = invoke("train", "--data", mixed, *flags(settings), "--out", run)
    assert code == 0, text
    assert genkit.inspect(run)["training"]["resolution"] == [32, 48]
    assert "resolution = [\n    32,\n    48,\n]" in (run / "config.toml").read_text()
    code, text = invoke("train", "--resume", "--out", run, "--steps", "3")
    assert code == 0, text
    assert genkit.evaluate(run)["protocol"]["resolution"] == [32, 48]
    tokens = genkit.encode(run, mixed)
    assert list(tokens.levels[0].shape) == [4, 8, 12]
    options = ["--steps", "2", "--batch-size", "2", "--validation-images", "2", "--shown", "0"]
    code, text = invoke("train-prior", run, *options, "--out", prior)
    assert code == 0, text
    assert list(genkit.load_prior(prior).generate(2).shape) == [2, 3, 32, 48]


def test_native_images_lose_no_pixel(trained: Path, mixed: Path, tmp_path: Path) -> None:
    tokenizer = genkit.load(trained)
    out = tmp_path / "tokens.safetensors"
    tokens = genkit.encode(tokenizer, mixed, out, resolution="native")
    assert tokens.table["resolution"] == "native"
    assert tokens.sizes is not None
    assert tokens.sizes.tolist() == [list(shape) for shape in SHAPES]
    for number, shape in enumerate(SHAPES):
        with Image.open(mixed / f"{number}.png") as image:
            pixels = np.array(image)
        padded = tokenizer.pad(from_pixels(pixels[None]))
        assert list(padded.shape[2:]) == [-(-side // 8) * 8 for side in shape]
        own = tokenizer.encode(padded)
        for level, expected in zip(tokens.batch(number, number + 1), own, strict=True):
            assert torch.equal(level.long(), expected)
    assert decode(tokenizer, genkit.load_tokens(out), tmp_path / "out") == 4
    for path, shape in zip(sorted((tmp_path / "out").glob("*.png")), SHAPES, strict=True):
        assert size_of(path) == shape[::-1]
    with pytest.raises(OptionError, match="give png or tiff"):
        decode(tokenizer, tokens, tmp_path / "array", format="npy")


def test_native_shards_and_one_file_hold_the_same(
    trained: Path, mixed: Path, tmp_path: Path
) -> None:
    found = [
        genkit.encode(trained, mixed, tmp_path / name, resolution="native", shard_size=size)
        for name, size in (("a", 2), ("b.safetensors", 3), ("c.safetensors", 9))
    ]
    for tokens in found[1:]:
        assert tokens.check() == found[0].check()


def test_reconstructions_have_the_images_own_size(
    trained: Path, mixed: Path, tmp_path: Path
) -> None:
    code, text = invoke("reconstruct", trained, mixed, "--out", tmp_path / "out")
    assert code == 0, text
    for path, (height, width) in zip(sorted((tmp_path / "out").iterdir()), SHAPES, strict=True):
        assert size_of(path) == (2 * width + 2, height)
    code, text = invoke(
        "reconstruct", trained, mixed, "--resolution", "16x32", "--out", tmp_path / "fixed"
    )
    assert code == 0, text
    assert {size_of(path) for path in (tmp_path / "fixed").iterdir()} == {(66, 16)}


def test_what_is_cropped_is_said_and_recorded(trained: Path, mixed: Path, tmp_path: Path) -> None:
    code, text = invoke("encode", trained, mixed, "--out", tmp_path / "t.safetensors")
    assert code == 0, text
    assert "The middle crop to 32 x 32 pixels leaves out up to 58% of an image" in text
    record = genkit.evaluate(trained, data=mixed)
    assert record["protocol"]["cropped"].startswith("The middle crop")
    whole = genkit.evaluate(trained, data=mixed, resolution="native")
    assert whole["protocol"]["resolution"] == "native"
    assert "cropped" not in whole["protocol"]
    assert whole["images"] == 4


def test_computed_images_have_the_trained_size(trained: Path, tmp_path: Path) -> None:
    """Faces have no size of their own."""
    record = genkit.evaluate(trained, data="faces", images=2, resolution="native")
    assert record["protocol"]["resolution"] == 32


def test_images_of_a_torch_data_set_keep_their_sizes(trained: Path) -> None:
    images = [Image.new("RGB", (20, 30)), Image.new("RGB", (9, 8))]
    tokens = genkit.encode(trained, images, resolution="native")
    assert tokens.sizes is not None
    assert tokens.sizes.tolist() == [[30, 20], [8, 9]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": "128x"}, "it must be a number of pixels, or HEIGHTxWIDTH"),
        ({"resolution": 20}, "--resolution 20 is not a multiple of the coarsest level's stride, 8"),
        ({"resolution": "16x20"}, "--resolution 16x20 is not a multiple"),
        ({"resolution": 0}, "is not a multiple"),
        ({"resolution": "native", "views": 2}, "--views needs images of one size"),
        ({"resolution": "native", "format": "parquet"}, "--format parquet needs images of one"),
    ],
)
def test_impossible_sizes_are_refused(
    options: dict[str, Any], message: str, trained: Path, mixed: Path
) -> None:
    with pytest.raises(GenkitError, match=message):
        genkit.encode(trained, mixed, **options)


def test_native_images_larger_than_a_tile(tmp_path: Path) -> None:
    """Neither side is a multiple of the stride; the tiles give the indices of the whole."""
    run = tmp_path / "run"
    code, text = invoke("train", *flags({**TINY, "steps": 0}), "--out", run)
    assert code == 0, text
    pixels = np.random.default_rng(0).integers(0, 256, (150, 203, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    by_tiles = genkit.encode(run, tmp_path / "large.png", resolution="native", tile=128)
    whole = genkit.encode(run, tmp_path / "large.png", resolution="native", tile=0)
    for one, other in zip(by_tiles.batch(0, 1), whole.batch(0, 1), strict=True):
        assert (one != other).float().mean() < 0.01
