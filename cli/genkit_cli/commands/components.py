"""`genkit components`."""

from __future__ import annotations

import click

from genkit.plugin.component import Component
from genkit.plugin.extras import missing
from genkit.plugin.installing import to_install
from genkit.plugin.names import nearest
from genkit.plugin.registry import registry
from genkit.settings import specs
from genkit_cli.table import print_table


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
def command(kind: str | None, name: str | None) -> None:
    """List installed components by kind; with KIND and NAME, the options of one."""
    known = registry()
    if kind is not None and kind not in known.kinds():
        raise click.UsageError(
            f"There is no kind '{kind}'.{nearest(kind, known.kinds())} "
            f"Kinds: {', '.join(known.kinds())}."
        )
    if kind and name:
        _details(kind, name)
        return
    rows = [("kind", "name", "from", "description"), ("", "", "", "")]
    for each in [kind] if kind else known.kinds():
        for component in known.names(each):
            found = known.component(each, component)
            needs = f" (needs {found.requires})" if _lacks(found) else ""
            rows.append((each, component, str(found.origin), found.help + needs))
    for plugin in known.plugins if kind is None else []:
        for preset in plugin.presets:
            rows.append(("(preset)", preset.name, str(plugin.origin), preset.help))
    print_table(rows)


def _lacks(component: Component) -> bool:
    """Whether the component needs packages that are not installed."""
    return bool(component.requires and missing(component.requires))


def _details(kind: str, name: str) -> None:
    from genkit_cli.flags import shown, value_text

    # The name may stand for a component with certain options, such as an optimizer of timm.
    stands_for = registry().settings_for(kind, name) if name not in registry().names(kind) else None
    component = registry().component(kind, (stands_for or {"name": name})["name"])
    click.echo(f"{component}: {component.help}\nfrom {component.origin}, {component.target}")
    if component.requires:
        how = f": {to_install(component.requires)}" if _lacks(component) else ", which is installed"
        click.echo(f"needs {component.requires}{how}")
    click.echo()
    formatter = click.HelpFormatter(width=110)
    rows = [
        (
            f"{spec.key} {value_text(spec)}",
            f"{spec.info.help}" + (f" [{shown(spec.value)}]" if shown(spec.value) else ""),
        )
        for spec in specs(component.config, stands_for or {})
    ]
    if rows:
        formatter.write_dl(rows)
    click.echo(formatter.getvalue() or "It has no options.")
