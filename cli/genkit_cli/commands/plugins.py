"""`genkit plugins`."""

from __future__ import annotations

import json
from typing import Any

import click

from genkit.plugin.registry import Plugin, registry
from genkit_cli.table import print_table


@click.command()
@click.option(
    "--traceback", is_flag=True, help="Print the tracebacks of plugins that were left out."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def command(traceback: bool, as_json: bool) -> None:
    """List installed plugins, their components and presets, and why any was left out."""
    plugins = registry().plugins
    if as_json:
        click.echo(json.dumps([_facts(plugin) for plugin in plugins], indent=2))
        return
    for plugin in plugins:
        how = "left out" if plugin.error else f"loaded in {plugin.seconds * 1000:.0f} ms"
        click.echo(f"{plugin.name}: {plugin.origin}, {how}")
        presets = ", ".join(preset.name for preset in plugin.presets)
        rows = [(kind, ", ".join(names)) for kind, names in _brought(plugin).items()]
        rows += [("presets", presets)] if presets else []
        rows += [("error", " ".join(plugin.error.split()))] if plugin.error else []
        rows += [("warning", _warning(plugin))] if plugin.heavy else []
        print_table(rows or [("nothing", "it has no components and no presets")], indent="  ")
        click.echo()
        if traceback and plugin.traceback:
            click.echo(plugin.traceback)


def _brought(plugin: Plugin) -> dict[str, list[str]]:
    """The names of a plugin's components, by kind."""
    kinds: dict[str, list[str]] = {}
    for component in plugin.components:
        kinds.setdefault(component.kind, []).append(component.name)
    return kinds


def _warning(plugin: Plugin) -> str:
    return (
        f"loading it imports {', '.join(plugin.heavy)}, which delays every command: "
        "import that in the module that a component's target names instead"
    )


def _facts(plugin: Plugin) -> dict[str, Any]:
    return {
        "plugin": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.origin.version,
        "seconds": plugin.seconds,
        "components": _brought(plugin),
        "presets": [preset.name for preset in plugin.presets],
        "imports": plugin.heavy,
        "error": plugin.error or None,
    }
