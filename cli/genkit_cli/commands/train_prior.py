"""`genkit train-prior`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from genkit.run.options import location_of
from genkit.run.prior import PriorRun
from genkit_cli.complete import files
from genkit_cli.training import Training, named_data, run_task, starting


class TrainPrior(Training):
    """The options of a prior's run. The tokenizer is an argument."""

    kind = PriorRun

    def below(self, args: Sequence[str]) -> tuple[list[dict[str, Any]], str | None]:
        """The settings that flags override; the tokenizer's data lie below them."""
        lower, preset = super().below(args)
        named = [arg for arg in args[:1] if not arg.startswith("-")]
        data = named_data(args) if named else {}
        return [*lower, *({"tokenizer": location_of(name), **data} for name in named)], preset


@click.command(cls=TrainPrior, no_args_is_help=True)
@click.argument("tokenizer", required=False, shell_complete=files)
@starting
@click.pass_context
def command(
    ctx: click.Context,
    /,
    tokenizer: str | None,
    preset: str | None,
    config: str | None,
    out: Path | None,
    resume: bool,
    processes: int,
    **params: Any,
) -> None:
    """Train a prior, a model of the indices that TOKENIZER makes of images, to draw new images.

    TOKENIZER is a run directory, a .safetensors file or hf://owner/name; a resumed run needs none.
    Without --data, the images are the tokenizer's training images. They are encoded once, before
    the first step. Below are the options of the chosen components, with their values, as for
    genkit train. Then draw: genkit sample PRIOR --number 16 --out DIR.
    """
    if tokenizer is None and config is None and not resume:
        raise click.UsageError("name the tokenizer: genkit train-prior TOKENIZER", ctx)
    further = {"tokenizer": location_of(tokenizer)} if tokenizer else {}
    run_task(ctx, out, resume, preset, processes, params, further)
