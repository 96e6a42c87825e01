"""`genkit report`."""

from __future__ import annotations

from pathlib import Path

import click

from genkit.errors import GenkitError
from genkit.reporting.chosen import chosen, page_place
from genkit_cli.complete import files


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…", shell_complete=files)
@click.option(
    "--out",
    metavar="FILE.html",
    type=click.Path(path_type=Path),
    help="Page to write. [RUN/report.html; for several runs, report.html]",
)
@click.option(
    "--images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Held-out images that each tokenizer reconstructs.",
)
@click.option("--device", metavar="NAME", help="Device, such as cpu or cuda:1.")
def command(runs: tuple[str, ...], out: Path | None, images: int, device: str | None) -> None:
    """Write a page of curves and pictures of one or several run directories.

    The page opens in any browser, offline. It shows the options that differ between the runs, their
    figures and curves, samples by step, and for tokenizers the worst reconstructions, the use of
    codes, each code as a picture, and the indices of images.
    """
    if out and out.suffix != ".html":
        raise click.UsageError(f"--out {out} must end in .html.")
    found = chosen(runs)  # Before importing torch, which takes seconds.
    try:
        page_place(found, out)
    except GenkitError as error:
        if out:
            raise
        raise GenkitError(f"{error}; choose another place with --out") from error

    import genkit
    from genkit_cli.progress import busy

    with busy("Reading the runs and drawing"):
        page = genkit.report(runs, out, images=images, device=device)
    click.echo(f"The report is in {page}.")
