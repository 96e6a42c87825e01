"""The registry: finds plugins through entry points and looks components up.

It keeps a broken plugin from breaking the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from genkit.errors import MissingComponent, OptionError, PluginError
from genkit.plugin import hookspecs
from genkit.plugin.component import REGISTERED, Component, Origin, Preset
from genkit.plugin.installing import to_install
from genkit.plugin.names import nearest
from genkit.plugin.options import check_config

_log = logging.getLogger(__name__)
GROUP = "genkit.plugins"
DISTRIBUTION = "genkit-vq"
# Packages that are slow to import, or that most slow packages import in turn.
HEAVY = ("cv2", "jax", "matplotlib", "pandas", "scipy", "sklearn", "tensorflow", "torch")


@dataclass
class Plugin:
    """One plugin: its origin, its components, and how loading it went.

    A plugin with an `error` is left out. `heavy` lists the packages of `HEAVY` that loading it
    imported first; a later plugin that imports them too is not blamed.
    """

    name: str
    origin: Origin
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""
    heavy: list[str] = field(default_factory=list)
    components: list[Component] = field(default_factory=list)
    presets: list[Preset] = field(default_factory=list)

    @property
    def distribution(self) -> str:
        """The name of the distribution that the plugin comes from."""
        return self.origin.distribution


class Registry:
    """Every usable component, by kind and name.

    Plugins come in a fixed order, our own distribution's first. A plugin that fails to import,
    breaks the contract or takes a name that is taken is left out whole, with a warning of one
    line.
    """

    def __init__(self, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        self.plugins: list[Plugin] = []
        self._manager = pluggy.PluginManager("genkit")
        self._manager.add_hookspecs(hookspecs)
        self._components: dict[tuple[str, str], Component] = {}
        self._presets: dict[str, Preset] = {}
        found = set(metadata.entry_points(group=GROUP) if entry_points is None else entry_points)
        _tell_unknown({each.name for each in found})
        origins = {dist: _origin(dist) for dist in {each.dist for each in found}}
        allowed = _allowed()
        plugins = [
            (Plugin(each.name, origins[each.dist]), each)
            for each in found
            if allowed is None or each.name in allowed
        ]
        for plugin, entry_point in sorted(plugins, key=lambda pair: _load_order(pair[0])):
            self._load(plugin, entry_point)

    def _load(self, plugin: Plugin, entry_point: metadata.EntryPoint) -> None:
        self.plugins.append(plugin)
        before = set(sys.modules)
        start = time.perf_counter()
        try:
            self.add(plugin, entry_point.load())
        # A broken module must not stop the other plugins.
        except (Exception, SystemExit) as error:
            plugin.error = (
                f"{type(error).__name__}: {error}"
                if not isinstance(error, PluginError)
                else str(error)
            )
            if isinstance(error, ModuleNotFoundError) and error.name:
                plugin.error += _advice(plugin.distribution, error.name)
            plugin.traceback = traceback.format_exc()
            _log.warning(
                "plugin '%s' of %s is left out: %s",
                plugin.name,
                plugin.distribution,
                _one_line(plugin.error),
            )
        plugin.seconds = time.perf_counter() - start
        _log.debug(
            "loaded plugin '%s' of %s in %.0f ms", plugin.name, plugin.origin, plugin.seconds * 1e3
        )
        plugin.heavy = [name for name in HEAVY if name in sys.modules and name not in before]

    def add(self, plugin: Plugin, module: Any) -> None:
        """Register a plugin's module or object.

        If anything is wrong with it, nothing of it stays and the error is raised.
        """
        for twin in self.plugins:
            if twin is not plugin and twin.name == plugin.name and not twin.error:
                raise PluginError(
                    f"{twin.distribution} has a plugin named '{plugin.name}' too: "
                    "give the entry point another name"
                )
        self._check_marked(module)
        self._manager.register(module, name=plugin.name)
        try:
            self._manager.check_pending()
            components = [
                dataclasses.replace(each, origin=plugin.origin)
                for each in _results(self._manager, "genkit_components", module, Component)
            ]
            for component in components:
                check_config(component.config)
            presets = _results(self._manager, "genkit_presets", module, Preset)
            new = {(component.kind, component.name): component for component in components}
            if len(new) < len(components):
                raise PluginError("it names one component twice")
            for key in new:
                if key in self._components:
                    owner = next(
                        one for one in self.plugins if self._components[key] in one.components
                    )
                    raise PluginError(
                        f"the name {key[0]} '{key[1]}' is taken by "
                        f"plugin '{owner.name}' of {owner.distribution}"
                    )
            for preset in presets:
                if preset.name in self._presets:
                    raise PluginError(f"the preset name '{preset.name}' is taken")
        except BaseException:
            self._manager.unregister(module)
            raise
        plugin.components, plugin.presets = components, presets
        self._components.update(new)
        self._presets.update({preset.name: preset for preset in presets})

    def register(self, component: Component) -> None:
        """Add a component for this process, in place of one registered before under its name.

        `PluginError` if its options cannot be used, or a plugin has a component of that name.
        """
        check_config(component.config)
        key = component.kind, component.name
        known = self._components.get(key)
        if known is not None and known.origin.distribution != REGISTERED:
            raise PluginError(
                f"{known.origin} has a {component} already: register yours under another name"
            )
        self._components[key] = dataclasses.replace(component, origin=Origin(REGISTERED))

    def _check_marked(self, module: Any) -> None:
        """`PluginError` for a function with the name of a hook or its mark, but not both."""
        hooks = [name for name in vars(hookspecs) if name.startswith("genkit_")]
        for name, value in vars(module).items() if isinstance(module, ModuleType) else ():
            own = isinstance(value, FunctionType) and value.__module__ == module.__name__
            marked = hasattr(value, "genkit_impl")
            if own and marked and name not in hooks:
                raise PluginError(
                    f"there is no hook {name}.{nearest(name, hooks)} Hooks: {', '.join(hooks)}"
                )
            if own and name.startswith("genkit_") and not marked:
                raise PluginError(
                    f"its function {name} is never called: write @genkit.hookimpl above it"
                )

    def kinds(self) -> list[str]:
        """The kinds that have at least one component, sorted."""
        return sorted({kind for kind, _ in self._components})

    def names(self, kind: str) -> list[str]:
        """The names of a kind's components, sorted."""
        return sorted(name for k, name in self._components if k == kind)

    def component(self, kind: str, name: str) -> Component:
        """The component of that kind and name.

        `MissingComponent` names the nearest and the installed ones.
        """
        if (kind, name) in self._components:
            return self._components[kind, name]
        lists = self._asked("genkit_names_for", f"the kind {kind}", kind=kind)
        further = [each for names in lists for each in names]
        raise MissingComponent(self._explain(f"{kind} '{name}'", name, self.names(kind), further))

    def presets(self, command: str = "train") -> list[str]:
        """The names of a command's presets, sorted."""
        return sorted(name for name, each in self._presets.items() if each.command == command)

    def preset(self, name: str, command: str = "train") -> Preset:
        """The preset of that name for a command; `OptionError` names the nearest ones."""
        known = self.presets(command)
        if name in known:
            return self._presets[name]
        if name in self._presets:
            other = self._presets[name].command
            raise OptionError(f"the preset '{name}' is for genkit {other}, not genkit {command}")
        raise OptionError(self._explain(f"preset '{name}'", name, known))

    def settings_for(self, kind: str, name: str) -> dict[str, Any] | None:
        """The settings of the component of a kind that `name` stands for, or None."""
        table = self._asked("genkit_settings_for", f"the {kind} '{name}'", kind=kind, name=name)
        if table is not None and not (
            isinstance(table, dict) and isinstance(table.get("name"), str)
        ):
            raise PluginError(
                f"a plugin's genkit_settings_for must return settings with a name, not {table!r}"
            )
        return table

    def _asked(self, hook: str, subject: str, **about: str) -> Any:
        """The answer of a hook on a subject."""
        try:
            return getattr(self._manager.hook, hook)(**about)
        except Exception as error:  # A third party's hook may raise anything.
            raise PluginError(f"a plugin's {hook} failed on {subject}: {error}") from error

    def _explain(
        self, wanted: str, name: str, installed: list[str], further: Iterable[str] = ()
    ) -> str:
        lines = [
            f"There is no {wanted}.{nearest(name, [*installed, *further])} "
            f"Installed: {', '.join(installed) or 'none'}."
        ]
        if others := [kind for kind, known in sorted(self._components) if known == name]:
            lines.append(f"There is a component '{name}', of the kind {' and '.join(others)}.")
        if os.environ.get("GENKIT_PLUGINS") is not None:
            lines.append(
                f"GENKIT_PLUGINS allows only: {os.environ['GENKIT_PLUGINS'] or 'nothing'}."
            )
        lines += [
            f"Plugin '{plugin.name}' of {plugin.distribution} is left out: "
            f"{_one_line(plugin.error)}"
            for plugin in self.plugins
            if plugin.error
        ]
        return "\n".join(lines)


def register(component: Component) -> None:
    """Make a component known to this process alone, as from a script or a notebook.

    Models with it are saved as always. To load them in another process, register the component
    first, or install a plugin that has it.
    """
    registry().register(component)


@functools.cache
def registry() -> Registry:
    """The registry of this process, filled from the installed entry points on first use."""
    return Registry()


def _allowed() -> set[str] | None:
    value = os.environ.get("GENKIT_PLUGINS")
    return None if value is None else {name.strip() for name in value.split(",")}


def _tell_unknown(names: set[str]) -> None:
    """Warn of names in GENKIT_PLUGINS that belong to no plugin."""
    for name in sorted((_allowed() or set()) - names - {""}):
        _log.warning(
            "GENKIT_PLUGINS names '%s', but no such plugin is installed.%s Installed: %s.",
            name,
            nearest(name, names),
            ", ".join(sorted(names)) or "none",
        )


def _origin(dist: metadata.Distribution | None) -> Origin:
    """A distribution's name and version, from metadata that is parsed once."""
    if dist is None:
        return Origin()
    facts = dist.metadata
    return Origin(facts["Name"], facts["Version"])


def _load_order(plugin: Plugin) -> tuple[bool, str, str]:
    return plugin.distribution != DISTRIBUTION, plugin.distribution, plugin.name


def _results(manager: pluggy.PluginManager, hook: str, module: Any, wanted: type) -> list[Any]:
    """The list of `wanted` that one plugin's hook returns, checked."""
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    values = manager.subset_hook_caller(hook, remove_plugins=others)()
    for value in values:
        if not isinstance(value, list) or not all(isinstance(item, wanted) for item in value):
            raise PluginError(
                f"its hook {hook} must return a list of genkit.{wanted.__name__}, not {value!r}"
            )
    return [item for value in values for item in value]


def _advice(distribution: str, module: str) -> str:
    """How to install a missing package, if the distribution's metadata names it."""
    from genkit.plugin.extras import (
        extra_with,
    )  # Imported after a failure alone, to keep start-up fast.

    extra = extra_with(distribution, module.partition(".")[0])
    if extra is None:
        return ""
    return f": {to_install(f'{distribution}[{extra}]' if extra else distribution)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
