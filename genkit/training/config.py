"""Where runs lie and what their config says; imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.errors import TrainingError

CONFIG = "config.toml"


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, dashes and underscores alike.

    `TrainingError` says where it is not TOML.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"'{path}' cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"'{path}' is no TOML file: {error}") from error
    return _underscored(settings)


def new_directory(name: str, root: Path = Path("runs")) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, … that is free."""
    number, path = 1, root / name
    while path.exists():
        number, path = number + 1, root / f"{name}-{number + 1}"
    return path


def newest_directory(root: Path = Path("runs")) -> Path:
    """The run below `root` that was written to last."""
    runs = [path.parent for path in root.glob(f"*/{CONFIG}")]
    if not runs:
        raise TrainingError(f"there is no run in '{root}' to resume: name its directory with --out")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in run.iterdir()))


def _underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
    }
