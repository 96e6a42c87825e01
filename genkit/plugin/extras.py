"""The requirements in the metadata of installed distributions, and which of them are missing."""

from __future__ import annotations

import contextlib
import functools
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def missing(requirement: str) -> list[str]:
    """The distributions that the extras of a requirement such as `genkit-vq[zoo]` lack here."""
    try:
        wanted = Requirement(requirement)
        needed = _needs(wanted.name)
    except InvalidRequirement:
        return []
    except metadata.PackageNotFoundError:
        return [wanted.name]
    return [
        each.name
        for each in needed
        if not _applies(each, "")
        and any(_applies(each, extra) for extra in wanted.extras)
        and not _is_installed(each.name)
    ]


def extra_with(distribution: str, package: str) -> str | None:
    """The extra of a distribution that installs the distribution named like a package.

    It is "" where no extra is needed, None if no requirement has that name.
    """
    try:
        needed = _needs(distribution)
        extras = metadata.metadata(distribution).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return None
    return next(
        (
            extra
            for each in needed
            if canonicalize_name(each.name) == canonicalize_name(package)
            for extra in ["", *extras]
            if _applies(each, extra)
        ),
        None,
    )


def versions(distribution: str) -> dict[str, str]:
    """The versions of those requirements of a distribution that are installed."""
    found: dict[str, str] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        names = {each.name for each in _needs(distribution)}
        found = {name: metadata.version(name) for name in sorted(names) if _is_installed(name)}
    return found


def _needs(distribution: str) -> list[Requirement]:
    parsed = map(_parsed, metadata.requires(distribution) or [])
    return [each for each in parsed if each is not None]


@functools.cache
def _parsed(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement:  # Old packages have requirements in forms of their own.
        return None


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether this machine needs it for an extra, or without one if that is ""."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
