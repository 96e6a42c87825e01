"""Why a checkpoint does not load, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genkit.errors import MissingComponent
from genkit.options import NONE
from genkit.registry import registry

_WANTED = "name a run directory, or a .safetensors file that genkit wrote"


def no_checkpoint(path: Path) -> str:
    """What a file is that is no whole safetensors file, told by how it begins."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        return f"'{path}' is empty, so it was cut short: copy or save it again"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return (
            f"'{path}' is no safetensors file but a pickle or an archive, which genkit never "
            f"loads, for it may run anything: {_WANTED}"
        )
    if start.startswith(b"version https://git-lfs"):
        return f"'{path}' is no safetensors file but Git's pointer to one: run `git lfs pull`"
    if start.isascii() and start.decode().replace("\n", " ").replace("\r", " ").isprintable():
        return f"'{path}' is no safetensors file but a text: {_WANTED}"
    return f"'{path}' is no safetensors file, or was cut short: {_WANTED}, or copy it again"


def missing(path: Path, kind: str, name: str, distribution: str, error: MissingComponent) -> str:
    """That a file needs a component, and what is the matter with the plugin that it came from."""
    source = distribution or "an unknown distribution"
    broken = any(
        plugin.error and plugin.distribution == distribution.partition(" ")[0]
        for plugin in registry().plugins
    )
    advice = (
        "which is installed but broken (`genkit plugins --traceback` shows where)"
        if broken
        else "which is not among the plugins here: install it"
    )
    return f"'{path}' needs the {kind} '{name}', saved with {source!r}, {advice}.\n{error}"


def versions(info: Mapping[str, Any]) -> str:
    """Which distributions a file was saved with in other versions than are here, or all of them."""
    others = sorted(set(_others(info["components"])))
    if others:
        return "\n".join(f"It was saved with {saved}; here is {here}." for saved, here in others)
    known = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return f"It was saved with {known or 'an unknown version'}."


def _others(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in parts.values():
        if not isinstance(part, Mapping):
            continue
        saved, name = str(part.get("distribution", "")), part["name"]
        if name != NONE and name in registry().names(part["kind"]):
            owner = registry().owner(part["kind"], name)
            here = f"{owner.distribution} {owner.version}".strip()
            if saved != here:
                yield saved or "an unknown distribution", here
        yield from _others(part["options"])
