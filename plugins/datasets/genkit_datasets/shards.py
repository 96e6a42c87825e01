"""Images in tar files, as webdataset writes them."""

from __future__ import annotations

import functools
import hashlib
import os
import tarfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from genkit.errors import DataError, OptionError
from genkit.files import printable
from genkit_datasets import ShardsOptions
from genkit_datasets.crops import Crops
from genkit_datasets.library import library
from genkit_datasets.split import files_of

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """An image in a shard: its name, of which sample it is, and which bytes it takes."""

    shard: str
    name: str
    sample: str
    ending: str
    start: int
    size: int


class Shards(Crops[Member]):
    """The images of tar files, split by sample.

    Where each lies is gathered from the headers once; any process then reads any of them.
    """

    def __init__(self, options: ShardsOptions, split: str, resolution: int, seed: int) -> None:
        super().__init__(options, split, resolution)
        if not options.location:
            raise DataError("the tar files are not known: name them with --data")
        parts = [
            _shards(patterns) for patterns in (options.location, options.heldout_shards) if patterns
        ]
        if both := set(parts[0]).intersection(*parts[1:]) if parts[1:] else None:
            raise OptionError(f"{min(both)} is both to be trained on and held out")
        # Alike wherever the shards lie, but apart if their folders are what tells two of them.
        every = [shard for part in parts for shard in part]
        root = os.path.commonpath([Path(shard).parent for shard in every])
        self._shard_names = {shard: os.path.relpath(shard, root) for shard in every}
        images = [_images(part, options) for part in parts]
        listed = "\n".join(
            f"{part}:{self.file_name(file)}:{file.size}"
            for part, files in enumerate(images)
            for file in files
        )
        self.fingerprint = "shards:" + hashlib.sha256(listed.encode()).hexdigest()
        files = images[-1 if split == "heldout" else 0]
        whole = split == "all" or options.heldout_shards
        self.take(files if whole else files_of(split, files, self._sample, options))

    def file_name(self, file: Member) -> str:
        """The shard and the member, such as `a00.tar/face/000012.jpg`."""
        return printable(f"{self._shard_names[file.shard]}/{file.name}")

    def encoded(self, file: Member) -> IO[bytes]:
        """The member's bytes."""
        # A file of its own each time: processes would share the place in one that is kept open.
        with Path(file.shard).open("rb") as shard:
            shard.seek(file.start)
            content = shard.read(file.size)
        if len(content) < file.size:
            raise ValueError("the shard has been cut short")
        return BytesIO(content)

    def _sample(self, file: Member) -> str:
        return printable(f"{self._shard_names[file.shard]}/{file.sample}")


def _shards(patterns: str) -> list[str]:
    """The paths that patterns stand for, each once; `DataError` names one that is not there."""
    if "://" in patterns or patterns.startswith("pipe:"):
        raise DataError(f"'{patterns}' is no file: shards are read from here alone")
    shards = [
        os.path.abspath(path) for path in library("webdataset").shardlists.expand_urls(patterns)
    ]
    for shard in shards:
        if not Path(shard).is_file():
            raise DataError(f"there is no shard '{shard}'")
    return list(dict.fromkeys(shards))


def _images(shards: Iterable[str], options: ShardsOptions) -> list[Member]:
    """The images in shards that `endings` ask for; `OptionError` if it must ask and does not."""
    endings = [ending.strip().lower() for ending in options.endings.split(",") if ending.strip()]
    found, seen = [], set[str]()
    for shard in shards:
        status = Path(shard).stat()
        images = _members(shard, status.st_size, status.st_mtime_ns)
        kept = [file for file in images if not endings or file.ending in endings]
        seen |= {file.ending for file in images}
        of_sample: dict[str, Member] = {}
        for file in kept:
            if (other := of_sample.setdefault(file.sample, file)) is not file and not endings:
                raise OptionError(
                    f"samples of '{shard}' hold several images, such as {other.name} and "
                    f"{file.name}: name the ending of those to take with --data.endings"
                )
        found += kept
    if not found:
        ends = f", but such that end in {', '.join(sorted(seen))}" if seen else ""
        asked = f" that ends in {' or '.join(endings)}" if endings else ""
        raise DataError(f"'{options.location}' holds no image{asked}{ends}")
    return found


@functools.cache
def _members(shard: str, size: int, changed: int) -> list[Member]:
    """The images of a shard of that size and time of change.

    Of several members of one name the last one counts, as where a tar file is unpacked.
    """
    split_name = library("webdataset").tariterators.base_plus_ext
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: dict[str, Member] = {}
    with Path(shard).open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    sample, ending = split_name(member.name)
                    last = os.path.splitext(member.name)[1].lower()
                    # Macs put a ._x.png beside each x.png, which is none.
                    hidden = os.path.basename(member.name).startswith(".")
                    if sample and not hidden and member.isreg() and last in known:
                        found[member.name] = Member(
                            shard,
                            member.name,
                            sample,
                            ending.lower(),
                            member.offset_data,
                            member.size,
                        )
                # The library takes a damaged header for the end.
                file.seek(tar.offset)
                if file.read(_BLOCK).strip(b"\0"):
                    raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
        except (tarfile.TarError, OSError) as error:
            file.seek(0)
            if file.read(8).startswith(_COMPRESSED):
                raise DataError(
                    f"the shard '{shard}' is compressed: uncompress it, for images are read from "
                    "the middle of it"
                ) from error
            raise DataError(f"the shard '{shard}' cannot be read: {error}") from error
    return list(found.values())
