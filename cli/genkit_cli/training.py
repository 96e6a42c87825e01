"""Shared by the commands that train: options of chosen components, layers, and the run."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from genkit.errors import GenkitError, OptionError, TrainingError
from genkit.files import CONFIG, check_folder
from genkit.plugin.component import REGISTERED
from genkit.plugin.options import Part
from genkit.plugin.registry import registry
from genkit.run.config import check_free, names_of, newest_directory, no_run
from genkit.run.options import TokenizerRun, TrainingOptions
from genkit.run.prior import PriorRun
from genkit.run.toml import read_config
from genkit.settings import resolve, typed_data_table
from genkit.training.launchers import check_meeting
from genkit.training.meeting import LAUNCHED
from genkit_cli.complete import files, listed
from genkit_cli.explain import Option, explain_choice
from genkit_cli.flags import (
    Flags,
    check_not_idle,
    check_once,
    chosen_flags,
    dashed,
    given,
    settings_from,
    write_help,
)
from genkit_cli.main import CTRL_C
from genkit_cli.options import OUT, all_of, processes_option

if TYPE_CHECKING:
    from genkit.training.task import Build


# The kinds of runs that commands train.
KINDS: tuple[type[TrainingOptions], ...] = (TokenizerRun, PriorRun)


class Training(click.Command):
    """A command with the options of the components that its own arguments choose.

    A subclass names the `kind` of run that it trains.
    """

    kind: type[TrainingOptions]

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Add the chosen components' flags, and the settings that they override, to the context."""
        args = dashed(args)
        try:
            extra["obj"] = self._chosen(args)
        except GenkitError as error:
            if not extra.get("resilient_parsing"):
                raise click.UsageError(str(error)) from error
            # A shell completes a line whose first part may be wrong.
            extra["obj"] = self._chosen([])
        return super().make_context(info_name, args, parent, **extra)

    def _chosen(self, args: Sequence[str]) -> tuple[Flags, Sequence[Mapping[str, Any]]]:
        """The flags of the chosen components, and the settings that they override."""
        lower, preset = self.below(args)
        reserved = (option.lstrip("-") for param in self.params for option in param.opts)
        return chosen_flags(args, lower, preset, reserved, self.kind), lower

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The fixed options, then the chosen components' options."""
        return [*self.params, *ctx.obj[0].options, *super().get_params(ctx)[len(self.params) :]]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; for an unknown flag, suggest similar ones."""
        if not ctx.resilient_parsing:
            check_once(args, ctx.obj[0])
        typed = list(args)  # click empties the list.
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not error.option_name.startswith("--"):
                raise
            others = {each.command: each for each in KINDS if each is not self.kind}
            params = self.get_params(ctx)
            message = explain_choice(
                error.option_name, ctx.obj[0], self.kind, typed, params, others
            )
            raise click.UsageError(message, ctx) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the fixed options, then the chosen components' options by owner."""
        with formatter.section("Run"):
            formatter.write_dl(
                [row for param in self.params if (row := param.get_help_record(ctx))], col_max=44
            )
        write_help(ctx.obj[0], formatter)

    def below(self, args: Sequence[str]) -> tuple[list[dict[str, Any]], str | None]:
        """The settings that flags override, lowest first, and the preset's name."""
        return layers_below(args, self.kind)


def _presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The presets of a command, after a comma too."""
    assert isinstance(ctx.command, Training)
    command = ctx.command.kind.command
    known = {name: registry().preset(name, command).help for name in registry().presets(command)}
    return listed(known, incomplete)


starting = all_of(
    click.option(
        "--preset",
        shell_complete=_presets,
        metavar="NAME,…",
        help="Presets to start from; later ones override earlier ones.",
    ),
    click.option(
        "--config",
        cls=Option,
        also=("config_file", "cfg", "yaml"),
        shell_complete=files,
        metavar="FILE",
        help="TOML file with options, such as another run's config.toml.",
    ),
    click.option(
        "--out",
        cls=Option,
        also=(*OUT, "logdir", "log_dir", "exp_name", "name"),
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Run directory. [runs/NAME]",
    ),
    click.option(
        "--resume",
        cls=Option,
        also=("resume_from_checkpoint", "auto_resume", "continue"),
        is_flag=True,
        help="Resume the run in --out, or else the newest run in runs/.",
    ),
    processes_option("training processes"),
)


def run_task(
    ctx: click.Context,
    out: Path | None,
    resume: bool,
    preset: str | None,
    processes: int,
    params: Mapping[str, Any],
    further: Mapping[str, Any] | None = None,
) -> NoReturn:
    """Train the run that a command's flags describe, and exit; `further` settings join them."""
    flags: Flags = ctx.obj[0]
    lower: Sequence[Mapping[str, Any]] = ctx.obj[1]
    assert isinstance(ctx.command, Training)
    kind = ctx.command.kind
    changes = {**settings_from(flags, params), **(further or {})}
    try:
        if name := changes.get("data", {}).get("name"):
            typed_data_table(name)
        settings = kind.layered(preset, *lower, changes)
        run = resolve(kind, settings)
    except GenkitError as error:
        raise click.UsageError(str(error), ctx) from error
    check_not_idle(settings, changes, kind)

    from genkit_cli.launch import INTERRUPTED, is_launched, launch, stop_with_launcher
    from genkit_cli.progress import Progress

    # All that needs no torch, whose import takes seconds.
    run.check_here()
    check_meeting()
    if out and not resume:
        check_free(Path(out))
        check_folder(Path(out))
    progress = Progress()
    progress.load()
    if processes > 1 and not is_launched(processes):
        _check_installed(run)
        sys.exit(launch(dashed(sys.argv[1:]), processes))

    from genkit.training.loop import train

    stop_with_launcher()
    with progress:
        stopped = train(task_of(kind), run, out, progress, resume=resume)
    if stopped and LAUNCHED in os.environ:
        ctx.exit(INTERRUPTED)
    ctx.exit(CTRL_C if stopped == signal.SIGINT else int(stopped > 0))


def kind_of(config: Mapping[str, Any]) -> type[TrainingOptions]:
    """The kind of run that a config has the options of; a tokenizer's if it has unknown ones."""
    return next((each for each in KINDS if set(config) <= names_of(each)), TokenizerRun)


def task_of(kind: type[TrainingOptions]) -> Build:
    """The task that a kind of run trains, imported with torch."""
    if kind is PriorRun:
        from genkit.training.prior import PriorTask

        return PriorTask
    from genkit.training.tokenizer import TokenizerTask

    return TokenizerTask


def _check_installed(run: Any) -> None:
    """Refuse several processes for a component that is registered in this process only."""
    parts = [getattr(run, field.name) for field in dataclasses.fields(run)]
    components = [part.component for part in parts if isinstance(part, Part) and part.component]
    for component in components:
        if component.origin.distribution == REGISTERED:
            raise click.UsageError(
                f"--processes cannot train the {component}, which was registered from Python: "
                "install it as a plugin, or start the script itself with torchrun"
            )


def named_data(args: Sequence[str]) -> dict[str, Any]:
    """The data that a line names, as settings: a model that it starts from need not record any."""
    named = given(args).get("data")
    return {"data": named} if named else {}


def layers_below(
    args: Sequence[str], kind: type[TrainingOptions]
) -> tuple[list[dict[str, Any]], str | None]:
    """The settings that flags override, lowest first, and the preset's name."""
    values = given(args)
    for name in ("out", "config", "preset"):
        if values.get(name) == "":
            raise OptionError(f"--{name} is empty; is a variable unset?")
    lower = []
    if "resume" in values:
        out = values.get("out")
        directory = Path(out) if out else newest_directory(kind=kind)
        if not (directory / CONFIG).is_file():
            raise no_run(directory)
        lower.append(read_config(directory / CONFIG))
        other = kind_of(lower[0])
        if set(lower[0]) <= names_of(other) and not set(lower[0]) <= names_of(kind):
            raise TrainingError(
                f"'{directory}' is a run of genkit {other.command}: resume it with that command"
            )
    if config := values.get("config"):
        lower.append(read_config(Path(config)))
    return lower, values.get("preset")
