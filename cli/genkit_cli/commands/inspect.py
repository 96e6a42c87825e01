"""`genkit inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

import genkit
from genkit.checkpoint.inspect import codebook_text
from genkit_cli.complete import files


@click.command()
@click.argument("checkpoint", shell_complete=files)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(checkpoint: str, as_json: bool) -> None:
    """Show the components, options, codebooks and parameters of a checkpoint."""
    info = genkit.inspect(checkpoint)
    if as_json:
        click.echo(json.dumps(info, indent=2))
        return
    versions = ", ".join(f"{name} {version}" for name, version in (info["versions"] or {}).items())
    click.echo(f"{info['file']}: {info['bytes'] / 1e6:.2f} MB, written by {versions}\n")
    for kind, component in info["components"].items():
        click.echo(f"{kind}: {component['name']}  ({component['distribution']})")
        _options(component["options"], "  ")
    if "prior" in info:
        _sequence(info["prior"])
    else:
        _levels(info)
    parameters = info["parameters"]
    click.echo(
        f"\nparameters: {parameters['total']:,} in all, {parameters['trainable']:,} trainable"
    )
    for module, count in parameters["modules"].items():
        click.echo(f"  {module:<24}{count:>12,}")
    if "discriminator" in parameters:
        click.echo(
            f"discriminator: {parameters['discriminator']:,} parameters and statistics in addition"
        )
    if info["training"]:
        click.echo("\ntraining:")
        _options(info["training"], "  ")


def _levels(info: Mapping[str, Any]) -> None:
    click.echo(f"\nimages: {info['channels']} channels")
    click.echo("levels, finest first:")
    for index, level in enumerate(info["levels"]):
        click.echo(
            f"  {index}: {codebook_text(level)} codes, {level['channels']} channels, "
            f"one latent per {level['stride']} x {level['stride']} pixels"
        )


def _sequence(prior: Mapping[str, Any]) -> None:
    """Print the sequence that a prior models, and its classes or vectors."""
    height, width = prior["size"]
    click.echo(f"\nimages: {width} x {height} pixels, by the tokenizer {prior['tokenizer'][:12]}")
    click.echo("levels of indices, finest first:")
    for index, level in enumerate(prior["levels"]):
        rows, columns = level["grid"]
        click.echo(f"  {index}: {codebook_text(level)} codes, grid {rows} x {columns}")
    if prior["classes"]:
        click.echo(f"classes: {', '.join(prior['classes'])}")
    if prior["channels"]:
        click.echo(
            f"vectors: up to {prior['length']} of {prior['channels']} channels for each image"
        )


def _options(options: Mapping[str, Any], indent: str) -> None:
    for name, value in options.items():
        if isinstance(value, Mapping) and "name" in value:
            nested = {
                key: item
                for key, item in value.items()
                if key not in ("name", "distribution", "options")
            }
            click.echo(f"{indent}{name} = {value['name']}")
            inner = value.get("options")
            _options({**nested, **(inner if isinstance(inner, Mapping) else {})}, f"{indent}  ")
        elif isinstance(value, Mapping):
            click.echo(f"{indent}{name}:")
            _options(value, f"{indent}  ")
        else:
            click.echo(f"{indent}{name} = {value}")
