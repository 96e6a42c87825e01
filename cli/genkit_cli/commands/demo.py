"""`genkit demo`."""

from __future__ import annotations

from pathlib import Path

import click

import genkit
from genkit.demo.server import (
    address_for_others,
    address_of,
    application,
    check_gradio,
    listening,
    private,
    serve,
)
from genkit.devices import pick_device
from genkit.files import MODEL
from genkit_cli.complete import files
from genkit_cli.main import CTRL_C
from genkit_cli.messages import note


@click.command()
@click.argument("run", shell_complete=files)
@click.option(
    "--host", default="127.0.0.1", metavar="NAME", help="Address to listen on. [127.0.0.1]"
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port. [0, a free one]"
)
@click.option("--device", metavar="NAME", help="Device, such as cpu or cuda:1.")
def command(run: str, host: str, port: int, device: str | None) -> None:
    """Serve a page to play with the tokenizer or the prior of RUN in a browser, until Ctrl-C.

    A tokenizer reconstructs images that are dropped on the page, and shows their indices and what
    each level contributes. A prior draws and completes images. The page is for this machine, unless
    --host names another address; nothing is sent anywhere.
    """
    check_gradio()
    info = genkit.inspect(run)
    with listening(host, port) as listener, private():
        note("Loading PyTorch, Gradio and the model …")
        load = genkit.load_prior if "prior" in info else genkit.load
        model = load(run).to(pick_device(device)).eval()
        app = application(model, _name(Path(run).resolve()))
        click.echo(f"The demo is at {address_of(listener)}; press Ctrl-C to stop it.")
        if others := address_for_others(listener):
            click.echo(f"Other machines can use it without a password, at {others}.")
        try:
            serve(app, listener)
        except KeyboardInterrupt:
            click.echo("\nThe demo has ended.", err=True)
            raise SystemExit(CTRL_C) from None


def _name(path: Path) -> str:
    """The title of the page: the name of the run directory, or of a model file elsewhere."""
    return path.parent.name if path.name == MODEL else path.name
