"""Images of every kind, from files to indices and back, and drawn.

    python -m benchmarks kinds --landscapes FOLDER --out runs/kinds
    python -m benchmarks kinds --out runs/generated

`--landscapes` is a folder of photographs; the others are made from it, or come from scikit-image.
Every step is the command that a user types. Fills in docs/results.md. Without photographs, images
are made from generated faces, and the benchmark draws docs/kinds.png, which so shows no one else's
pictures.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from genkit_datasets import FacesOptions
from genkit_datasets.faces import Faces
from PIL import Image, ImageCms

from benchmarks.jobs import fill, table
from genkit.captions import captioned
from genkit.images import Pixels, save_png
from genkit.pictures import load_picture

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
Array = np.ndarray[Any, Any]
# Images that are shown and encoded, generated faces, and the size of a row of the picture.
_FEW, _FACES, _WIDE, _HIGH = 8, 120, 760, 90


class Kind(NamedTuple):
    """A kind of images: how its folder is made, and the options that its tokenizer needs."""

    what: str
    make: Callable[[Path, Path], None]
    options: tuple[str, ...]
    resolution: str = "64"
    location: str = ""


def photographs(folder: Path) -> list[Path]:
    """The photographs, in the order of their names."""
    return sorted(folder.glob("*.jpg"))


def linear(path: Path) -> Array:
    """Linear light `[H / 4, W / 4, 3]` in [0, 1]: the mean of 16 pixels has more than 8 bits."""
    encoded = np.asarray(Image.open(path).convert("RGB")) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    rows, columns = (side // 4 for side in light.shape[:2])
    parts = light[: rows * 4, : columns * 4].reshape(rows, 4, columns, 4, 3)
    return parts.mean(axis=(1, 3))


def as_they_are(source: Path, out: Path) -> None:
    """Photographs turned by EXIF, with a colour profile, or with a soft edge in alpha."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, path in enumerate(photographs(source)):
        image = Image.open(path).convert("RGB")
        if number % 3 == 0:
            exif = Image.Exif()
            exif[0x0112] = 6
            image.rotate(90, expand=True).save(out / f"{path.stem}.jpg", exif=exif, quality=95)
        elif number % 3 == 1:
            image.save(out / f"{path.stem}.png", icc_profile=profile, compress_level=1)
        else:
            ramp = np.linspace(0, 255, image.width).astype(np.uint8)
            image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
            image.save(out / f"{path.stem}.png", compress_level=1)


def grey(source: Path, out: Path) -> None:
    """Microscopy, retina, phantom and other grey images of scikit-image, of all sizes."""
    from skimage import data

    names = ("cell", "microaneurysms", "shepp_logan_phantom", "camera", "coins", "moon", "page")
    for name in names:
        image = getattr(data, name)()
        scaled = image if image.dtype == np.uint8 else np.round(255 * image).astype(np.uint8)
        Image.fromarray(scaled).save(out / f"{name}.png")
    for name, image in (("retina", data.retina()), ("stained", data.immunohistochemistry())):
        Image.fromarray(image[:, :, 1]).save(out / f"{name}.png")


def twelve_bits(source: Path, out: Path) -> None:
    """Luminance of the photographs in linear light, from 0 to 4095, as 16-bit PNGs."""
    for path in photographs(source):
        light = linear(path) @ [0.2126, 0.7152, 0.0722]
        Image.fromarray(np.round(4095 * light).astype(np.uint16)).save(out / f"{path.stem}.png")


def five_bands(source: Path, out: Path) -> None:
    """Red, green, blue, luminance and excess green of the photographs, as float arrays."""
    for path in photographs(source):
        light = linear(path)
        red, green, blue = np.moveaxis(light, 2, 0)
        excess = np.clip(0.5 + green - (red + blue) / 2, 0, 1)
        bands = [red, green, blue, light @ [0.2126, 0.7152, 0.0722], excess]
        np.save(out / f"{path.stem}.npy", np.stack(bands, axis=2).astype(np.float32))


def shapes(source: Path) -> list[tuple[str, bytes]]:
    """The photographs as JPEGs of many shapes: wide, square and tall."""
    result = []
    for number, path in enumerate(photographs(source)):
        image = Image.open(path).convert("RGB")
        width = (720, 360, 200)[number % 3]
        stream = io.BytesIO()
        image.crop((0, 0, width, 360)).save(stream, format="JPEG", quality=95)
        result.append((f"{path.stem}.jpg", stream.getvalue()))
    return result


def as_parquet(source: Path, out: Path) -> None:
    """A data set that the library `datasets` reads."""
    import datasets

    images = [{"bytes": content, "path": name} for name, content in shapes(source)]
    features = datasets.Features({"image": datasets.Image()})
    made = datasets.Dataset.from_dict({"image": images}, features=features)
    made.to_parquet(str(out / "train.parquet"))


def as_shards(source: Path, out: Path) -> None:
    """Four tar files."""
    every = shapes(source)
    for shard in range(4):
        with tarfile.open(out / f"{shard:02d}.tar", "w") as tar:
            for name, content in every[shard::4]:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


SMALL = "--short-side", "128", "--data.crops", "8"
KINDS = {
    "native": Kind("EXIF, ICC, alpha", as_they_are, SMALL, "64x128"),
    "grey": Kind("grey, medical", grey, ("--data.heldout", "0.3", "--data.crops", "16")),
    "12-bit": Kind("12-bit grey PNG", twelve_bits, ("--data.range", "0,4095")),
    "bands": Kind("5 bands, float .npy", five_bands, ()),
    "hf": Kind("parquet, many shapes", as_parquet, SMALL, "64", "hf:{}"),
    "shards": Kind("tar files, many shapes", as_shards, SMALL, "96x64", "{}/{{00..03}}.tar"),
}


def genkit(*args: object) -> str:
    """The output of a command; ends the benchmark if it fails."""
    command = [sys.executable, "-m", "genkit_cli", *map(str, args)]
    print("genkit", *args, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"genkit {' '.join(command[3:])}\n{done.stderr}")
    return done.stdout


def measured(kind: Kind, name: str, source: Path, out: Path, steps: int, prior: int) -> list[str]:
    """A row of the table: a tokenizer and a prior of one kind, through every command."""
    place = out / name
    images = place / "images"
    if not images.is_dir():
        shutil.rmtree(place, ignore_errors=True)
        images.mkdir(parents=True)
        kind.make(source, images)
    data = (kind.location or "{}").format(images)
    run = place / "run"
    if not (run / "model.safetensors").is_file():
        shape = "--resolution", kind.resolution, "--mixed-precision", "bf16", "--steps", steps
        genkit("train", "--data", data, *kind.options, *shape, "--out", run)
    figures = json.loads(genkit("evaluate", run, "--json"))
    whole = json.loads(genkit("evaluate", run, "--resolution", "native", "--images", 30, "--json"))
    tokens = place / "tokens.safetensors"
    tokens.unlink(missing_ok=True)
    few = few_images(kind, source, images, place / "few")
    genkit("encode", run, data if kind.location else few, "--resolution", "native", "--out", tokens)
    shutil.rmtree(place / "decoded", ignore_errors=True)
    genkit("decode", run, tokens, "--out", place / "decoded")
    drawn = place / "prior"
    if not (drawn / "model.safetensors").is_file():
        genkit("train-prior", run, "--steps", prior, "--out", drawn)
    shutil.rmtree(place / "drawn", ignore_errors=True)
    genkit("sample", drawn, "--number", 8, "--out", place / "drawn")
    first = sorted(path for path in (place / "decoded").iterdir() if path.is_file())[0]
    channels = genkit_channels(run)
    return [
        kind.what,
        f"{channels}",
        kind.resolution.replace("x", " x "),
        f"{figures['psnr']:.2f} dB",
        f"{whole['psnr']:.2f} dB",
        form_of(first),
    ]


def few_images(kind: Kind, source: Path, images: Path, few: Path) -> Path:
    """A folder with the first images of a kind."""
    shutil.rmtree(few, ignore_errors=True)
    few.mkdir()
    if kind.location:
        for name, content in shapes(source)[:_FEW]:
            (few / name).write_bytes(content)
    else:
        for path in sorted(images.iterdir())[:_FEW]:
            os.link(path, few / path.name)
    return few


def faces(folder: Path) -> Path:
    """A folder of wide JPEGs of generated faces."""
    folder.mkdir(parents=True, exist_ok=True)
    generated = Faces(FacesOptions(), (360, 720), seed=0).split("heldout")
    for number in range(_FACES):
        place = folder / f"face-{number:03d}.jpg"
        if not place.exists():
            Image.fromarray(generated.images([number])[0]).save(place, quality=95)
    return folder


def drawn(out: Path) -> Pixels:
    """A row for every kind made from faces: originals, each beside its reconstruction."""
    names = [name for name in KINDS if name != "grey"]
    rows = []
    for name in names:
        place = out / name
        shutil.rmtree(place / "pairs", ignore_errors=True)
        genkit("reconstruct", place / "run", place / "few", "--out", place / "pairs")
        pairs = [Image.open(path).convert("RGB") for path in sorted((place / "pairs").iterdir())]
        row, left = Image.new("RGB", (_WIDE, _HIGH + 4), "white"), 0
        for pair in pairs:
            small = pair.resize((round(pair.width * _HIGH / pair.height), _HIGH))
            if left + small.width > _WIDE:
                break
            row.paste(small, (left, 0))
            left += small.width + 8
        rows.append(np.asarray(row))
    words = "Original and reconstruction at native size, side by side"
    return captioned(np.concatenate(rows), words, [KINDS[name].what for name in names])


def genkit_channels(run: Path) -> int:
    """The channels of a run's tokenizer."""
    return int(json.loads(genkit("inspect", run, "--json"))["channels"])


def form_of(path: Path) -> str:
    """The kind, the type and the shape of a decoded file."""
    picture = load_picture(path)
    return f"{path.suffix}, {picture.dtype}, {' x '.join(map(str, picture.shape))}"


HEAD = "images", "channels", "trained at", "PSNR", "PSNR, native size", "a decoded file"


@click.command(help=__doc__)
@click.option(
    "--landscapes",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of JPEG photographs. [generated faces, for the picture]",
)
@click.option("--steps", type=int, default=300, show_default=True, help="Of each tokenizer.")
@click.option("--prior-steps", type=int, default=100, show_default=True)
@click.option("--kind", type=click.Choice(list(KINDS)), multiple=True, help="[all]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/kinds"), show_default=True
)
def main(
    landscapes: Path | None, steps: int, prior_steps: int, kind: tuple[str, ...], out: Path
) -> None:
    out = out.resolve()
    source = landscapes or faces(out / "faces")
    rows = [measured(KINDS[name], name, source, out, steps, prior_steps) for name in kind or KINDS]
    text = table(HEAD, rows)
    if kind or not landscapes:
        click.echo(text)
    else:
        fill(PAGE, "kinds", text)
    if not kind and not landscapes:
        save_png(PAGE.parent / "kinds.png", drawn(out))
