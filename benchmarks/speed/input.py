"""Training images per second from a folder of JPEGs, compared with other libraries."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks.jobs import table
from benchmarks.speed.timing import Settings, Work, cell, interleaved, ratios, spread
from genkit.data import decoding
from genkit.data.loader import loader
from genkit.interfaces import Split
from genkit.run.options import layered, resolve_run

TITLE = "Input"

# Height of the files, size of the crops, number of files.
CASES = [(256, 64, 64), (256, 128, 64), (1024, 128, 32)]
BATCH = 16
OURS, WITH_SIMPLEJPEG, KEPT = "genkit", "genkit with simplejpeg", "genkit, kept by --cache"
PILLOW = "Pillow"
# The largest mean difference, in 8-bit steps, of equal crops that were resized with different
# kernels. A crop shifted by one pixel differs more.
TOLERANCE = 3.0

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
# Left, top, and whether the crop is mirrored.
Place = tuple[int, int, bool]
Reader = Callable[[Path, int, Place], Any]


def measure(settings: Settings) -> dict[str, Any]:
    """Images per second of each method, and the difference of its crops from plain Pillow's."""
    libraries = {name: _library(name) for name in ("torchvision", "simplejpeg")}
    there = {name: library for name, library in libraries.items() if library}
    cases = []
    for side, size, count in CASES:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), side, BATCH if settings.quick else count)
            works, crops = _ways(Path(folder), size, there)
            off = {name: _apart(crop, crops[PILLOW]) for name, crop in crops.items()}
            if wrong := [name for name, apart in off.items() if apart > TOLERANCE]:
                raise SystemExit(f"these do not give the same crops: {', '.join(wrong)}")
            rounds = (2, 3) if settings.quick else (9, 60)
            times = interleaved(works, 0.5 if settings.quick else 40, rounds)
            count = len(list(Path(folder).iterdir()))
        cases.append(
            {
                "side": side,
                "size": size,
                "rates": {name: spread([count / t for t in some]) for name, some in times.items()},
                "as_fast": {
                    name: 1 / ratio["median"] for name, ratio in ratios(times, PILLOW).items()
                },
                "off": off,
            }
        )
    return {
        "cases": cases,
        "missing": [name for name in libraries if name not in there],
        "versions": {name: module.__version__ for name, module in there.items()}
        | {"Pillow": _library("PIL").__version__},
    }


def page(figures: dict[str, Any], folder: Path) -> str:
    """The section's text."""
    cases = figures["cases"]
    heads = [f"{case['side']} → {case['size']} px" for case in cases]
    _plot(cases, heads, folder / "input.png")
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    missing = "".join(f" {name} is not installed here." for name in figures["missing"])
    rates = [
        [name] + [f"{cell(c['rates'][name], 0)}, {c['as_fast'][name]:.1f} x" for c in cases]
        for name in cases[0]["rates"]
    ]
    off = [[name, *(f"{c['off'][name]:.2f}" for c in cases)] for name in cases[0]["off"]]
    return "\n\n".join(
        [
            "Training images per second from files to batches, cropped and mirrored at random, and "
            "the multiple of Pillow's rate. The files are faces drawn at 5:4 and saved as JPEG of "
            "quality 90. All methods take the same crops and pass them through torch's loader "
            f"without workers. {versions}.{missing}",
            table(["", *heads], rates),
            "![Images per second](performance/input.png)",
            "Mean difference of the crops from Pillow's, in steps of 255. Pillow and genkit resize "
            "with a Lanczos kernel; the others with a triangle kernel, torchvision's default, "
            "except where Lanczos is named. genkit decodes a JPEG at 1/2, 1/4 or 1/8 of its size "
            "if that is at least twice the target size.",
            table(["", *heads], off),
        ]
    )


def draw(folder: Path, side: int, count: int) -> None:
    """Save faces as JPEGs with height `side` and 5/4 of it as width."""
    wide = side * 5 // 4
    run = resolve_run(layered(None, {"data": "faces"}))
    faces = run.data.build((wide, wide), 0).split("train")
    for number in range(count):
        face = faces.images([number])[0][(wide - side) // 2 :][:side]
        Image.fromarray(face).save(folder / f"{number:04d}.jpg", quality=90)


def _ways(
    folder: Path, size: int, there: Mapping[str, Any]
) -> tuple[dict[str, Work], dict[str, Pixels]]:
    """The work of one epoch with each method, and its crops of the first files."""
    works: dict[str, Work] = {}
    crops: dict[str, Pixels] = {}
    seeds = range(BATCH)
    for name in (OURS, WITH_SIMPLEJPEG, KEPT):
        if name == WITH_SIMPLEJPEG and "simplejpeg" not in there:
            continue
        library = there["simplejpeg"] if name == WITH_SIMPLEJPEG else None
        works[name], dataset = _ours(folder, size, 2048 if name == KEPT else 0, library)
        crops[name] = dataset.images(seeds, seeds)
    files = sorted(folder.iterdir())
    for name, reader in _others(there).items():
        data = _Files(files, size, reader)
        works[name] = _epoch(DataLoader(data, BATCH))
        crops[name] = np.stack([data.pixels(number) for number in seeds])
    return works, crops


def _ours(folder: Path, size: int, cache: int, simplejpeg: Any) -> tuple[Work, Split]:
    """Reading of training images as in a run."""
    data = {"name": str(folder), "cache": cache}
    settings = {"data": data, "batch_size": BATCH, "resolution": size, "workers": 0}
    run = resolve_run(layered(None, settings))
    # No files are held out, so all methods read the same ones.
    dataset = run.data.build(run.size, 0).split("all")
    run = resolve_run(layered(None, settings, {"steps": len(dataset) // BATCH}))

    def library() -> Any:
        return simplejpeg

    def work() -> None:
        with mock.patch.object(decoding, "_simplejpeg", library):
            for _ in loader(run, dataset, 0, 1, 0):
                pass

    return work, dataset


def _epoch(batches: DataLoader[Any]) -> Work:
    def work() -> None:
        for _ in batches:
            pass

    return work


class _Files(TorchDataset[Any]):
    """Files read by `reader`, with the same crops as our data set."""

    def __init__(self, files: list[Path], size: int, reader: Reader) -> None:
        self.files, self.size, self.reader = files, size, reader
        with Image.open(files[0]) as image:
            self.wide = max(size, round(image.width * size / image.height))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Any:
        rng = np.random.default_rng(number)
        left, top = int(rng.integers(self.wide - self.size + 1)), int(rng.integers(1))
        return self.reader(self.files[number], self.size, (left, top, rng.random() < 0.5))

    def pixels(self, number: int) -> Pixels:
        """An image as uint8 `[H, W, 3]`."""
        image = torch.as_tensor(self[number])
        if image.is_floating_point():
            image = (image * 127.5 + 127.5).round().to(torch.uint8)
        pixels: Pixels = (image if image.shape[-1] == 3 else image.permute(1, 2, 0)).numpy()
        return pixels


def _others(there: Mapping[str, Any]) -> dict[str, Reader]:
    """The usual methods, each from a file to a crop."""

    def pillow(file: Path, size: int, place: Place) -> Any:
        left, top, mirrored = place
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        scale = size / image.height
        image = image.resize((round(image.width * scale), size), Image.Resampling.LANCZOS)
        image = image.crop((left, top, left + size, top + size))
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(image)

    ways: dict[str, Reader] = {PILLOW: pillow}
    if "torchvision" not in there:
        return ways
    io, v2 = (importlib.import_module(f"torchvision.{name}") for name in ("io", "transforms.v2"))
    as_floats = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    )

    def cropped(image: Any, size: int, place: Place, kernel: str = "bilinear") -> Any:
        left, top, mirrored = place
        image = v2.functional.resize(image, [size], v2.InterpolationMode(kernel))
        image = v2.functional.crop(image, top, left, size, size)
        return v2.functional.horizontal_flip(image) if mirrored else image

    def floats(file: Path, size: int, place: Place) -> Any:
        with Image.open(file) as opened:
            return cropped(as_floats(opened.convert("RGB")), size, place)

    def decoded(file: Path, size: int, place: Place, kernel: str = "bilinear") -> Any:
        rgb = io.ImageReadMode.RGB
        return cropped(io.decode_jpeg(io.read_file(str(file)), mode=rgb), size, place, kernel)

    def simplejpeg(file: Path, size: int, place: Place, kernel: str = "bilinear") -> Any:
        pixels = there["simplejpeg"].decode_jpeg(file.read_bytes())
        image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        return cropped(image, size, place, kernel)[0]

    ways["Pillow + torchvision v2, float"] = floats
    fast: dict[str, Reader] = {"torchvision decode_jpeg": decoded}
    if "simplejpeg" in there:
        fast["simplejpeg + torchvision v2"] = simplejpeg
    for name, reader in fast.items():
        ways[name] = reader
        ways[f"{name}, Lanczos"] = functools.partial(reader, kernel="lanczos")
    return ways


def _apart(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _plot(cases: list[dict[str, Any]], heads: list[str], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(cases[0]["rates"])
    figure, axes = plt.subplots(1, len(cases), figsize=(10, 2.6), sharey=True)
    for axis, case, head in zip(axes, cases, heads, strict=True):
        values = [case["rates"][name]["median"] for name in names]
        colours = ["#1f77b4" if "genkit" in name else "#b0b0b0" for name in names]
        bars = axis.barh(names[::-1], values[::-1], color=colours[::-1])
        axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axis.set_xscale("log")
        axis.set_xlim(right=max(values) * 4)
        axis.set_title(head, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xlabel("images per second", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
