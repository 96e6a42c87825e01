"""Folders of arbitrary files: whatever is not an image is named and skipped, in bounded time."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import invoke
from fuzz.counts import counted
from fuzz.watch import explore, watched
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder
from hypothesis import strategies as st
from PIL import Image, features

from genkit import Subset
from genkit.data.reading import read
from genkit.errors import DataError, GenkitError

KINDS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX"]
ENDINGS = [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".tga", ".ico", ".eps", ".txt"]
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 12)).convert("RGB").save(file, kind)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this many pixels."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b"x"),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


WHOLE = {kind: image(kind) for kind in KINDS if kind != "WEBP" or features.check("webp")}


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    content = WHOLE[draw(st.sampled_from(sorted(WHOLE)))]
    kind = draw(st.sampled_from(["whole", "cut", "set", "bomb", "program", "any"]))
    if kind == "whole":
        return content
    if kind == "bomb":
        sides = st.sampled_from([0, 1, 20_000, 2**31 - 1, 2**32 - 1])
        return bomb(draw(sides), draw(sides))
    if kind in ("program", "any"):
        return POSTSCRIPT if kind == "program" else draw(st.binary(max_size=99))
    place = draw(st.integers(0, min(len(content), 300)))
    if kind == "cut":
        return content[:place]
    return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place + 4 :]


def pipe(path: bytes) -> None:
    os.mkfifo(path)


def link(target: str) -> Callable[[bytes], None]:
    def make(path: bytes) -> None:
        Path(os.fsdecode(path)).symlink_to(target)

    return make


ODD = st.sampled_from(
    [
        pipe,
        os.mkdir,
        link("."),
        link(".."),
        link("nowhere"),
        link("/dev/zero"),
        link("/dev/null"),
        link("0"),
    ]
)
NAMES = st.sampled_from(
    [b"", b"\xff\xfe", b"a\nb", b"--out", b"x" * 200, b"..x", "é".encode(), b"%s"]
)
FILES = st.lists(st.tuples(NAMES, st.sampled_from(ENDINGS), spoilt() | ODD), min_size=1, max_size=6)


def folder(location: Path, split: str = "all") -> Subset:
    return Folder(FolderOptions(location=str(location)), (16, 16), 0).split(split)


@counted("folder")
def test_a_folder_of_arbitrary_files(tmp_path: Path, count: int) -> None:
    number = 0

    def check(files: list[tuple[bytes, str, bytes | Callable[[bytes], None]]]) -> None:
        nonlocal number
        number += 1
        place = tmp_path / str(number)
        place.mkdir()
        for index, (name, ending, content) in enumerate(files):
            path = os.path.join(os.fsencode(place), b"%d" % index + name + ending.encode())
            if callable(content):
                content(path)
            else:
                Path(os.fsdecode(path)).write_bytes(content)
        # A link to ".." leads to the folders of earlier cases, and tifffile opens what it leads to.
        with watched([tmp_path], seconds=10):
            try:
                dataset = folder(place)
            except DataError:
                return
            kept, images = read(dataset, range(len(dataset)))
        assert len(kept) == len(images)
        assert set(dataset.problems) >= {
            dataset.name(i) for i in range(len(dataset)) if i not in kept
        }
        assert all(text.encode() for pair in dataset.problems.items() for text in pair)

    explore(FILES, check, count)


def test_files_that_vanish_during_listing(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit_datasets.folder as module

    listed = module.walk(photographs)
    more = listed._replace(names=[*listed.names, "gone.png"])
    monkeypatch.setattr(module, "walk", lambda root: more)
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert list(dataset.problems) == ["gone.png"]
    for name in listed.names[:6]:
        (photographs / name).unlink()
    assert len(read(dataset, range(12))[0]) == 6


def test_a_file_may_vanish_before_its_header_is_read(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit_datasets.folder as module

    check = module.check_header

    def gone(path: Path, most: int) -> None:
        if path.name == "01.png":
            path.unlink()
        check(path, most)

    monkeypatch.setattr(module, "check_header", gone)
    assert len(folder(photographs)) == 11


def test_a_postscript_program_is_not_an_image(tmp_path: Path) -> None:
    """Pillow would run it with Ghostscript."""
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    with watched([tmp_path]), pytest.raises(DataError, match="no image can be read"):
        folder(tmp_path)


@pytest.mark.parametrize("split", ["all", "train"])
def test_ten_thousand_files(tmp_path: Path, split: str) -> None:
    first = tmp_path / "0.png"
    first.write_bytes(image("PNG"))
    for number in range(1, 10_000):
        os.link(first, tmp_path / f"{number}.png")
    with watched([tmp_path], seconds=60, megabytes=200):
        assert len(folder(tmp_path, split)) > 8_000


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_commands_on_a_folder_without_images_write_nothing(
    trained: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(bomb(50_000, 50_000))
    with watched([trained, tmp_path]):
        code, text = invoke(command, trained, tmp_path / "in", "--out", tmp_path / "out")
    assert code == 1, text
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_not_a_folder(tmp_path: Path) -> None:
    for place in (tmp_path / ("x" * 5000), tmp_path / "gone", Path("/dev/zero")):
        with watched([tmp_path], seconds=5), pytest.raises(GenkitError):
            folder(place)
