"""Reading the TOML file of a run's options."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genkit.errors import TrainingError
from genkit.files import is_file

_log = logging.getLogger(__name__)


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
        _log.debug("read options from '%s'", path)
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
