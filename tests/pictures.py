"""Pictures whose colour encodes their number, in the formats of `datasets` and in tar shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
from genkit_datasets import HFOptions, ShardsOptions
from genkit_datasets.hf import HF
from genkit_datasets.shards import Shards
from PIL import Image

from genkit import Subset

COUNT = 24


def png(number: int, size: tuple[int, int] = (12, 9)) -> bytes:
    """A plain picture whose colour encodes its number."""
    return encoded(Image.new("RGB", size, (number, 255 - number, 7)))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def numbers(dataset: Any) -> list[int]:
    """The numbers of a data set's pictures, read from their colours."""
    return dataset.images(range(len(dataset)))[:, 0, 0, 0].tolist()


def table(first: int = 0, count: int = COUNT, columns: tuple[str, ...] = ("image",)) -> Any:
    """A data set of pictures that are numbered from `first`."""
    cells = [{"bytes": png(number), "path": None} for number in range(first, first + count)]
    features = {name: datasets.Image() for name in columns} | {"label": datasets.Value("int64")}
    content = dict.fromkeys(columns, cells) | {"label": list(range(count))}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def write_shard(path: Path, pictures: Any) -> None:
    members = [(f"sub/{n:04d}.{end}", content) for n in pictures for end, content in sample(n)]
    write_tar(path, members)


def sample(number: int) -> list[tuple[str, bytes]]:
    return [("png", png(number)), ("json", b"{}"), ("cls", b"1")]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def hf(location: Path | str, which: str = "all", **options: Any) -> Subset:
    return HF(HFOptions(location=str(location), **options), (8, 8), 0).split(which)


def shards(location: Path | str, which: str = "all", **options: Any) -> Subset:
    return Shards(ShardsOptions(location=str(location), **options), (8, 8), 0).split(which)


def in_tars(path: Path, members: list[tuple[str, bytes]], **options: Any) -> Subset:
    write_tar(path, members)
    return shards(path, **options)


HF_PLACES = ["parquet", "saved", "saved-splits", "one.parquet", "one.arrow", "images"]
EVERY = [*(f"hf:{place}" for place in HF_PLACES), "a-{00..02}.tar"]


def at(location: str, places: Path) -> str:
    """A location below the folder of test data."""
    scheme, colon, place = location.rpartition(":")
    return f"{scheme}{colon}{places / place}"
