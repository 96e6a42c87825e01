"""Quality per bit once a prior codes the indices, beside JPEG and WebP.

    python -m benchmarks coded runs/faces-prior runs/other-prior

All runs are measured on the same held-out images. JPEG and WebP store the images as one mosaic,
so that the header of a file is shared by all of them. Draws docs/coded.png.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import genkit
from genkit.evaluation.images import evaluation_images
from genkit.evaluation.metrics import psnr
from genkit.evaluation.prior import PriorMeasurement
from genkit.images import from_pixels

PICTURE = Path(__file__).parent.parent / "docs" / "coded.png"
QUALITIES = (5, 10, 20, 30, 50, 70, 85)
FORMATS = {"JPEG": {"optimize": True}, "WebP": {"method": 6}}


def mosaic(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images `[N, H, W, C]` as one picture; N is a square number."""
    side = math.isqrt(len(images))
    _, height, width, channels = images.shape
    rows = images.reshape(side, side, height, width, channels).swapaxes(1, 2)
    return rows.reshape(side * height, side * width, channels)


def parts(picture: NDArray[np.uint8], side: int) -> Tensor:
    """The images of a mosaic, in [-1, 1]."""
    height, width = picture.shape[0] // side, picture.shape[1] // side
    rows = picture.reshape(side, height, side, width, -1).swapaxes(1, 2)
    return from_pixels(torch.from_numpy(rows.reshape(side**2, height, width, -1).copy()))


def curve(images: NDArray[np.uint8], form: str) -> list[tuple[float, float]]:
    """Bits per pixel and mean PSNR of a mosaic in a format, for each quality."""
    whole, side = mosaic(images), math.isqrt(len(images))
    points = []
    for quality in QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(whole).save(buffer, form, quality=quality, **FORMATS[form])
        read = np.asarray(Image.open(buffer).convert("RGB"))
        bits = 8 * buffer.tell() / (whole.shape[0] * whole.shape[1])
        points.append((bits, float(psnr(parts(whole, side), parts(read, side)).mean())))
    return points


@click.command(help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--images", default=256, show_default=True, help="Held-out images, a square number.")
@click.option("--out", type=click.Path(path_type=Path), default=PICTURE)
def main(runs: tuple[Path, ...], images: int, out: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for run in runs:
        found = PriorMeasurement(str(run), images=images).record()
        plain, coded = found["plain_bits_per_pixel"], found["bits_per_pixel"]
        name = run.parent.name.replace("-", " ") if run.name == "autoregressive" else run.name
        click.echo(f"{name}: {found['psnr']:.2f} dB, {coded:.4f} of {plain:.4f} bits per pixel")
        line = axes.plot([plain, coded], [found["psnr"]] * 2, ":", marker="o", mfc="none")
        axes.plot([coded], [found["psnr"]], "o", color=line[0].get_color(), label=name)
    size = genkit.load_prior(runs[0]).size
    heldout = evaluation_images(str(runs[0]), genkit.inspect(runs[0]), None, size).images
    pixels = heldout.images(list(range(images)))
    for form in FORMATS:
        points = curve(pixels, form)
        text = ", ".join(f"{bits:.3f}: {quality:.2f}" for bits, quality in points)
        click.echo(f"{form}, bits per pixel and dB: {text}")
        axes.plot(*zip(*points, strict=True), ".--", label=f"{form}, one file of all images")
    axes.set(xlabel="bits per pixel", ylabel="PSNR on held-out images (dB)", xlim=(0, 1.2))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
