"""Images in tar files written by webdataset."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

from genkit.data.opening import ARRAYS, endings
from genkit.distributed import once_per_machine
from genkit.errors import DataError, OptionError
from genkit.files import printable
from genkit_datasets import PIPE, ShardsOptions
from genkit_datasets.crops import Crops
from genkit_datasets.library import library
from genkit_datasets.walk import is_hidden, listed

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BLOCK = tarfile.BLOCKSIZE
# Extensions of members with the label or caption of their sample.
_TEXTS = (".cls", ".json", ".txt")


class Member(NamedTuple):
    """A file in a shard: its name, its sample, and its position in bytes."""

    shard: str
    name: str
    sample: str
    ending: str
    start: int
    size: int


class Shards(Crops[Member]):
    """The images of tar files, split by sample.

    A sample's `.cls` or `.json` holds its label, and its `.txt` or `.json` its caption. The tar
    headers are read once for the positions of all files; then any process can read any file.
    """

    def __init__(self, options: ShardsOptions, size: tuple[int, int] | None, seed: int) -> None:
        super().__init__(options, size)
        self.keys = options
        if not options.location:
            raise DataError("no tar files were named: name them with --data")
        parts = [
            _shards(patterns) for patterns in (options.location, options.heldout_shards) if patterns
        ]
        if both := set(parts[0]).intersection(*parts[1:]) if parts[1:] else None:
            raise OptionError(
                f"the shard {min(both)} is in both the training set and the held-out set: "
                "name it once"
            )
        # Relative to the common folder: the same wherever the shards are, and unique among them.
        every = [shard for part in parts for shard in part]
        root = os.path.commonpath([Path(shard).parent for shard in every])
        self._shard_names = {shard: os.path.relpath(shard, root) for shard in every}
        # The processes of a machine would all read through the same files.
        members = once_per_machine(
            lambda: [[member for shard in part for member in _members(shard)] for part in parts]
        )
        images = [_images(part, options) for part in members]
        listed = "\n".join(
            f"{part}:{self.file_name(file)}:{file.size}"
            for part, files in enumerate(images)
            for file in files
        )
        self.fingerprint = "shards:" + hashlib.sha256(listed.encode()).hexdigest()
        self.take(*images)
        self._texts = {
            (file.shard, *os.path.splitext(file.name)): file
            for part in members
            for file in part
            if file.name.endswith(_TEXTS)
        }
        self.take_labels([self._label_of(file) for file in self.files])

    def file_name(self, file: Member) -> str:
        """The shard and the member's name, such as `a00.tar/face/000012.jpg`."""
        return printable(f"{self._shard_names[file.shard]}/{file.name}")

    def encoded(self, file: Member) -> IO[bytes]:
        """The member's bytes."""
        return BytesIO(self._bytes(file))

    def caption_of(self, file: Member) -> str | None:
        """The sample's `.txt`, or the caption in its `.json`."""
        text = self._text(file, ".txt")
        found = self._json(file).get(self.keys.caption) if text is None else text.strip()
        return found if isinstance(found, str) else None

    def _label_of(self, file: Member) -> int | str | None:
        """The number in the sample's `.cls`, or the label in its `.json`."""
        text = self._text(file, ".cls")
        if text is not None:
            return int(text) if text.strip().isdecimal() else text.strip()
        found = self._json(file).get(self.keys.label)
        return found if type(found) in (int, str) else None

    def _json(self, file: Member) -> dict[str, Any]:
        try:
            found = json.loads(self._text(file, ".json") or "null")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _text(self, file: Member, ending: str) -> str | None:
        """The content of another member of an image's sample, if any."""
        member = self._texts.get((file.shard, file.sample, ending))
        return None if member is None else self._bytes(member).decode("utf-8", "replace")

    def _bytes(self, file: Member) -> bytes:
        # Open the file each time: forked processes would share the position of an open file.
        with Path(file.shard).open("rb") as shard:
            shard.seek(file.start)
            content = shard.read(file.size)
        if len(content) < file.size:
            raise ValueError("the shard has been cut short")
        return content

    def key(self, file: Member) -> str:
        """The file's sample, such as `a00.tar/face/000012`."""
        return printable(f"{self._shard_names[file.shard]}/{file.sample}")


def _shards(patterns: str) -> list[str]:
    """The paths that match the patterns, each once; `DataError` if one does not exist."""
    if "://" in patterns or patterns.startswith(PIPE):
        raise DataError(
            f"'{patterns}' is not a local file: only local shards can be read, so download it first"
        )
    shards: list[str] = []
    for path in library("webdataset").shardlists.expand_urls(patterns):
        # An existing file's name may contain characters of patterns.
        found = [path] if os.path.exists(path) else sorted(glob.glob(path))  # noqa: PTH207
        if not found:
            raise DataError(f"the shard '{os.path.abspath(path)}' does not exist")
        shards += map(os.path.abspath, found)
    if unusable := next((shard for shard in shards if not Path(shard).is_file()), None):
        raise DataError(f"the shard '{unusable}' is not a file")
    return list(dict.fromkeys(shards))


def _images(every: list[Member], options: ShardsOptions) -> list[Member]:
    """The images selected by `endings`.

    `OptionError` if samples hold several images and `endings` is empty.
    """
    wanted = [ending.strip().lower().lstrip(".") for ending in options.endings.split(",")]
    asked = [ending for ending in wanted if ending]

    def ending(file: Member) -> str:
        return os.path.splitext(file.name)[1].lower()

    images = every if asked else [file for file in every if ending(file) in endings()]
    if not images:
        images = [file for file in every if ending(file) == ARRAYS]
    images, dotted = _with_dots(images)
    found = [
        file
        for file in images
        if not asked
        or file.ending in asked
        or (file in dotted and file.name.lower().endswith(tuple(f".{end}" for end in asked)))
    ]
    of_sample: dict[tuple[str, str], Member] = {}
    for file in found:
        other = of_sample.setdefault((file.shard, file.sample), file)
        if other is not file and not asked:
            raise OptionError(
                f"samples of '{file.shard}' hold several images, such as {printable(other.name)} "
                f"and {printable(file.name)}: select one by its ending with --data.endings"
            )
    if not found:
        held = Counter(f".{file.ending}" if file.ending else "" for file in every)
        end = f" that ends in {' or '.join(asked)}" if asked else ""
        holds = f"; it holds {listed(held)}" if held else ""
        raise DataError(f"'{options.location}' has no image{end}{holds}")
    return found


def _with_dots(images: list[Member]) -> tuple[list[Member], set[Member]]:
    """The images, and the set of them whose names contain dots before the file extension.

    The library ends a sample's name at its first dot. If that merges several images into one
    sample, and no other sample has one of their endings, dots belong to the name (such as
    `2024.01.02.png`) and each image is its own sample.
    """
    groups: dict[tuple[str, str], list[Member]] = {}
    for file in images:
        groups.setdefault((file.shard, file.sample), []).append(file)
    uses = Counter(file.ending for file in images)
    dotted = set[Member]()
    result = []
    for file in images:
        group = groups[file.shard, file.sample]
        if len(group) > 1 and all(uses[one.ending] == 1 for one in group):
            sample, ending = os.path.splitext(file.name)
            file = file._replace(sample=sample, ending=ending[1:].lower())
            dotted.add(file)
        result.append(file)
    return result, dotted


def _members(shard: str) -> list[Member]:
    """The files in a shard, except hidden files.

    If several members have the same name, the last one counts, as when unpacking a tar file.
    """
    split_name = library("webdataset").tariterators.base_plus_ext
    found: dict[str, Member] = {}
    with Path(shard).open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    sample, ending = split_name(member.name)
                    parts = [part for part in member.name.split("/") if part not in (".", "..")]
                    if sample and member.isreg() and not any(map(is_hidden, parts)):
                        found[member.name] = Member(
                            shard,
                            member.name,
                            sample,
                            ending.lower(),
                            member.offset_data,
                            member.size,
                        )
                # tarfile takes a damaged header for the end of the archive.
                file.seek(tar.offset)
                if file.read(_BLOCK).strip(b"\0"):
                    raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
        except (tarfile.TarError, OSError) as error:
            file.seek(0)
            if file.read(8).startswith(_COMPRESSED):
                raise DataError(
                    f"the shard '{shard}' is compressed, but reading needs random access: "
                    "uncompress it"
                ) from error
            raise DataError(f"the shard '{shard}' cannot be read: {error}") from error
    return list(found.values())
