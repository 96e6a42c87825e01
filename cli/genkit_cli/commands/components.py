"""`genkit components`."""

from __future__ import annotations

import json
from typing import Any

import click
from click.shell_completion import CompletionItem

from genkit.plugin.component import Component
from genkit.plugin.extras import missing
from genkit.plugin.installing import to_install
from genkit.plugin.names import nearest
from genkit.plugin.registry import registry
from genkit.settings import Spec, specs, typed
from genkit.size import Size
from genkit_cli.complete import components, offered
from genkit_cli.flags import value_text
from genkit_cli.table import print_table


def _kinds(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return offered(dict.fromkeys(registry().kinds(), ""), incomplete)


def _names(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return offered(components(str(context.params.get("kind"))), incomplete)


@click.command()
@click.argument("kind", required=False, shell_complete=_kinds)
@click.argument("name", required=False, shell_complete=_names)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def command(kind: str | None, name: str | None, as_json: bool) -> None:
    """List installed components by kind; with KIND and NAME, the options of one."""
    known = registry()
    if kind is not None and kind not in known.kinds():
        raise click.UsageError(
            f"There is no kind '{kind}'.{nearest(kind, known.kinds())} "
            f"Kinds: {', '.join(known.kinds())}."
        )
    if kind and name:
        # The name may stand for a component with certain options, such as an optimizer of timm.
        own = name in known.names(kind)
        table = {"name": name} if own else known.settings_for(kind, name) or {"name": name}
        component = known.component(kind, table["name"])
        tree = list(specs(component.config, table))
        if as_json:
            click.echo(json.dumps([{**_facts(component), "options": list(map(_option, tree))}]))
        else:
            _print_one(component, tree)
        return
    found = [
        known.component(each, component)
        for each in ([kind] if kind else known.kinds())
        for component in known.names(each)
    ]
    if as_json:
        click.echo(json.dumps(list(map(_facts, found)), indent=2))
    else:
        _print_all(found, presets=kind is None)


def _lacks(component: Component) -> bool:
    """Whether the component needs packages that are not installed."""
    return bool(component.requires and missing(component.requires))


def _facts(component: Component) -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "help": component.help,
        "distribution": component.origin.distribution,
        "version": component.origin.version,
        "requires": component.requires or None,
        "usable": not _lacks(component),
    }


def _option(spec: Spec) -> dict[str, Any]:
    return {
        "name": spec.key,
        "values": value_text(spec),
        "value": spec.value.plain if isinstance(spec.value, Size) else spec.value,
        "help": spec.info.help,
    }


def _print_all(components: list[Component], presets: bool) -> None:
    rows = [("kind", "name", "from", "description"), ("", "", "", "")]
    for each in components:
        needs = f" (needs {each.requires})" if _lacks(each) else ""
        rows.append((each.kind, each.name, str(each.origin), each.help + needs))
    for plugin in registry().plugins if presets else []:
        for preset in plugin.presets:
            rows.append(("(preset)", preset.name, str(plugin.origin), preset.help))
    print_table(rows)


def _print_one(component: Component, tree: list[Spec]) -> None:
    click.echo(f"{component}: {component.help}\nfrom {component.origin}, {component.target}")
    if component.requires:
        how = f": {to_install(component.requires)}" if _lacks(component) else ", which is installed"
        click.echo(f"needs {component.requires}{how}")
    click.echo()
    formatter = click.HelpFormatter(width=110)
    rows = [
        (
            f"{spec.key} {value_text(spec)}",
            f"{spec.info.help}" + (f" [{typed(spec.value)}]" if typed(spec.value) else ""),
        )
        for spec in tree
    ]
    if rows:
        formatter.write_dl(rows)
    click.echo(formatter.getvalue() or "It has no options.")
