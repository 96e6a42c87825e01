"""Libraries that are installed by an extra."""

from __future__ import annotations

import importlib
from typing import Any

from genkit.errors import DataError
from genkit.plugin.installing import to_install


def library(name: str) -> Any:
    """The module `name`, which the extra of the same name installs; `DataError` without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"reading these images needs the library '{name}', which cannot be imported ({error}): "
            f"{to_install(f'genkit-vq[{name}]')}"
        ) from error
