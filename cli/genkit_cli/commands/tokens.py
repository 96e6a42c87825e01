"""`genkit tokens`."""

from __future__ import annotations

import json
from typing import Any

import click

from genkit.checkpoint.inspect import codebook_text
from genkit.files import printable
from genkit_cli.complete import files
from genkit_cli.table import print_table
from genkit_cli.terminal import counted


@click.command()
@click.argument("file", shell_complete=files)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: str, as_json: bool) -> None:
    """Show what FILE, a token file or a folder of `genkit encode`, contains.

    The whole file is read, a few thousand images at a time.
    """
    from genkit.tokens.dataset import load_tokens
    from genkit.tokens.summary import summary
    from genkit_cli.progress import Counting

    with Counting("images") as progress:
        found = summary(load_tokens(file), progress)
    if as_json:
        click.echo(json.dumps(found))
        return
    print_table(_facts(found))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    names = " … ".join(dict.fromkeys(map(printable, found["names"])))
    shards = f" in {found['shards']} shards" if found["shards"] > 1 else ""
    facts = [("images", f"{found['images']}{shards}: {names}")]
    if found.get("views", 1) > 1:
        facts.append(("views", f"{found['views']} per image"))
    if parts := found.get("components"):
        facts.append(("tokenizer", ", ".join(f"{kind} {name}" for kind, name in parts.items())))
    facts.append(("weights", str(found.get("model"))[:16]))
    facts.append(("source", str(found.get("source", "")) or "unknown"))
    if resolution := found.get("resolution"):
        text = resolution if isinstance(resolution, str) else " x ".join(map(str, resolution))
        facts.append(("resolution", text))
    if sampled := found.get("sampled"):
        rules = ", ".join(f"{name} {value}" for name, value in sampled["rules"].items())
        how = f"seed {sampled['seed']}{f', {rules}' if rules else ''}"
        facts.append(("sampled", f"by the prior {sampled['prior'][:16]}, {how}"))
    if precision := found.get("precision"):
        facts.append(("precision", precision))
    for index, level in enumerate(found["levels"]):
        facts.append((f"level {index}", _level(level)))
    if found["labelled"]:
        facts.append(
            ("labels", f"{counted(found['labelled'], 'image')}, {len(found['classes'])} classes")
        )
    if found["captions"]:
        facts.append(("captions", counted(found["captions"], "image")))
    if found["unreadable"]:
        facts.append(
            ("left out", f"{counted(len(found['unreadable']), 'file')} that could not be read")
        )
    return facts


def _level(level: dict[str, Any]) -> str:
    grids = [f"{height} x {width}" for height, width, _ in level["grids"][:3]]
    more = len(level["grids"]) - len(grids)
    text = f"grid {', '.join(grids)}" + (f" and {counted(more, 'other')}" if more else "")
    if "active" in level:
        text += (
            f", {level['active']} of {codebook_text(level)} codes in use, "
            f"perplexity {level['perplexity']:.0f}"
        )
    return text
