"""Faces drawn from factors, and folders of whatever people have."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from genkit_datasets import FacesOptions, FolderOptions
from genkit_datasets.faces import EYE_COLOURS, Faces
from genkit_datasets.folder import Folder, read_rgb
from PIL import Image, PngImagePlugin

from genkit.data import batches, read, read_varied
from genkit.errors import DataError, UnreadableImage
from genkit.run import data_table

RED = (200, 30, 40)


def faces(split: str = "train", resolution: int = 64, seed: int = 0, **options: Any) -> Faces:
    return Faces(FacesOptions(**options), split, resolution, seed)


def folder(location: Path, split: str = "all", resolution: int = 16, **options: Any) -> Folder:
    return Folder(FolderOptions(location=str(location), **options), split, resolution, 0)


def test_faces_follow_from_seed_and_index() -> None:
    a, b = faces(), faces()
    assert (a.images([3, 4]) == b.images([3, 4])).all()
    assert (a.images([4]) == b.images([3, 4])[1:]).all()
    assert (faces(seed=1).images([3]) != a.images([3])).mean() > 0.5
    assert (a.images([3], [5]) != a.images([3], [6])).mean() > 0.5


def test_a_seed_changes_how_a_face_is_seen_and_not_who_it_is() -> None:
    a, b = faces().factors([7], [1]), faces().factors([7], [2])
    changed = {name for name in a if a[name][0] != b[name][0]}
    assert changed == {
        "yaw",
        "tilt",
        "shift_x",
        "shift_y",
        "zoom",
        "light_angle",
        "light",
        "noise_x",
        "noise_y",
    }


def test_held_out_faces_are_drawn_by_no_training_seed() -> None:
    heldout = faces("heldout", resolution=16)
    assert (heldout.images([0, 1]) == faces("heldout", resolution=16, seed=9).images([0, 1])).all()
    seen = {tuple(values) for values in zip(*heldout.factors(range(200)).values(), strict=True)}
    for seed in range(5):
        drawn = faces(seed=seed, resolution=16).factors(range(2000))
        assert not seen & {tuple(values) for values in zip(*drawn.values(), strict=True)}


def test_eyes_have_one_colour_unless_asked_otherwise() -> None:
    same, mixed = faces().factors(range(500)), faces(heterochromia=0.5).factors(range(500))
    assert (same["left_eye"] == same["right_eye"]).all()
    assert 0.4 < (mixed["left_eye"] != mixed["right_eye"]).mean() < 0.6


def test_the_eyes_are_painted_in_their_colours() -> None:
    """Where a still, evenly lit face has its irises, the picture has their colours."""
    dataset = faces(resolution=256, pose=0, light=0, noise=0, heterochromia=1)
    for index in range(4):
        f = dataset.factors([index])
        image = dataset.images([index])[0].reshape(256, 256, 3).astype(int)
        side = (0.19 + 0.05 * f["eye_distance"][0]) * 128
        # Between pupil and rim, below the glint.
        for eye, x in (("left_eye", 128 + side), ("right_eye", 128 - side)):
            pixel = image[int(128 - 0.08 * 128 + 6), round(x)]
            assert np.abs(pixel - EYE_COLOURS[f[eye][0]]).max() < 12, (index, eye)


@pytest.mark.parametrize("resolution", [8, 48, 200])
def test_faces_of_any_resolution(resolution: int) -> None:
    images = faces(resolution=resolution).images([0, 1, 2])
    assert images.shape == (3, resolution, resolution, 3)
    assert images.std() > 20


def test_faces_look_the_same_at_every_resolution() -> None:
    small = faces(resolution=64, noise=0).images([5])[0].astype(float)
    large = faces(resolution=256, noise=0).images([5])[0].reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 4


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
    assert (off < 8).all(), dict(zip(dataset.names, off, strict=True))


def test_grey_and_sixteen_bits(tmp_path: Path) -> None:
    Image.new("L", (20, 20), 100).save(tmp_path / "grey.png")
    Image.fromarray(np.full((20, 20), 100 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (folder(tmp_path).images([0, 1]) == 100).all()


@pytest.mark.parametrize("most", [255, 1023, 4095, 65535])
def test_grey_in_as_many_steps_as_the_file_says(tmp_path: Path, most: int) -> None:
    kind = ">u2" if most > 255 else "u1"
    pixels = np.full((20, 20), round(most * 0.4)).astype(kind)
    (tmp_path / "binary.pgm").write_bytes(b"P5 20 20 %d\n" % most + pixels.tobytes())
    text = " ".join(map(str, pixels.reshape(-1).tolist()))
    (tmp_path / "text.pgm").write_text(f"P2 20 20 {most}\n{text}\n")
    off = folder(tmp_path).images([0, 1]).astype(int) - 102
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
    assert (folder(tmp_path).images([0]) == 100).all()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("bits", "colour", "clear"),
    [(1, 0, [1]), (2, 0, [2]), (4, 0, [9]), (8, 0, [77]), (16, 0, [300]), (16, 2, [300, 9, 70])],
)
def test_one_colour_of_a_png_is_transparent(
    bits: int, colour: int, clear: list[int], tmp_path: Path
) -> None:
    """At every depth: the upper row has that colour, the lower row another one."""
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
    """Pillow refuses them: a text, a colour profile, many texts, and a text behind the pixels."""
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
def test_formats_whose_pixels_cannot_be_read_are_not_images(name: str, photographs: Path) -> None:
    start = {"grib": b"GRIB\0\0\0\1", "bufr": b"BUFR", "mpg": b"\0\0\1\xb3\x10\x01\x00\x13"}
    content = start.get(name.rpartition(".")[2], b"\x89HDF\r\n\x1a\n")
    (photographs / name).write_bytes(content + bytes(100))
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert (name in dataset.problems) == (name == "a.png")


def test_hidden_files_and_folders_are_left_out(photographs: Path) -> None:
    for name in (".ipynb_checkpoints/1.png", "__MACOSX/1.png", ".hidden.png"):
        (photographs / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(photographs / name)
    (photographs / "a" / "._01.png").write_bytes(b"what a Mac leaves")
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert not dataset.problems
    assert not dataset.notes


def test_what_genkit_writes_is_not_an_image_of_the_data(photographs: Path) -> None:
    """Neither a run below the folder, wherever, nor one in the folder itself."""
    fingerprint = folder(photographs).fingerprint
    for place in ("runs/folder", "a/deep/mine", ""):
        run = photographs / place
        (run / "samples").mkdir(parents=True)
        (run / "config.toml").write_text("")
        (run / "metrics.jsonl").write_text("")
        Image.new("RGB", (20, 20)).save(run / "samples" / "step-000004.png")
    assert folder(photographs).fingerprint == fingerprint
    # The pictures can still be asked for.
    assert len(folder(photographs / "samples")) == 1


def test_the_order_of_the_file_system_does_not_matter(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and a link to it hold the same files; the first name is taken."""
    (photographs / "z").symlink_to(photographs / "a")
    walk, found = os.walk, []
    for reverse in (False, True):

        def listed(*args: Any, reverse: bool = reverse, **more: Any) -> Any:
            for place, folders, names in walk(*args, **more):
                folders.sort(reverse=reverse)
                yield place, folders, sorted(names, reverse=reverse)

        monkeypatch.setattr(os, "walk", listed)
        dataset = folder(photographs, "heldout", heldout=0.4)
        found.append((dataset.fingerprint, dataset.names))
    assert found[0] == found[1]
    assert not any(name.startswith("z") for name in found[0][1])


def test_a_folder_that_cannot_be_listed_is_named(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(place: str) -> Any:
        if os.fspath(place).endswith("c"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    dataset = folder(photographs)
    assert len(dataset) == 6
    assert dataset.problems == {os.path.join("b", "c"): "it cannot be listed: Permission denied"}


def test_files_of_other_endings_are_told(photographs: Path) -> None:
    for number in range(3):
        (photographs / f"{number}.heic").write_bytes(b"")
        (photographs / f"noending{number}").write_bytes(b"")
    assert folder(photographs).notes == ["Not read: 6 files of other endings (.heic, none)."]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "it holds no files"),
        (["a.heic"], r"it holds 1 file of another ending \(.heic\)"),
        (["a.tar", "b.tar"], r"tar files are named by a pattern: --data '.*/\*.tar'"),
        (["a.parquet"], "named with hf: --data hf:"),
        (["a.zip"], "unpack its zip files, or have them read with --data hf:"),
    ],
)
def test_what_a_folder_without_images_holds_is_told(
    names: list[str], told: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=told):
        folder(tmp_path)


def test_names_are_shown_without_control_characters(photographs: Path) -> None:
    for name in ("a\nb.png", "\x1b[31mred.png", "\u202egnp.x.png", "caf\u00e9 \U0001f600.png"):
        (photographs / name).write_bytes(b"x")
    assert set(folder(photographs).problems) == {
        r"a\nb.png",
        r"\x1b[31mred.png",
        r"\u202egnp.x.png",
        "caf\u00e9 \U0001f600.png",
    }


def test_larger_images_are_read_if_asked_for(photographs: Path) -> None:
    Image.new("RGB", (100, 50)).save(photographs / "large.png")
    dataset = folder(photographs, max_pixels=60 * 48)
    assert list(dataset.problems) == ["large.png"]
    assert "100 x 50 pixels; --data.max-pixels 2880 is the most" in dataset.problems["large.png"]
    assert len(folder(photographs, max_pixels=5000)) == 13


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


def test_headers_are_read_once_unless_a_file_changes(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genkit_datasets.folder as module

    read_headers, check = [], module.check_header
    monkeypatch.setattr(
        module, "check_header", lambda *args: (read_headers.append(args[0].name), check(*args))
    )
    for split in ("train", "heldout"):
        folder(photographs, split)
    assert len(read_headers) == 12
    (photographs / "a" / "01.png").write_bytes(b"x")
    assert list(folder(photographs).problems) == [os.path.join("a", "01.png")]
    assert len(read_headers) == 24


def test_the_home_directory_may_be_written_as_a_tilde(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photographs))
    assert data_table("~/a") == {"name": "folder", "location": str(photographs / "a")}
    options = FolderOptions(location="~/a", heldout_folder="~/b")
    assert (len(Folder(options, "train", 16, 0)), len(Folder(options, "heldout", 16, 0))) == (6, 6)


def test_pixels_without_a_stated_range_are_left_out(tmp_path: Path) -> None:
    Image.new("F", (20, 20), 0.8).save(tmp_path / "float.tiff")
    Image.new("I", (20, 20), 200).save(tmp_path / "int.tiff")
    with pytest.raises(UnreadableImage, match="no stated range"):
        folder(tmp_path).images([0])


def test_strips_are_cropped_before_they_are_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (2, 30000), RED).save(tmp_path / "high.png")
    Image.new("RGB", (30000, 2), RED).save(tmp_path / "wide.png")
    dataset = folder(tmp_path, resolution=64)
    assert (dataset.images([0, 1]) == RED).all()
    assert all(
        image.nbytes <= 64 * 64 * 16 * 3
        for image in (dataset._decoded(number, varied=False) for number in range(2))
    )


def test_folders_of_the_same_names_are_told_apart(photographs: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(photographs, other)
    assert folder(other).fingerprint == folder(photographs).fingerprint
    Image.new("RGB", (60, 48)).save(next(other.rglob("*.png")))
    assert folder(other).fingerprint != folder(photographs).fingerprint


def test_transparency_lies_on_the_stated_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (*RED, 0)).save(tmp_path / "clear.png")
    assert (folder(tmp_path).images([0]) == 255).all()
    assert (folder(tmp_path, background=(1, 2, 3)).images([0]) == (1, 2, 3)).all()


def test_exif_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    picture.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = (
        6  # Turn a quarter clockwise to see it upright: the left half comes to lie on top.
    )
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_rgb(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    assert np.asarray(upright)[5, 10, 0] > 150
    assert np.asarray(upright)[35, 10, 0] < 50


def test_unreadable_files_are_named_and_left_out(photographs: Path) -> None:
    (photographs / "empty.png").write_bytes(b"")
    (photographs / "text.jpg").write_text("not a picture")
    dataset = folder(photographs)
    assert len(dataset) == 12
    assert set(dataset.problems) == {"empty.png", "text.jpg"}


def test_a_file_cut_short_is_passed_over_when_it_is_read(photographs: Path) -> None:
    victim = photographs / "a" / "01.png"
    victim.write_bytes(victim.read_bytes()[:-800])
    dataset = folder(photographs)
    index = dataset.names.index(os.path.join("a", "01.png"))
    kept, images = read(dataset, range(12))
    assert len(kept) == len(images) == 11
    assert index not in kept
    assert list(dataset.problems) == [os.path.join("a", "01.png")]
    # Training takes the next one in its place.
    varied = read_varied(folder(photographs), [index, 0], [1, 2])
    assert varied.shape == (2, 16, 16, 3)
    assert (
        sum(len(batch) for _, batch in batches(folder(photographs), 99, 5, torch.device("cpu")))
        == 11
    )


@pytest.mark.parametrize("content", [None, "text"])
def test_a_folder_without_images_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "x.png").write_text(content)
    with pytest.raises(DataError, match="no image can be read in"):
        folder(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        folder(tmp_path / "nowhere")


def test_the_split_is_by_file_and_stays(photographs: Path) -> None:
    train, heldout = (
        folder(photographs, "train", heldout=0.3),
        folder(photographs, "heldout", heldout=0.3),
    )
    assert set(train.names) | set(heldout.names) == set(folder(photographs).names)
    assert not set(train.names) & set(heldout.names)
    assert folder(photographs, "heldout", heldout=0.3).names == heldout.names
    assert folder(photographs, "heldout", heldout=0.3, split_seed=1).names != heldout.names
    # Another file changes nothing for those that are there.
    Image.new("RGB", (20, 20)).save(photographs / "new.png")
    assert set(heldout.names) - {"new.png"} == set(
        folder(photographs, "heldout", heldout=0.3).names
    ) - {"new.png"}


def test_at_least_one_file_is_held_out_and_one_trained_on(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number}.png")
    assert (
        len(folder(tmp_path, "heldout", heldout=0.01))
        == len(folder(tmp_path, "train", heldout=0.01))
        == 1
    )
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="two are needed"):
        folder(tmp_path, "heldout")


def test_training_crops_vary_with_the_seed(photographs: Path) -> None:
    dataset = folder(photographs, resolution=16, short_side=32)
    crops = dataset.images([0] * 8, range(8))
    assert len({crop.tobytes() for crop in crops}) > 4
    assert (dataset.images([0] * 8, range(8)) == crops).all()


def test_held_out_images_can_be_looked_at_in_several_crops(photographs: Path) -> None:
    one, four = folder(photographs), folder(photographs, crops=4)
    assert len(four) == 4 * len(one)
    assert (four.images([4]) == one.images([1])).all()
    assert len({crop.tobytes() for crop in four.images(range(4))}) == 4
    assert four.name(5) == f"{one.name(1)}#1"
    assert len(folder(photographs, "train", crops=4)) + len(folder(photographs, "heldout")) == len(
        one
    )


def test_decoded_images_are_kept_as_far_as_the_cache_reaches(photographs: Path) -> None:
    kept, read_anew = folder(photographs), folder(photographs, cache=0)
    before = kept.images(range(12), range(12))
    assert (read_anew.images(range(12), range(12)) == before).all()
    for file in photographs.rglob("*.png"):
        file.unlink()
    assert (kept.images(range(12), range(12)) == before).all()
    with pytest.raises(UnreadableImage):
        read_anew.images([0])


def test_flips_can_be_left_out(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    picture.paste(RED, (0, 0, 8, 16))
    picture.save(tmp_path / "half.png")
    left = [bool(image[8, 2, 0] > 100) for image in folder(tmp_path).images([0] * 20, range(20))]
    assert 3 < sum(left) < 17
    assert all(
        image[8, 2, 0] > 100 for image in folder(tmp_path, flip=False).images([0] * 20, range(20))
    )


def test_a_file_name_that_is_no_text(photographs: Path) -> None:
    strange = os.path.join(os.fsencode(photographs), b"\xff\xfe.png")
    try:
        with open(strange, "wb") as file:  # noqa: PTH123 (a path takes no bytes)
            Image.new("RGB", (20, 20), RED).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes only names that are text")
    dataset = folder(photographs)
    assert len(dataset) == 13
    assert all(dataset.name(index).encode() for index in range(13))


def test_linked_subfolders_are_read(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "there").symlink_to(photographs)
    assert len(folder(tmp_path / "links")) == 12


def test_links_that_go_round_end(photographs: Path) -> None:
    (photographs / "a" / "loop").symlink_to(photographs)
    assert len(folder(photographs)) == 12


def test_the_regions_of_faces_are_where_they_are_drawn() -> None:
    """Another colour of one eye changes that iris's pixels and no others."""
    same, other = (faces(light=0.0, noise=0.0, heterochromia=share) for share in (0.0, 1.0))
    indices = list(range(40))
    regions = same.regions(indices)
    changed = (same.images(indices) != other.images(indices)).any(-1)
    assert (regions["right_iris"][changed] > 0).all()
    assert not changed[regions["right_iris"] == 0].any()
    assert changed[regions["right_iris"] > 0.5].mean() > 0.99
    assert not (regions["left_iris"] * regions["right_iris"]).any()


def test_the_regions_of_faces_hold_the_colours_of_their_factors() -> None:
    data = faces(resolution=128, light=0.0, noise=0.0, heterochromia=0.5)
    indices = list(range(60))
    images, factors, regions = (data.images(indices), data.factors(indices), data.regions(indices))
    for side in ("left", "right"):
        for face, colour in enumerate(EYE_COLOURS[factors[f"{side}_eye"]]):
            inside = regions[f"{side}_iris"][face] > 0.99
            assert inside.any()
            assert np.abs(images[face][inside].mean(0) - colour).max() < 3
    worn = regions["left_earring"].sum((1, 2)) > 0
    assert (worn == (factors["earrings"] > 0)).all()


def test_another_folder_can_be_held_out(photographs: Path, tmp_path: Path) -> None:
    """As where somebody else made the split: training takes all of one folder."""
    apart = tmp_path / "apart"
    (photographs / "a").rename(apart)
    train, heldout = (
        folder(photographs, split, heldout_folder=str(apart)) for split in ("train", "heldout")
    )
    assert len(train) == len(heldout) == 6
    assert {heldout.name(i) for i in range(6)} == {path.name for path in apart.iterdir()}
    assert {train.name(i) for i in range(6)} == {f"b/c/{2 * i:02d}.png" for i in range(6)}
    with pytest.raises(ValueError, match="outside"):
        FolderOptions(location=str(photographs), heldout_folder=str(photographs / "b"))
    with pytest.raises(DataError, match="no folder"):
        folder(photographs, "heldout", heldout_folder=str(tmp_path / "gone"))
