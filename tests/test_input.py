"""Training images: decoding at a reduced scale where that changes little, and workers."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder
from PIL import Image

from genkit.data import decoding
from genkit.data.decoding import Pixels, resized, resized_fast
from genkit.data.fitting import Reading
from genkit.data.loader import workers_of
from genkit.errors import UnreadableImage
from genkit.interfaces import Dataset
from genkit.run.config import changed_options
from genkit.run.options import layered, resolve_run
from genkit.settings import settings_of

LIBRARIES = [
    False,
    pytest.param(
        True,
        marks=pytest.mark.skipif(
            importlib.util.find_spec("simplejpeg") is None, reason="it is an extra"
        ),
    ),
]


def face(height: int, width: int, number: int = 0) -> Image.Image:
    side = max(height, width)
    faces: Dataset = (
        resolve_run(layered(None, {"data": "faces"})).data.build((side, side), 0).split("train")
    )
    top, left = (side - height) // 2, (side - width) // 2
    pixels = faces.images([number])[0][top : top + height, left : left + width]
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str = "JPEG", **how: Any) -> BytesIO:
    file = BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}) | how)
    return file


def short_side(size: int) -> decoding.Resizing:
    def to(width: int, height: int) -> tuple[int, int]:
        scale = size / min(width, height)
        return max(size, round(width * scale)), max(size, round(height * scale))

    return to


def apart(file: BytesIO, size: int) -> tuple[float, int]:
    """The mean and the largest difference between fast and exact decoding."""
    fast, exact = (how(file, short_side(size), Reading()) for how in (resized_fast, resized))
    assert fast.shape == exact.shape
    assert fast.flags.c_contiguous
    off = np.abs(fast.astype(int) - exact)
    return off.mean(), off.max()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The width and height of each decoded image, collected during the test."""
    seen: list[tuple[int, int]] = []
    shrunk = decoding._shrunk

    def watched(pixels: Pixels, extent: tuple[float, float], size: tuple[int, int]) -> Pixels:
        seen.append((pixels.shape[1], pixels.shape[0]))
        return shrunk(pixels, extent, size)

    monkeypatch.setattr(decoding, "_shrunk", watched)
    return seen


@pytest.fixture(params=LIBRARIES, ids=["Pillow", "simplejpeg"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    return bool(request.param)


@pytest.mark.parametrize(
    ("side", "size", "part"),
    [(256, 64, 2), (257, 64, 2), (263, 64, 2), (512, 64, 4), (509, 32, 4), (519, 32, 8)],
)
def test_a_jpeg_decoded_at_a_smaller_scale_gives_the_same_image(
    side: int, size: int, part: int, library: bool, sizes: list[tuple[int, int]]
) -> None:
    """Also if the last column and row are only partly covered, as with a width of 257 or 263."""
    width = side * 5 // 4
    for number in (1, 2):
        mean, most = apart(saved(face(side, width, number)), size)
        assert mean < 0.9
        assert most <= 20
    assert set(sizes) == {(-(-width // part), -(-side // part))}


@pytest.mark.parametrize(("side", "size"), [(255, 64), (256, 65), (200, 128), (60, 64)])
def test_it_is_decoded_at_full_size_if_less_would_be_too_small(
    side: int, size: int, library: bool, sizes: list[tuple[int, int]]
) -> None:
    mean, most = apart(saved(face(side, side + 9)), size)
    assert sizes == [(side + 9, side)]
    assert mean < 0.05
    assert most <= 2


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize(
    ("kind", "mode", "how"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("JPEG", "CMYK", {}),
        *(("JPEG", "RGB", {"exif": exif(turn)}) for turn in range(2, 9)),
    ],
)
def test_other_formats_are_decoded_at_full_size(
    kind: str, mode: str, how: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    file = saved(face(256, 320).convert(mode), kind, **how)
    mean, most = apart(file, 32)
    assert sorted(sizes[0]) == [256, 320]
    assert mean < 0.05
    assert most <= 2


@pytest.mark.parametrize(
    ("kind", "mode", "how"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "RGB", {"exif": exif(1)}),
        ("JPEG", "RGB", {"exif": exif(0)}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (300, 256))]}),
    ],
)
def test_jpegs_are_decoded_at_a_reduced_scale(
    kind: str, mode: str, how: dict[str, Any], library: bool, sizes: list[tuple[int, int]]
) -> None:
    mean, most = apart(saved(face(256, 320).convert(mode), kind, **how), 32)
    assert sizes == [(80, 64)]
    assert mean < 0.9
    assert most <= 20


def turned_oddly(how: str) -> BytesIO:
    """A JPEG stored sideways, with its orientation in an unusual place."""
    if how == "XMP":
        return saved(face(256, 320), xmp=b'<x tiff:Orientation="6"/>')
    content = saved(face(256, 320), exif=exif(6)).getvalue()
    between = {"padded": b"\xff", "after another note": b"\xff\xe2\x00\x06a\xff\xdab"}[how]
    return BytesIO(content.replace(b"\xff\xe1", between + b"\xff\xe1", 1))


@pytest.mark.parametrize("how", ["XMP", "padded", "after another note"])
def test_a_jpeg_orientation_is_found_anywhere(
    how: str, library: bool, sizes: list[tuple[int, int]]
) -> None:
    mean, most = apart(turned_oddly(how), 32)
    assert sizes == [(256, 320)]
    assert mean < 0.05
    assert most <= 2


def test_more_pixels_than_allowed_are_refused(library: bool) -> None:
    """Above twice the limit Pillow would raise a different error."""
    for kind in ("JPEG", "PNG"):
        file = saved(face(60, 70), kind)
        told = "it has 70 x 60 pixels; the limit is --data.max-pixels 4199"
        for decode in (resized, resized_fast):
            with pytest.raises(ValueError, match=f"^{told}"):
                decode(file, short_side(16), Reading(most=70 * 60 - 1))
            with pytest.raises(ValueError, match=r"the limit is --data\.max-pixels 999"):
                decode(file, short_side(16), Reading(most=999))
            assert decode(file, short_side(16), Reading(most=70 * 60)).shape == (16, 19, 3)
    assert Image.MAX_IMAGE_PIXELS


def test_a_torch_without_lanczos_gives_nearly_the_same(
    library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a JPEG decoded at a reduced scale whose last column is only partly covered."""
    files = [saved(face(263, 329)), saved(face(61, 70), "PNG")]
    images = []
    for has in (decoding._TORCH_HAS_LANCZOS, False):
        monkeypatch.setattr(decoding, "_TORCH_HAS_LANCZOS", has)
        images.append([resized_fast(file, short_side(32), Reading()) for file in files])
    for ours, pillows in zip(*images, strict=True):
        assert ours.shape == pillows.shape
        assert np.abs(ours.astype(int) - pillows).max() <= 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a kind of file of Unix")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    for decode in (resized, resized_fast):
        with pytest.raises(ValueError, match="it is not a file"):
            decode(tmp_path / "a.jpg", short_side(16), Reading())


def test_a_strip_keeps_its_middle(sizes: list[tuple[int, int]]) -> None:
    strip = Image.new("RGB", (4000, 64))
    strip.paste((200, 30, 40), (1400, 0, 2600, 64))
    pixels = resized_fast(saved(strip), short_side(16), Reading())
    assert pixels.shape == (16, 256, 3)
    assert (np.abs(pixels.astype(int) - (200, 30, 40)) < 8).all()
    assert sizes == [(1024, 64)]


@pytest.mark.parametrize("torchs", [True, False])
def test_no_column_is_lost_to_rounding(torchs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if torchs and not decoding._TORCH_HAS_LANCZOS:
        pytest.skip("this PyTorch does not resize by Lanczos's kernel")
    monkeypatch.setattr(decoding, "_TORCH_HAS_LANCZOS", torchs)
    for count in range(8, 80):
        for size in range(8, count):
            pixels = np.zeros((count, 8, 3), dtype=np.uint8)
            shape = decoding._shrunk(pixels, (8, count), (8, size)).shape
            assert shape == (size, 8, 3)


@pytest.mark.skipif(importlib.util.find_spec("simplejpeg") is None, reason="it is an extra")
@pytest.mark.parametrize("size", [20, 64, 128])
def test_simplejpeg_gives_the_same_bytes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [saved(face(h, w), subsampling=s) for s in (0, 2) for h, w in ((300, 421), (256, 256))]
    ours = [resized_fast(file, short_side(size), Reading()) for file in files]
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    for file, pixels in zip(files, ours, strict=True):
        assert (resized_fast(file, short_side(size), Reading()) == pixels).all()


def broken(*args: Any, **how: Any) -> Any:
    raise ValueError("premature end")


def odd(*args: Any, **how: Any) -> Any:
    return np.zeros((5, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("decode", [broken, odd])
def test_pillow_reads_files_that_simplejpeg_refuses(
    decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(face(256, 300))
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    pixels = resized_fast(file, short_side(64), Reading())
    header = (256, 300, "YCbCr", "420")
    library = SimpleNamespace(decode_jpeg=decode, decode_jpeg_header=lambda content: header)
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: library)
    assert (resized_fast(file, short_side(64), Reading()) == pixels).all()


def test_pillow_reads_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", nowhere)
    assert decoding._simplejpeg.__wrapped__() is None


def test_a_truncated_jpeg_is_unreadable(library: bool, tmp_path: Path) -> None:
    content = saved(face(256, 256)).getvalue()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    dataset = Folder(FolderOptions(location=str(tmp_path)), (32, 32), 0).split("all")
    for seeds in ([0], None):
        with pytest.raises(UnreadableImage, match=r"cut\.jpg cannot be read: .*truncated"):
            dataset.images([0], seeds)


def test_plain_images_are_decoded_at_full_size(tmp_path: Path) -> None:
    """Figures are measured on plain images, so they equal Pillow's result bit for bit."""
    face(256, 320).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as file:
        whole = np.asarray(file.resize((40, 32), Image.Resampling.LANCZOS))
    dataset = Folder(FolderOptions(location=str(tmp_path)), (32, 32), 0).split("all")
    varied = dataset.images([0], [0])
    assert (dataset.images([0])[0] == whole[:, 4:36]).all()
    assert (varied != dataset.images([0])).any()


# Workers.


@pytest.mark.parametrize(
    ("asked", "cores", "gpu", "here", "workers"),
    [
        (-1, range(64), True, {}, 16),
        (-1, range(6), True, {}, 5),
        (-1, range(2), True, {}, 1),
        (-1, range(1), True, {}, 0),
        # Two processes, both on this machine; and eight, four of them on this machine.
        (-1, range(8), True, {"processes": 2}, 3),
        (-1, range(16), True, {"processes": 8, "LOCAL_WORLD_SIZE": "4"}, 3),
        (-1, range(4), True, {"processes": 8}, 0),
        (-1, range(16), False, {}, 0),
        (0, range(16), True, {}, 0),
        (3, range(2), False, {"processes": 2}, 3),
    ],
)
def test_workers_are_chosen_from_the_machine(
    asked: int,
    cores: Sequence[int],
    gpu: bool,
    here: dict[str, Any],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if "LOCAL_WORLD_SIZE" in here:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here["LOCAL_WORLD_SIZE"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cores), raising=False)
    assert workers_of(asked, here.get("processes", 1)) == workers


def test_a_system_without_affinities_counts_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert workers_of(-1, 1) == 4


def test_a_run_records_that_workers_are_automatic() -> None:
    """A resumed run picks the number for its machine; any number counts as the same run."""
    chosen = resolve_run(layered(None))
    assert settings_of(chosen)["workers"] == -1
    told = resolve_run(layered(None, {"workers": 3}))
    assert changed_options(told, chosen) == ["--workers is 3, was -1"]
