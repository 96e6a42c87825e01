"""The page of `genkit demo`: its pictures, its controls and its errors."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, genkit_here, need
from PIL import Image
from table import QUICK

import genkit
from genkit.completion import fitting_pixels
from genkit.demo.drawing import completed
from genkit.demo.drawing import drawn as drawn_figures
from genkit.demo.figures import Figure, html
from genkit.demo.levels import _chosen, shares
from genkit.demo.server import private
from genkit.demo.tokenizing import colours_note, tokenized
from genkit.errors import OptionError
from genkit.images import from_pixels
from genkit.reporting.charts import index_colours
from genkit.run.options import layered, resolve_run
from genkit.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph whose sides no stride divides."""
    path = tmp_path_factory.mktemp("picture") / "a photo.png"
    small = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((60, 45), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def plain(trained: Path, tables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny prior without classes."""
    out = tmp_path_factory.mktemp("plain") / "run"
    genkit.train_prior(trained, {**QUICK, "steps": 2}, out=out)
    return out


def untrained(channels: int = 3, **settings: Any) -> Tokenizer:
    torch.manual_seed(0)
    options = resolve_run(layered(None, TINY, settings)).tokenizer
    return Tokenizer(options, channels).eval()


def pixels_of(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path))


def test_a_tokenizers_pictures_are_those_of_reconstruct(
    trained: Path, picture: Path, tmp_path: Path
) -> None:
    tokenizer = genkit.load(trained)
    found = tokenized(tokenizer, str(picture))
    original, copy, apart = (figure.picture for figure in found.pictures)
    assert genkit_here("reconstruct", trained, picture, "--out", tmp_path).returncode == 0
    (file,) = tmp_path.glob("*.png")
    pair = pixels_of(file)
    assert np.array_equal(pair[:, :60], original)
    assert np.array_equal(pair[:, -60:], copy)
    assert np.array_equal(original, pixels_of(picture))
    difference = np.abs(original.astype(int) - copy.astype(int))
    assert np.array_equal(apart, (difference * 4).clip(0, 255))
    decibels = 20 * np.log10(255 / np.sqrt((difference**2).mean()))
    assert found.pictures[1].text == f"PSNR {decibels:.2f} dB"
    # The image is padded to 48 x 64 pixels.
    indices = tokenizer.encode(tokenizer.pad(from_pixels(original[None])))
    for figure, level, size in zip(found.maps, indices, (4, 8), strict=True):
        assert np.array_equal(figure.picture, index_colours(level[0], 16))
        assert figure.picture.shape == (48 // size, 64 // size, 3)
        assert figure.text.endswith(f"indices; {len(level.unique())} of 16 codes")
    assert found.facts == (
        "45 x 60 pixels (high x wide); 240 indices, 960 bits in all, 0.356 bits per pixel. These "
        "are more than the model's 0.312, because the image is padded to 48 x 64 pixels."
    )
    fitting = picture.with_name("fitting.png")
    Image.new("RGB", (64, 48)).save(fitting)
    assert tokenized(tokenizer, str(fitting)).facts == (
        "48 x 64 pixels (high x wide); 240 indices, 960 bits in all, 0.312 bits per pixel."
    )


def test_the_page_says_whether_codes_share_colours() -> None:
    quantizer = {"name": "vq", "codebook_size": 256}
    own = colours_note(untrained(quantizer=quantizer))
    assert own == "The indices of each level. Each code has a colour of its own."
    assert "near numbers share one" in colours_note(untrained(quantizer={"codebook_size": 257}))


def test_codes_have_colours_of_their_own() -> None:
    every = index_colours(torch.arange(256).view(16, 16), 256)
    assert len(np.unique(every.reshape(-1, 3), axis=0)) == 256
    colours = index_colours(torch.arange(64).view(8, 8), 64)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 64
    assert colours[0, 0].tolist() == [0x30, 0x12, 0x3B]
    assert index_colours(torch.tensor([[2**18 - 1]]), 2**18)[0, 0].tolist() == [0x7A, 0x04, 0x02]
    assert index_colours(torch.zeros(1, 1, dtype=torch.int64), 1).shape == (1, 1, 3)


def test_a_level_alone_is_decoded_with_the_means_of_the_others(trained: Path) -> None:
    tokenizer = genkit.load(trained)
    indices = [torch.randint(16, (2, *level.grid(32, 48))) for level in tokenizer.levels]
    latents = tokenizer.dequantize(indices)
    assert torch.equal(tokenizer.decode_latents(latents), tokenizer.decode(indices))
    coarse, fine = shares(tokenizer, indices)
    assert (coarse.name, fine.name) == ("level 1 alone", "level 0 alone")
    means = [each.mean((2, 3), keepdim=True).expand_as(each) for each in latents]
    with torch.no_grad():
        expected = tokenizer.decoder([means[0], latents[1]]).clamp(-1, 1)
    assert torch.allclose(coarse.images, expected, atol=1e-5)
    assert not torch.equal(coarse.images, fine.images)


def test_what_is_decoded_has_a_name() -> None:
    assert _chosen([1]) == {}
    assert _chosen([1, 1, 1]) == {
        (0, 0, 1): "level 2 alone",
        (0, 1, 0): "level 1 alone",
        (1, 0, 0): "level 0 alone",
        (0, 1, 1): "levels 2 + 1",
    }
    assert _chosen([5]) == {
        (1,): "1 of 5 codebooks of level 0",
        (2,): "2 of 5 codebooks of level 0",
        (4,): "4 of 5 codebooks of level 0",
    }
    assert _chosen([2, 1])[1, 1] == "level 1 + 1 of 2 codebooks of level 0"


def test_codebooks_that_are_left_out_have_their_mean() -> None:
    need("vector_quantize_pytorch")
    one = {"levels": 1}
    tokenizer = untrained(
        encoder=one, quantizer={"name": "residual-vq", "codebook_size": 16, "codebooks": 3}
    )
    (level,) = tokenizer.levels
    height, width = level.grid(32, 32)
    indices = torch.randint(16, (1, height, width, 3))
    first, *_ = shares(tokenizer, [indices])
    # The mean over all places that the other codebooks' indices can be moved from.
    moved = [
        tokenizer.dequantize(
            [torch.cat([indices[..., :1], indices[..., 1:].roll((y, x), (1, 2))], -1)]
        )[0]
        for y in range(height)
        for x in range(width)
    ]
    expected = tokenizer.decode_latents([torch.stack(moved).mean(0)])
    assert torch.allclose(first.images, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "shown", "note"),
    [
        (1, 1, ""),
        (2, 1, "Pictures show the first of 2 channels; the PSNR is of all channels."),
        (4, 4, "Pictures show the fourth channel as opacity; the PSNR is of all channels."),
        (5, 3, "Pictures show the first three of 5 channels; the PSNR is of all channels."),
    ],
)
def test_other_channels_are_shown_and_explained(
    channels: int, shown: int, note: str, tmp_path: Path
) -> None:
    array = np.random.default_rng(0).integers(0, 255, (33, 40, channels), dtype=np.uint8)
    file = tmp_path / "image.npy"
    np.save(file, array)
    found = tokenized(untrained(channels), str(file))
    original, copy, _ = (figure.picture for figure in found.pictures)
    assert np.array_equal(original, array[..., :shown])
    assert copy.shape == original.shape
    assert found.facts.partition("to 40 x 40 pixels. ")[2] == note
    # All of them become PNG files.
    assert html(found.pictures + found.shares).count("data:image/png") == 5


def test_a_large_picture_is_reconstructed_without_its_levels(tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.new("RGB", (1032, 16), (9, 99, 199)).save(file)
    found = tokenized(untrained(), str(file))
    assert found.pictures[1].picture.shape == (16, 1032, 3)
    assert not found.shares
    assert found.about == "Levels are shown only for images of at most 1,024 x 1,024 pixels."


def test_pictures_have_one_size_and_small_ones_show_their_pixels() -> None:
    page = html([Figure(np.zeros((30, 20, 1), np.uint8), "<b>", "c & d")], ["note"], side=100)
    assert '<img src="data:image/png;base64,' in page
    assert 'width="67" height="100"' in page
    assert 'class="pixels"' in page
    assert "&lt;b&gt;" in page
    assert "c &amp; d" in page
    large = html([Figure(np.zeros((300, 150, 3), np.uint8), "a")], side=100)
    assert 'width="50" height="100"' in large
    figure = Figure(np.zeros((3, 3, 3), np.uint8), "a")
    assert 'class="figures row"' in html([figure] * 3)
    assert 'class="figures row"' not in html([figure] * 4)
    assert 'class=""' in large


def test_the_page_draws_what_sample_draws(drawn: Path, tmp_path: Path) -> None:
    prior = genkit.load_prior(drawn)
    figures = drawn_figures(prior, 3, 5, [1, 4], guidance=2.0, top_k=3)
    command = ("sample", drawn, "--number", "3", "--seed", "5", "--classes", "1,4", "--top-k", "3")
    made = genkit_here(*command, "--guidance", "2", "--out", tmp_path)
    assert made.returncode == 0, made.stderr
    files = sorted(path for path in tmp_path.rglob("*.png") if path.name != "grid.png")
    assert len(files) == 3
    for figure, file in zip(figures, files, strict=True):
        assert np.array_equal(figure.picture, pixels_of(file))
    names = [prior.classes[each] for each in (1, 4, 1)]
    assert [figure.text for figure in figures] == names


def test_the_page_completes_as_sample_does(drawn: Path, picture: Path, tmp_path: Path) -> None:
    prior = genkit.load_prior(drawn)
    (image, kept), figures = completed(prior, str(picture), "left", 0.5, 2, 3)
    asked = ("--complete", picture, "--keep", "left", "--number", "2", "--seed", "3")
    made = genkit_here("sample", drawn, *asked, "--out", tmp_path)
    assert made.returncode == 0, made.stderr
    files = sorted(path for path in tmp_path.rglob("*.png") if path.name != "grid.png")
    for figure, file in zip(figures, files, strict=True):
        assert np.array_equal(figure.picture, pixels_of(file))
    assert np.array_equal(image.picture, fitting_pixels(prior, picture)[0])
    assert np.array_equal(kept.picture[:, :16], image.picture[:, :16])
    assert len(np.unique(kept.picture[:, 16:])) == 1
    assert kept.text == "40 of 80 indices"
    (_, quarter), _ = completed(prior, str(picture), "bottom", 0.25, 1, 0)
    assert quarter.text == "20 of 80 indices"
    with pytest.raises(OptionError, match="keeps no whole index"):
        completed(prior, str(picture), "top", 0.05, 1, 0)


def labels(model: Any) -> set[str]:
    """The labels of all controls on the page of a model."""
    from genkit.demo.page import page

    async def built() -> Any:  # Without a running loop Gradio leaves some of its own open.
        return page(model, "a").get_config_file()

    every = (each["props"] for each in asyncio.run(built())["components"])
    return {each["label"] for each in every if each.get("label") and each.get("visible", True)}


@pytest.mark.slow  # Gradio takes seconds to import.
def test_the_page_offers_what_the_model_can_do(trained: Path, drawn: Path, plain: Path) -> None:
    need("gradio")
    with private():
        both = {"Draw", "Complete", "Reconstruct", "Image", "Images", "Completions", "Seed"}
        both |= {"Keep", "Kept part", "Temperature", "Top-k", "Top-p"}
        prior = genkit.load_prior(drawn)
        assert both | {"Classes", "Guidance"} == labels(prior)
        assert both == labels(genkit.load_prior(plain))
        assert labels(prior.tokenizer) == {"Image"}
        with pytest.raises(OptionError, match="1 to 64 images at once, not 65"):
            drawn_figures(prior, 65, 0)
        with pytest.raises(OptionError, match="guidance needs a condition: name classes"):
            drawn_figures(prior, 1, 0, [], guidance=2.0)


@pytest.mark.slow  # Gradio takes seconds to import.
def test_failures_are_one_sentence_on_the_page(trained: Path, tmp_path: Path) -> None:
    need("gradio")
    import gradio

    from genkit.demo.page import _told

    file = tmp_path / "no <image>.png"
    file.write_text("no image")
    tokenizer = genkit.load(trained)
    with pytest.raises(gradio.Error) as caught:
        _told(lambda path: tokenized(tokenizer, path))(str(file))
    assert str(tmp_path) not in caught.value.message
    assert "&lt;image&gt;.png" in caught.value.message
    assert caught.value.message.endswith("it is not an image in a supported format.")
    assert "Error:" not in caught.value.message
    assert not caught.value.print_exception
    np.save(tmp_path / "many.npy", np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(gradio.Error) as caught:
        _told(lambda path: tokenized(tokenizer, path))(str(tmp_path / "many.npy"))
    assert caught.value.message.startswith("many.npy cannot be read: it has 5 channels, not 3")

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(gradio.Error, match="There is not enough memory"):
        _told(fail)(RuntimeError("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="a fault"):
        _told(fail)(RuntimeError("a fault"))


@pytest.mark.slow  # Gradio takes seconds to import.
def test_numbers_that_are_not_whole_are_refused_on_the_page() -> None:
    need("gradio")
    import gradio

    from genkit.demo.page import _chosen, _told, _whole

    assert _whole("Seed", 2) == 2
    for wrong in (None, -1, 1.5, float("inf"), float("nan")):
        with pytest.raises(gradio.Error) as caught:
            _told(lambda value: _whole("Seed", value))(wrong)
        assert caught.value.message == "Seed must be a whole number from 0."
        assert not caught.value.print_exception
    assert _chosen(["top_k", "top_p", "steps"], [3, 0.5, 0]) == {"top_k": 3, "top_p": 0.5}
    with pytest.raises(OptionError, match="Top-k must be a whole number from 0"):
        _chosen(["top_k"], [-3])
