"""`genkit new`."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from genkit.errors import GenkitError
from genkit.files import check_place, write_text
from genkit.plugin.names import nearest
from genkit.plugin.options import NONE
from genkit.plugin.registry import registry
from genkit_cli.complete import offered
from genkit_cli.terminal import typed

_TEMPLATES = Path(__file__).parent.parent / "templates"
# The folder of the files that all kinds share.
_SHARED = "package"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def kinds() -> list[str]:
    """The kinds that have a template, sorted."""
    return sorted(
        path.name for path in _TEMPLATES.iterdir() if path.is_dir() and path.name != _SHARED
    )


def _kinds(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return offered(dict.fromkeys(kinds(), ""), incomplete)


@click.command(epilog=f"Kinds: {', '.join(kinds())}.")
@click.argument("kind", shell_complete=_kinds)
@click.argument("name")
def command(kind: str, name: str) -> None:
    """Write a package with a new component of KIND, called NAME, into the folder NAME.

    The package is complete: description and options, a small working class, its contract test,
    and a README. Change the class into your own.
    """
    if kind not in kinds():
        raise click.UsageError(
            f"There is no template for the kind '{kind}'.{nearest(kind, kinds())} "
            f"Kinds: {', '.join(kinds())}."
        )
    _check_name(kind, name)
    out = Path(name)
    if out.exists() or out.is_symlink():
        raise GenkitError(f"'{name}' already exists: choose another NAME, or work elsewhere")
    check_place(out / "pyproject.toml")
    use = _write(kind, name, out)
    click.echo(f"A {kind} is in {out}. Change {out / _package(name) / f'{kind}.py'}.")
    click.echo(f"Install it: uv pip install -e {typed(out)}")
    click.echo(f"Test it: pytest {typed(out)}")
    click.echo(f"Use it: {use}")


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that is malformed or taken."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(_class(name)) or name == NONE:
        raise click.UsageError(
            f"'{name}' cannot be the name of a component: use small letters, digits and dashes, as "
            "in my-name"
        )
    known = registry()
    if name in known.names(kind):
        raise GenkitError(f"{known.component(kind, name)} exists already: choose another NAME")
    if name in [plugin.name for plugin in known.plugins]:
        raise GenkitError(f"a plugin called '{name}' is installed: choose another NAME")
    if importlib.util.find_spec(_package(name)):
        raise GenkitError(f"a package called '{_package(name)}' exists: choose another NAME")


def _write(kind: str, name: str, out: Path) -> str:
    """Write the package, and return a command that uses the component."""
    import tomllib

    uses = tomllib.loads((_TEMPLATES / "uses.toml").read_text(encoding="utf-8"))
    words = {
        "template-name": name,
        "template_name": name.replace("-", "_"),
        "TemplateName": _class(name),
        "template-kind": kind,
        "template_kind": kind,
        "template-use": uses[kind].replace("template-name", name),
    }
    shared, package = _TEMPLATES / _SHARED, out / _package(name)
    files = {
        out / "pyproject.toml": shared / "pyproject.toml",
        out / "README.md": shared / "README.md",
        out / "tests" / f"test_{name.replace('-', '_')}.py": shared / "test.py",
        package / "__init__.py": _TEMPLATES / kind / "plugin.py",
        package / f"{kind}.py": _TEMPLATES / kind / f"{kind}.py",
    }
    for path, template in files.items():
        text = template.read_text(encoding="utf-8")
        write_text(path, re.sub("|".join(words), lambda found: words[found[0]], text))
    return words["template-use"]


def _package(name: str) -> str:
    return f"genkit_{name.replace('-', '_')}"


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))
