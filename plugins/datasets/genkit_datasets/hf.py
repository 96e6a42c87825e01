"""Hugging Face data sets, from the hub or from local files, read by the library `datasets`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from genkit.checkpoint.hub import one_attempt
from genkit.errors import DataError, OptionError
from genkit.files import is_file, is_folder
from genkit.run.config import is_run
from genkit_datasets import HFOptions
from genkit_datasets.crops import Crops
from genkit_datasets.library import library

# The address of a file on the hub, or of a file in an archive on the hub.
_HUB = re.compile(r"((zip|tar)://[^:]*::)?hf://[^:]+")
_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


class Row(NamedTuple):
    """A row of a split."""

    split: str
    number: int


class Columns(NamedTuple):
    """The names of the image, label and caption columns ("" if missing), and the class names."""

    image: str
    label: str
    caption: str
    classes: list[str]


class HF(Crops[Row]):
    """The images of one column, split by row, read on demand.

    Rows are in memory-mapped files that all processes share. A stream allows no random access, so
    its first rows are kept in memory.
    """

    def __init__(self, options: HFOptions, size: tuple[int, int] | None, seed: int) -> None:
        super().__init__(options, size)
        if not options.location:
            raise DataError("no data set was named: name one with --data hf:NAME_OR_PATH")
        self.parts = {
            name: _rows(options, name) for name in (options.split, options.heldout_split) if name
        }
        listed = "\n".join(
            f"{part}:{name}:{size}"
            for part, (rows, columns) in enumerate(self.parts.values())
            for name, size in _listing(rows, columns.image, _folder_of(options.location))
        )
        self.fingerprint = "hf:" + hashlib.sha256(listed.encode()).hexdigest()
        self.take(
            *(
                [Row(name, row) for row in range(len(rows))]
                for name, (rows, _) in self.parts.items()
            )
        )
        values = [
            value for rows, columns in self.parts.values() for value in _values(rows, columns.label)
        ]
        self.take_labels(values, self.parts[options.split][1].classes)

    def file_name(self, file: Row) -> str:
        """The split and the row, such as `train/000012`."""
        return f"{file.split}/{file.number:06d}"

    def key(self, file: Row) -> str:
        """The row's number."""
        return str(file.number)

    def caption_of(self, file: Row) -> str | None:
        """The row's value in the caption column, if any."""
        rows, columns = self.parts[file.split]
        text = rows[file.number].get(columns.caption) if columns.caption else None
        return text if isinstance(text, str) else None

    def encoded(self, file: Row) -> Path | IO[bytes]:
        """The bytes in the row, or the path of the local file that it names."""
        rows, columns = self.parts[file.split]
        cell = rows[file.number][columns.image]
        if not cell or (cell["bytes"] is None and not cell["path"]):
            raise ValueError("the row has no image")
        if cell["bytes"] is not None:
            return BytesIO(cell["bytes"])
        if member := _in_zip(cell["path"]):
            return BytesIO(_zip(member.archive).read(member.name))
        if "://" in cell["path"]:
            raise ValueError(f"the image is not stored locally but at {cell['path']}")
        return _folder_of(self.look.location) / str(cell["path"])


class Member(NamedTuple):
    """A file in a local zip file."""

    archive: str
    name: str


def _in_zip(path: str) -> Member | None:
    """The file in a local zip file that the library calls `zip://NAME::ARCHIVE`, else None."""
    name, _, archive = path.removeprefix("zip://").rpartition("::")
    return Member(archive, name) if path.startswith("zip://") and "://" not in archive else None


def _zip(archive: str) -> zipfile.ZipFile:
    # Each process opens its own file: forked processes would share the position of an open file.
    return _opened_zip(archive, Path(archive).stat().st_mtime_ns, os.getpid())


@functools.lru_cache(maxsize=8)
def _opened_zip(archive: str, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _folder_of(location: str) -> Path:
    """The folder that paths in a data set's rows are relative to."""
    return Path(location) if is_folder(location) else Path(location).parent


def _rows(options: HFOptions, split: str) -> tuple[Any, Columns]:
    """The rows of a split, and their columns."""
    read = _streamed if options.streaming else _mapped
    if not _on_hub(options):
        return read(options, split)
    # Import first: the library stores at its import whether the hub is turned off, and
    # `one_attempt` may turn it off.
    library("datasets")
    with one_attempt():
        return read(options, split)


def _values(rows: Any, column: str) -> list[Any]:
    """The values in a column; only None without a column."""
    if not column:
        return [None] * len(rows)
    if isinstance(rows, list):
        return [row[column] for row in rows]
    return list(rows.select_columns([column])[:][column])


def _mapped(options: HFOptions, split: str) -> tuple[Any, Columns]:
    """The rows of a split, and their columns."""
    data, columns = _opened(options, split)
    data = _without_runs(data, columns.image, options.location)
    return data.select(range(min(options.size or len(data), len(data)))), columns


def _without_runs(data: Any, column: str, location: str) -> Any:
    """The rows whose file is not in a run directory, whose images genkit wrote itself."""
    if not is_folder(location):
        return data

    @functools.cache
    def in_a_run(folder: Path) -> bool:
        return Path(location) in folder.parents and (is_run(folder) or in_a_run(folder.parent))

    kept = [
        row
        for row, (path, _) in enumerate(_cells(data, column))
        if not (path and in_a_run(Path(path).parent))
    ]
    return data if len(kept) == len(data) else data.select(kept)


def _streamed(options: HFOptions, split: str) -> tuple[list[dict[str, Any]], Columns]:
    """The first rows of a stream, and their columns."""
    data, columns = _opened(options, split)
    image = columns.image
    try:
        rows = [{**row, image: _fetched(row[image], options)} for row in islice(data, options.size)]
    except Exception as error:  # Formats, caches and networks fail in many ways.
        raise _failure(options, error) from error
    return rows, columns


def _fetched(cell: Any, options: HFOptions) -> Any:
    """A cell, with its bytes downloaded if they are a file on the hub.

    No other address is ever contacted.
    """
    place = (cell or {}).get("path") or ""
    if cell and cell["bytes"] is None and _on_hub(options) and _HUB.fullmatch(place):
        with importlib.import_module("fsspec").open(cell["path"], "rb") as file:
            return {**cell, "bytes": file.read()}
    return cell


def _opened(options: HFOptions, split: str) -> tuple[Any, Columns]:
    """A split with encoded images, and its columns.

    `OptionError` if an option names something that does not exist, `DataError` for other failures.
    """
    datasets = library("datasets")
    try:
        data = _loaded(datasets, options, split)
    except (DataError, OptionError):
        raise
    except Exception as error:  # Formats, caches and networks fail in many ways.
        missing = options.revision and isinstance(error, datasets.exceptions.DatasetNotFoundError)
        if missing or type(error) is ValueError:  # The split or subset does not exist.
            raise OptionError(f"'{options.location}': {_one_line(error)}") from error
        raise _failure(options, error) from error
    columns = _columns(datasets, options, data.features or {})
    data = data.select_columns(list(dict.fromkeys(name for name in columns[:3] if name)))
    return data.cast_column(columns.image, datasets.Image(decode=False)), columns


def _columns(datasets: Any, options: HFOptions, features: Mapping[str, Any]) -> Columns:
    """The columns named by options or recognized by their features."""
    classes = {
        name: list(kind.names)
        for name, kind in features.items()
        if isinstance(kind, datasets.ClassLabel)
    }
    label = options.label or (next(iter(classes)) if len(classes) == 1 else "")
    _check_column(options.location, features, label, "labels", ("string", "int", "uint", "bool"))
    _check_column(options.location, features, options.caption, "captions", ("string",))
    image = _image_column(datasets, options, features)
    return Columns(image, label, options.caption, classes.get(label, []))


def _check_column(
    location: str, features: Mapping[str, Any], name: str, what: str, kinds: tuple[str, ...]
) -> None:
    """`OptionError` if a named column is missing or has another type."""
    listed = ", ".join(map(str, features)) or "unknown"
    if name and name not in features:
        raise OptionError(f"'{location}' has no column '{name}'; its columns: {listed}")
    kind = features.get(name)
    if name and not str(getattr(kind, "dtype", "")).removeprefix("large_").startswith(kinds):
        raise OptionError(
            f"the column '{name}' of '{location}' holds {_what(kind)}, not {what}; "
            f"its columns: {listed}"
        )


def _image_column(datasets: Any, options: HFOptions, features: Mapping[str, Any]) -> str:
    """The image column: the one named, or the only one."""
    held = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    listed = ", ".join(map(str, features)) or "unknown"
    if options.column:
        kind = features.get(options.column)
        if kind is None:
            raise OptionError(
                f"'{options.location}' has no column '{options.column}'; its columns: {listed}"
            )
        if not _may_hold_images(datasets, kind, _on_hub(options)):
            raise OptionError(
                f"the column '{options.column}' of '{options.location}' holds {_what(kind)}, not "
                f"images: cast it to datasets.Image() or name another one; its columns: {listed}"
            )
        held = [options.column]
    if not held:
        raise OptionError(
            f"no column of '{options.location}' has the type Image; its columns: {listed}; "
            "name a column of bytes or paths with --data.column"
        )
    if len(held) > 1:
        raise OptionError(
            f"several columns of '{options.location}' hold images: "
            f"name one of {', '.join(held)} with --data.column"
        )
    return str(held[0])


def _loaded(datasets: Any, options: HFOptions, split: str) -> Any:
    place, path = options.location, Path(options.location)
    here = not _on_hub(options)
    if here and options.revision:
        raise OptionError(
            f"'{place}' is local and has no revisions: leave out revision '{options.revision}'"
        )
    how: dict[str, Any] = {"split": split, "streaming": options.streaming}
    if not here:
        named = {"name": options.subset or None, "revision": options.revision or None}
        return datasets.load_dataset(place, **named, **how)
    if place.startswith("//"):
        name = "/".join(place.removeprefix("//").removeprefix("datasets/").split("/")[:2])
        raise OptionError(f"a data set on the hub is named hf:OWNER/NAME: use --data hf:{name}")
    if not path.exists():
        raise DataError(f"the folder or file '{place}' does not exist")
    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if options.subset and (saved or path.is_file()):
        raise OptionError(f"'{place}' has no subsets: leave out subset '{options.subset}'")
    if saved:
        data = datasets.load_from_disk(place)
        # A data set saved without splits counts as the training split.
        splits = data if isinstance(data, dict) else {"train": data}
        if split not in splits:
            raise OptionError(f"'{place}' has no split '{split}'; it has {', '.join(splits)}")
        return splits[split]
    if path.is_dir():
        return datasets.load_dataset(os.path.abspath(place), options.subset or None, **how)
    if path.suffix not in _FORMATS:
        raise DataError(f"'{place}' is neither a folder nor a {' or '.join(_FORMATS)} file")
    return datasets.load_dataset(_FORMATS[path.suffix], data_files=os.path.abspath(place), **how)


def _on_hub(options: HFOptions) -> bool:
    # The same rule as in `genkit_settings_for`.
    return not (Path(options.location).is_absolute() or os.path.exists(options.location))


def _may_hold_images(datasets: Any, kind: Any, on_hub: bool) -> bool:
    """Whether a column can be read as images; paths count only in local data sets."""
    if isinstance(kind, dict):
        return "bytes" in kind
    bytes_or_paths = ("binary", "large_binary") + (() if on_hub else ("string", "large_string"))
    return isinstance(kind, datasets.Image) or getattr(kind, "dtype", "") in bytes_or_paths


def _what(kind: Any) -> str:
    """The type of the values in a column, in a word or two."""
    dtype = getattr(kind, "dtype", None)
    if dtype in ("string", "large_string"):
        return "text"
    return f"values of type {dtype}" if isinstance(dtype, str) else type(kind).__name__


def _listing(rows: Any, column: str, folder: Path) -> Iterator[tuple[str, int | None]]:
    """The name of each row's file ("" without one) and its size, without reading images."""
    found = _streamed_cells(rows, column) if isinstance(rows, list) else _cells(rows, column)
    for path, size in found:
        if size is None and path:
            size = _size(path, folder)
        yield os.path.basename(path or ""), size


def _size(path: str, folder: Path) -> int | None:
    if member := _in_zip(path):
        try:
            return _zip(member.archive).getinfo(member.name).file_size
        except (KeyError, OSError, zipfile.BadZipFile):
            return None
    return (folder / path).stat().st_size if is_file(folder / path) else None


def _cells(rows: Any, column: str) -> Iterator[tuple[str | None, int | None]]:
    compute = importlib.import_module("pyarrow.compute")
    for table in rows.with_format("arrow").iter(1000):
        sizes = compute.binary_length(compute.struct_field(table[column], "bytes"))
        paths = compute.struct_field(table[column], "path")
        yield from zip(paths.to_pylist(), sizes.to_pylist(), strict=True)


def _streamed_cells(
    rows: list[dict[str, Any]], column: str
) -> Iterator[tuple[str | None, int | None]]:
    for row in rows:
        cell = row[column] or {"path": None, "bytes": None}
        yield cell["path"], None if cell["bytes"] is None else len(cell["bytes"])


def _failure(options: HFOptions, error: Exception) -> DataError:
    text = _one_line(error)
    if "OfflineModeIsEnabled" in text:
        # `one_attempt` makes an unreachable hub look as if it were turned off.
        why = "it is turned off by HF_HUB_OFFLINE" if _turned_off() else "there is no connection"
        text = f"the hub cannot be reached: {why}"
    else:
        text = f"{type(error).__name__}: {text}"
    text = f"'{options.location}' cannot be read: {text}"
    if _on_hub(options):
        text += "; to read local images, use --data hf:./FOLDER"
    return DataError(text)


def _turned_off() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
