"""The files of another project's model: weights, and a configuration beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from genkit.checkpoint.hub import fetch_beside, fetch_folder, is_address
from genkit.errors import CheckpointError
from genkit.files import expanded, is_file, is_folder, sha256
from genkit.foreign.config import facts_of_yaml
from genkit.foreign.read import read_checkpoint

_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".jit", ".pkl", ".zip")
_CONFIGS = (".json", ".yaml", ".yml")
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Source:
    """Tensors by the names that they have in their files, and what else is known of them."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    format: str
    sha256: str
    name: str


def open_source(source: str | os.PathLike[str], config: str | os.PathLike[str] | None) -> Source:
    """The tensors of a file, of a folder with one model, or of `hf://owner/name`.

    A folder on the hub is `hf://owner/name/folder`. `config` names the configuration, which is
    otherwise looked for beside the weights. `GenkitError` says what is wrong.
    """
    if is_address(source):
        place = fetch_folder(str(source), (*_WEIGHTS, *_CONFIGS))
        name = str(source)
    else:
        place = expanded(source)
        name = place.name
    file = _weights(place) if is_folder(place) else place
    if not is_file(file):
        raise CheckpointError(
            f"'{source}' does not exist: name a file with weights, a folder with one, or "
            "hf://owner/name"
        )
    facts = facts_of_yaml(config) if config is not None else _config(file)
    if file.name.endswith(_INDEX):
        # Only the shards of a large model that hold its tokenizer are downloaded.
        fetched = partial(fetch_beside, name) if is_address(source) else None
        shards = _Shards.of(file, fetched)
        return Source(shards, facts, "safetensors in shards", sha256(file), name)
    if file.suffix == ".safetensors":
        return Source(_Shards.one(file), facts, "safetensors", sha256(file), name)
    found = read_checkpoint(file)
    return Source(found.tensors, facts or found.facts, found.format, found.sha256, name)


def _weights(folder: Path) -> Path:
    """The one file with weights in a folder, or the index of several."""
    files = sorted(file for file in folder.iterdir() if is_file(file))
    indices = [file for file in files if file.name.endswith(_INDEX)]
    if len(indices) == 1:
        return indices[0]
    found = [file for file in files if file.suffix in _WEIGHTS]
    # Many models come in both forms: data that nothing has to run is read rather than a pickle.
    safe = [file for file in found if file.suffix == ".safetensors"]
    for choice in (safe, found):
        if len(choice) == 1:
            return choice[0]
    what = f"several: {', '.join(file.name for file in found)}; name one" if found else "none"
    raise CheckpointError(f"'{folder}' should hold one file with weights, but it holds {what}")


def _config(file: Path) -> dict[str, Any]:
    """The configuration beside a file with weights: of its name, or the only one."""
    stem = file.name.partition(".")[0]
    beside = [
        each
        for each in sorted(file.parent.iterdir())
        if each.suffix in _CONFIGS and not each.name.endswith(".index.json") and is_file(each)
    ]
    for named in (stem, "config", "model"):
        for each in beside:
            if each.stem == named:
                return facts_of_yaml(each)
    return facts_of_yaml(beside[0]) if len(beside) == 1 else {}


class _Shards(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read when it is asked for.

    `fetch` downloads a missing file.
    """

    def __init__(
        self, files: Mapping[str, Path], fetch: Callable[[str], Path] | None = None
    ) -> None:
        self.files, self.fetch = files, fetch

    @classmethod
    def one(cls, file: Path) -> _Shards:
        """The tensors of one file."""
        with _opened(file) as opened:
            return cls(dict.fromkeys(opened.keys(), file))

    @classmethod
    def of(cls, index: Path, fetch: Callable[[str], Path] | None) -> _Shards:
        """The tensors of the files that an index names."""
        try:
            table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): index.parent / Path(file).name for name, file in table.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CheckpointError(f"'{index}' is not an index of safetensors files") from None
        return cls(files, fetch)

    def __getitem__(self, name: str) -> Tensor:
        file = self.files[name]
        if self.fetch and not is_file(file):
            file = self.fetch(file.name)
        with _opened(file) as opened:
            try:
                return opened.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"'{file}' is damaged: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _opened(file: Path) -> Any:
    if not is_file(file):
        raise CheckpointError(f"'{file}' does not exist, though the index beside it names it")
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{file}' is damaged: {error}") from None
