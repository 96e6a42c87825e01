"""Libraries that an extra brings."""

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
            f"these images are read by the library '{name}', which is not there ({error}): "
            f"pip install 'genkit-vq[{name}]'"
        ) from error
