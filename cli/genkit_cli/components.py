"""`genkit components`."""

from __future__ import annotations

import click

from genkit.component import Component
from genkit.options import specs
from genkit.registry import nearest, registry
from genkit.requirements import missing
from genkit_cli.table import print_table


@click.command()
@click.argument("kind", required=False)
@click.argument("name", required=False)
def command(kind: str | None, name: str | None) -> None:
    """List what is installed, by kind; with KIND and NAME, a component's options."""
    known = registry()
    if kind is not None and kind not in known.kinds():
        raise click.UsageError(
            f"There is no kind '{kind}'.{nearest(kind, known.kinds())} "
            f"Kinds: {', '.join(known.kinds())}."
        )
    if kind and name:
        _details(kind, name)
        return
    rows = [("kind", "name", "from", "what it is"), ("", "", "", "")]
    for each in [kind] if kind else known.kinds():
        for component in known.names(each):
            owner = known.owner(each, component)
            found = known.component(each, component)
            needs = f" (needs {found.requires})" if _lacks(found) else ""
            origin = f"{owner.distribution} {owner.version}"
            rows.append((each, component, origin, found.help + needs))
    for plugin in known.plugins if kind is None else []:
        for preset in plugin.presets:
            origin = f"{plugin.distribution} {plugin.version}"
            rows.append(("(preset)", preset.name, origin, preset.help))
    print_table(rows)


def _lacks(component: Component) -> bool:
    """Whether there is something to install before the component works."""
    return bool(component.requires and missing(component.requires))


def _details(kind: str, name: str) -> None:
    from genkit_cli.params import shown, value_text

    component, owner = registry().component(kind, name), registry().owner(kind, name)
    click.echo(
        f"{component}: {component.help}\n"
        f"from {owner.distribution} {owner.version}, {component.target}"
    )
    if component.requires:
        how = f": pip install '{component.requires}'" if _lacks(component) else ", which is here"
        click.echo(f"needs {component.requires}{how}")
    click.echo()
    formatter = click.HelpFormatter(width=110)
    rows = [
        (
            f"{spec.key} {value_text(spec)}",
            f"{spec.info.help}" + (f" [{shown(spec.value)}]" if shown(spec.value) else ""),
        )
        for spec in specs(component.config, {})
    ]
    if rows:
        formatter.write_dl(rows)
    click.echo(formatter.getvalue() or "It has no options.")
