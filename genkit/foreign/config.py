"""The settings that lie beside checkpoints, as YAML or JSON."""

from __future__ import annotations

import json
import os
from typing import Any

import yaml

from genkit.errors import CheckpointError
from genkit.files import expanded, is_file
from genkit.foreign.walk import Walk

# Bytes of a file. Longer ones list data, and YAML is read slowly.
_LARGEST = 2**18
_DEPTH, _ALIASES, _PAIRS = 64, 100, 10_000


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with a bound on mappings that merge others."""

    def flatten_mapping(self, node: Any) -> None:
        """Merge mappings; PyYAML before 6.0.4 doubles their pairs with every merge of merges."""
        super().flatten_mapping(node)
        if len(node.value) > _PAIRS:
            raise CheckpointError("it merges too many mappings; write them out")


def facts_of_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain values of a YAML or JSON file; `CheckpointError` says why it is refused."""
    place = expanded(path)
    if not is_file(place):
        raise CheckpointError(f"there is no file '{path}': name a YAML or JSON file")
    try:
        with place.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise CheckpointError(f"it is longer than {_LARGEST} bytes; name the model's settings")
        return _facts(content.decode())
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    except (RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read: it is neither YAML nor JSON; correct it or name another"
        ) from error


def _facts(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = _yaml(text)
    if not isinstance(value, dict):
        raise CheckpointError("it holds no mapping at its top; name the model's settings")
    return Walk(0).root(value, None, len(text))


def _yaml(text: str) -> Any:
    try:
        depth = aliases = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > _DEPTH or aliases > _ALIASES:
                raise CheckpointError("it is nested too deeply or repeats too much; write it out")
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise CheckpointError(
            f"it is neither YAML nor JSON, or names Python objects{where}; correct it"
        ) from error
