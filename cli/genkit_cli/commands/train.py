"""`genkit train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from genkit.errors import OptionError
from genkit.run.options import TokenizerRun
from genkit_cli.flags import given
from genkit_cli.training import Training, named_data, run_task, starting


class Train(Training):
    """The options of a tokenizer's run."""

    kind = TokenizerRun

    def below(self, args: Sequence[str]) -> tuple[list[dict[str, Any]], str | None]:
        """The settings that flags override; the model to start from lies below them."""
        lower, preset = super().below(args)
        values = given(args)
        if path := values.get("from"):
            if "resume" in values:
                raise OptionError("a resumed run has its own weights: leave out --from")
            lower.append({"from_": path, **named_data(args)})
        return lower, preset


@click.command(cls=Train, no_args_is_help=False)
@starting
@click.pass_context
def command(
    ctx: click.Context,
    /,
    preset: str | None,
    config: str | None,
    out: Path | None,
    resume: bool,
    processes: int,
    **params: Any,
) -> None:
    """Train a tokenizer and write a run directory.

    Below are the options of the chosen components, with their values. To see the options of another
    component, name it: genkit train --attention pixel --help. Every option has a long name, which
    is needed where two components share an option: --encoder.width, --decoder.width. Flags
    override --config, which overrides --preset, which overrides the defaults. Naming another
    component drops the options of the old one. --from takes components and weights from a
    checkpoint; flags come on top, and optimizer and discriminator are fresh.
    """
    run_task(ctx, out, resume, preset, processes, params)
