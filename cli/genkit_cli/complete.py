"""Shell completion of the values of options and arguments.

Nothing here imports torch, and nothing fails: what is typed so far may be wrong.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping

import click
from click.shell_completion import CompletionItem

from genkit.plugin.options import NONE
from genkit.plugin.registry import registry
from genkit.settings import Spec

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offered(known: Mapping[str, str], incomplete: str) -> list[CompletionItem]:
    """The names that begin with the typed text, each with its description."""
    return [
        CompletionItem(name, help=text)
        for name, text in known.items()
        if name.startswith(incomplete)
    ]


def listed(known: Mapping[str, str], incomplete: str) -> list[CompletionItem]:
    """The same for the last of several values with commas between them."""
    before, comma, _ = incomplete.rpartition(",")
    return offered({f"{before}{comma}{name}": text for name, text in known.items()}, incomplete)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shell's own list of files and folders."""
    return [CompletionItem(incomplete, type="file")]


def components(kind: str) -> dict[str, str]:
    """The names of a kind's components, each with its help text."""
    return {name: registry().component(kind, name).help for name in registry().names(kind)}


def of_kind(kind: str, or_files: bool = False) -> Complete:
    """The components of a kind, or files where none of them begins so."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = offered(components(kind), incomplete)
        return found or (files(ctx, param, incomplete) if or_files else [])

    return complete


def of_option(spec: Spec, incomplete: str) -> list[CompletionItem]:
    """The values of an option of a component or a run."""
    if spec.info.kind:
        known = components(spec.info.kind) | ({NONE: ""} if spec.info.optional else {})
        found = offered(known, incomplete)
        # A data set may also be given by its location.
        location = spec.info.kind == "dataset" and not found
        return [CompletionItem(incomplete, type="file")] if location else found
    if spec.choices:
        return offered(dict.fromkeys(spec.choices, ""), incomplete)
    items = typing.get_args(spec.type)
    if items and typing.get_origin(items[0]) is typing.Literal:
        return listed(dict.fromkeys(typing.get_args(items[0]), ""), incomplete)
    local = spec.type is str and spec.info.local
    return [CompletionItem(incomplete, type="file")] if local else []
