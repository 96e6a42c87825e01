"""Flags that would do nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import click

from genkit.needs import idle
from genkit.options import specs
from genkit.run import Run


def check_not_idle(run: Run, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse the settings in `given`, a command line's, that do nothing among all `settings`."""

    @functools.cache
    def several_levels() -> bool:
        return len(run.encoder.build().levels) > 1

    told = idle(list(specs(Run, settings)), given, several_levels)
    names = [run.optimizer, *([run.discriminator_optimizer] if run.discriminator else [])]
    if "betas" in given and not any(map(_has_betas, names)):
        told.append(
            f"--optimizer {' and '.join(names)} does not take two betas: --betas would do nothing"
        )
    if told:
        raise click.UsageError("; ".join(told))


def _has_betas(optimizer: str) -> bool:
    """Whether an optimizer takes betas; one that there is not is told by training."""
    if optimizer in ("muon", "adam", "adamw"):
        return True
    from timm.optim import get_optimizer_info, list_optimizers

    if optimizer not in list_optimizers():
        return True
    options = inspect.signature(get_optimizer_info(optimizer).opt_class).parameters
    return "betas" in options and len(options["betas"].default) == 2
