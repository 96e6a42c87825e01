"""Run directories on disk and their config files; imports no torch."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from genkit.devices import several_machines
from genkit.errors import OptionError, TrainingError
from genkit.files import CONFIG, MODEL, is_file
from genkit.run.options import TokenizerRun, TrainingOptions
from genkit.run.toml import read_config
from genkit.settings import settings_of, specs

# Files and folders of a run directory beside its config.
_OF_A_RUN = ("metrics.jsonl", "checkpoints", "model.safetensors")


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
    other = [key for key in changed if not (infos[key].local or infos[key].resumable)]
    # With another component come its options, which nobody typed.
    parts = tuple(f"{key}." for key in other if infos[key].kind)
    if other := [key for key in other if not key.startswith(parts)]:
        raise OptionError(
            f"{', '.join(f'--{key}' for key in other)} would make it another run: "
            "leave it out, or start a new run without --resume"
        )
    return [f"--{key} is {now.get(key)}, was {was.get(key)}" for key in changed]


def check_free(directory: Path) -> None:
    """`TrainingError` if there is a run in a directory."""
    held = (directory / MODEL).exists() or any((directory / "checkpoints").glob("step-*"))
    if held and (directory / CONFIG).exists():
        raise TrainingError(
            f"'{directory}' holds a run already: "
            "add --resume to continue it, or choose another --out"
        )


def no_run(directory: Path) -> TrainingError:
    """The error of a directory without a run to resume."""
    where = "; every machine needs the run directory to resume: share it or copy it"
    return TrainingError(
        f"'{directory}' is not a run directory that can be resumed: it has no {CONFIG}"
        + where * several_machines()
    )


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
    return max(runs, key=newest_change)


def newest_change(directory: Path) -> float:
    """When training last wrote to a run directory, in seconds since 1970.

    Reports and locks do not count.
    """
    files = (directory / name for name in (CONFIG, *_OF_A_RUN))
    return max(file.lstat().st_mtime for file in files if file.exists())


def names_of(kind: type[TrainingOptions]) -> set[str]:
    """The names of the options of a kind of run."""
    return {field.name for field in dataclasses.fields(kind)}


def _is_of(kind: type[TrainingOptions], config: Path) -> bool:
    """Whether a config has the options of a kind of run and no others."""
    try:
        return set(read_config(config)) <= names_of(kind)
    except TrainingError:  # Resuming that run would say the same.
        return True
