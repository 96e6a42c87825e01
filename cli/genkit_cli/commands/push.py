"""`genkit push`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from genkit.checkpoint.hub import is_name
from genkit.files import TOKENIZER, replacing
from genkit.publish import repository, upload
from genkit_cli.complete import files


@click.command()
@click.argument("run", shell_complete=files)
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the files to this folder instead of uploading them.",
)
def command(run: str, name: str, private: bool, folder: Path | None) -> None:
    """Publish RUN (a run directory or a model file) on the Hugging Face Hub.

    The repository holds the model, its options without this machine's paths, and a card with the
    figures of the last validation, samples, and how to load it: genkit.load("hf://OWNER/NAME"), or
    genkit.load_prior for a prior, which is published with its tokenizer.
    """
    if not is_name(name):
        raise click.UsageError(f"'{name}' is not a repository name: use the form owner/name.")
    files = repository(run, name)
    if folder is None:
        where = upload(files, name, private)
        load = "load_prior" if TOKENIZER in files else "load"
        click.echo(f'The model is at {where}. To use it: genkit.{load}("hf://{name}")')
        click.echo("The card names no license; add one on that page.")
        return
    if folder.resolve() in (Path(run).resolve(), Path(run).resolve().parent):
        raise click.UsageError("--folder must not be the folder of the run itself.")
    for path, content in files.items():
        with replacing(folder / path) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)
    click.echo(f"{', '.join(sorted(files))} are in {folder}; nothing is uploaded.")
