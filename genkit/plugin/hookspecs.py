"""The hooks that a plugin may implement, each returning plain descriptions."""

from __future__ import annotations

from typing import Any

import pluggy

from genkit.plugin.component import Component, Preset

hookspec = pluggy.HookspecMarker("genkit")
hookimpl = pluggy.HookimplMarker("genkit")


@hookspec
def genkit_components() -> list[Component]:  # type: ignore[empty-body]
    """Return the components that this plugin brings."""


@hookspec
def genkit_presets() -> list[Preset]:  # type: ignore[empty-body]
    """Return the named configurations that this plugin brings."""


@hookspec(firstresult=True)
def genkit_settings_for(kind: str, name: str) -> dict[str, Any] | None:
    """Return the settings that `name`, which no component of the kind has, stands for, or None.

    They are a component's `name` and options. A data set's locations are such names.
    """


@hookspec
def genkit_names_for(kind: str) -> list[str]:  # type: ignore[empty-body]
    """Return the names of a kind that `genkit_settings_for` resolves, as far as they can be listed.

    The error of an unknown name suggests the nearest ones. It is the only caller, so listing them
    may take long.
    """
