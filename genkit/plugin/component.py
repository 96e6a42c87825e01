"""Components and presets as a plugin describes them, without importing torch."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from genkit.errors import PluginError
from genkit.plugin.installing import to_install


@dataclass(frozen=True)
class NoOptions:
    """The options of a component that has none."""


# The distribution of components that a script or a notebook registers.
REGISTERED = "registered from Python"


class Origin(NamedTuple):
    """The distribution that a component comes from, and its version."""

    distribution: str = "unknown"
    version: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class Component:
    """One component of a plugin, described cheaply; its class is imported when it is first built.

    `kind` and `name` are what a user types (`--quantizer fsq`). `target` is
    `"package.module:Class"`, or for `genkit.register` the class itself. `config` is a frozen
    dataclass of `genkit.option` fields, the first argument that the class is built with.
    `requires` is the requirement that brings the libraries of the class: `"genkit-vq[zoo]"`. The
    registry fills in `origin`.
    """

    kind: str
    name: str
    target: str | Callable[..., Any]
    config: type = NoOptions
    help: str = ""
    requires: str = ""
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        texts = {"kind": self.kind, "name": self.name}
        if not callable(self.target):
            texts["target"] = self.target
        for text, value in texts.items():
            if not isinstance(value, str) or not value or value != value.strip():
                raise PluginError(f"a component's {text} must be a non-empty string, not {value!r}")
        if isinstance(self.target, str) and self.target.count(":") != 1:
            raise PluginError(
                f"the target of {self} must read 'package.module:Class', not {self.target!r}"
            )
        if not (isinstance(self.config, type) and dataclasses.is_dataclass(self.config)):
            raise PluginError(f"the config of {self} must be a dataclass, not {self.config!r}")

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'"

    @property
    def package(self) -> str:
        """The top-level package that the class lies in."""
        module = self.target if isinstance(self.target, str) else self.target.__module__
        return module.partition(":")[0].partition(".")[0]

    def load(self) -> Any:
        """Import and return the class that `target` names; `PluginError` if that fails."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if f"{module}.".startswith(f"{error.name}."):
                raise PluginError(
                    f"{self} cannot be loaded from {self.target}: there is no module "
                    f"'{error.name}'; its plugin names it wrongly, or was built without it"
                ) from error
            install = f": {to_install(self.requires)}" if self.requires else ""
            raise PluginError(
                f"{self} needs the package '{error.name}', which is not installed{install}"
            ) from error
        # A third party's module may fail in any way; one message reports it.
        except Exception as error:
            raise PluginError(f"{self} cannot be loaded from {self.target}: {error}") from error


@dataclass(frozen=True)
class Preset:
    """A named configuration: settings with the keys of a `--config` file.

    They are applied below that file and the flags, by the command that they are for.
    """

    name: str
    settings: Mapping[str, Any] = field(hash=False)
    help: str = ""
    command: str = "train"
