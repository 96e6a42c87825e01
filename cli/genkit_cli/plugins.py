"""`genkit plugins`."""

from __future__ import annotations

import click

from genkit.registry import registry


@click.command()
@click.option("--traceback", is_flag=True, help="Show where a plugin that is left out went wrong.")
def command(traceback: bool) -> None:
    """List the plugins that are installed, what they bring, and what is wrong with those left
    out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("plugin", "distribution", "components and presets", "ms", box=box.SIMPLE_HEAD)
    for plugin in registry().plugins:
        brought = [f"{component.kind} {component.name}" for component in plugin.components]
        brought += [f"preset {preset.name}" for preset in plugin.presets]
        what = f"left out: {plugin.error}" if plugin.error else ", ".join(brought)
        table.add_row(
            plugin.name,
            f"{plugin.distribution} {plugin.version}",
            what,
            f"{plugin.seconds * 1000:.0f}",
        )
    Console(markup=False).print(table)
    for plugin in registry().plugins:
        if traceback and plugin.traceback:
            click.echo(f"{plugin.name}:\n{plugin.traceback}")
