"""Run directories on disk and their config files; imports no torch."""

from __future__ import annotations

import codecs
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.errors import OptionError, TrainingError
from genkit.files import CONFIG, is_file
from genkit.run.options import TokenizerRun, TrainingOptions
from genkit.settings import settings_of, specs

# Files and folders of a run directory beside its config.
_OF_A_RUN = ("metrics.jsonl", "checkpoints", "model.safetensors")


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, dashes and underscores alike.

    `TrainingError` says where it is not TOML.
    """
    import tomllib  # Imported here, to keep start-up fast.

    try:
        if not is_file(path):  # Reading a pipe or a device may never end.
            raise TrainingError(f"there is no file '{path}': name a TOML file")
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise TrainingError(f"'{path}' is UTF-16 text: save it as UTF-8")
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        return _underscored(tomllib.loads(text))
    except OSError as error:
        raise TrainingError(f"'{path}' cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise TrainingError(f"'{path}' is nested too deeply") from error
    except (
        ValueError
    ) as error:  # From TOML, from other encodings than UTF-8, and from huge numbers.
        raise TrainingError(f"'{path}' is not a TOML file: {error}") from error


def changed_options(run: TrainingOptions, before: TrainingOptions) -> list[str]:
    """The options that a resumed run changes, in words.

    `OptionError` if one of them would make it another run.
    """
    old, new = (
        {each.key: each for each in specs(type(run), settings_of(one))} for one in (before, run)
    )
    was, now = ({key: each.value for key, each in tree.items()} for tree in (old, new))
    changed = [key for key in {**old, **new} if was.get(key) != now.get(key)]
    infos = {key: each.info for key, each in {**old, **new}.items()}
    if other := [key for key in changed if not (infos[key].local or infos[key].resumable)]:
        raise OptionError(
            f"{', '.join(f'--{key}' for key in other)} would make it another run: "
            "leave it out, or start a new run without --resume"
        )
    return [f"--{key} is {now.get(key)}, was {was.get(key)}" for key in changed]


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run directory: it holds a config and another file of a run."""
    return is_file(Path(directory, CONFIG)) and any(
        Path(directory, name).exists() for name in _OF_A_RUN
    )


def new_directory(name: str, root: Path = Path("runs")) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, … that is free."""
    number, path = 1, root / name
    while path.exists():
        number, path = number + 1, root / f"{name}-{number + 1}"
    return path


def newest_directory(root: Path = Path("runs"), kind: type[TrainingOptions] = TokenizerRun) -> Path:
    """The run of a kind below `root` with the latest change."""
    runs = [path.parent for path in root.glob(f"*/{CONFIG}") if _is_of(kind, path)]
    if not runs:
        raise TrainingError(f"there is no run in '{root}' to resume: name its directory with --out")
    return max(runs, key=lambda run: max(file.lstat().st_mtime for file in run.iterdir()))


def names_of(kind: type[TrainingOptions]) -> set[str]:
    """The names of the options of a kind of run."""
    return {field.name for field in dataclasses.fields(kind)}


def _is_of(kind: type[TrainingOptions], config: Path) -> bool:
    """Whether a config has the options of a kind of run and no others."""
    try:
        return set(read_config(config)) <= names_of(kind)
    except TrainingError:  # Resuming that run would say the same.
        return True


def _underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): _value(value) for key, value in settings.items()}


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _underscored(value)
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer exceeds the 64 bits of TOML")
    return value
