"""Libraries that are installed by an extra."""

from __future__ import annotations

import importlib
from typing import Any

from genkit.errors import DataError


def library(name: str) -> Any:
    """The module `name`, which the extra of the same name installs; `DataError` without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"reading these images needs the library '{name}', which cannot be imported ({error}): "
            f"pip install 'genkit-vq[{name}]'"
        ) from error
