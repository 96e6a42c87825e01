"""What installed distributions say that they need, and whether it is there.

Only names and extras are looked at, not versions, nor on which machines something is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def missing(requirement: str) -> list[str]:
    """The distributions that a requirement such as `genkit-vq[zoo]` lacks here."""
    match = _NAME.match(requirement)
    if match is None:
        return []
    name, extras = match[1], {_plain(each) for each in (match[2] or "").split(",")}
    try:
        needed = list(_needs(name))
    except metadata.PackageNotFoundError:
        return [name]
    return [each for each, extra in needed if extra and extra in extras and not _installed(each)]


def extra_with(distribution: str, package: str) -> str | None:
    """The extra of a distribution that brings the distribution called like a package.

    It is "" where no extra is needed, None if no requirement is called so.
    """
    try:
        needed = list(_needs(distribution))
    except metadata.PackageNotFoundError:
        return None
    return next((extra for name, extra in needed if _plain(name) == _plain(package)), None)


def _needs(distribution: str) -> Iterator[tuple[str, str]]:
    """The names of the distributions that one needs, each with its extra or ""."""
    for line in metadata.requires(distribution) or []:
        if match := _NAME.match(line):
            extra = _EXTRA.search(line)
            yield match[1], _plain(extra[1]) if extra else ""


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _plain(name: str) -> str:
    """A name as names are compared: `Ruamel.YAML` and `ruamel-yaml` are one."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
