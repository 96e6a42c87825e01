"""The `genkit` command group, its error messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import keyword
import logging
import os
import sys
import traceback
from typing import NoReturn

import click

import genkit
from genkit.errors import FailedTogether, GenkitError
from genkit.files import at_home
from genkit.plugin.names import nearest
from genkit_cli.messages import level_of, messages
from genkit_cli.terminal import give_up, prepare

COMMANDS = (
    "train",
    "train-prior",
    "sample",
    "replay",
    "evaluate",
    "compare",
    "report",
    "demo",
    "runs",
    "reconstruct",
    "encode",
    "decode",
    "tokens",
    "inspect",
    "import",
    "export",
    "push",
    "components",
    "new",
    "plugins",
)
# Options of every command. Their values are looked up before the command is imported.
_COMMON = (
    (["-q", "--quiet"], "Print errors and results only."),
    (["-v", "--verbose"], "Also print what is loaded, read and written, and when."),
    (["--traceback"], "Print the traceback of an error above its message."),
)
_MORE_MEMORY = (
    "try a lower --batch-size, --resolution, --codebook-size or width; for training, --recompute"
)
# Exit code after Ctrl-C, as a shell reports it of any program.
CTRL_C = 130
# The key of the arguments, as typed, in a click context.
ARGS = "genkit_cli.args"


class Commands(click.Group):
    """Finds each subcommand in the file of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all subcommands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand's file and return its command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = _command(cmd_name)
        known = {name for param in command.params for name in param.opts}
        command.params += [option for option in _common() if known.isdisjoint(option.opts)]
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments after expanding `~` to the home directory, also behind a `=`."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        ctx.meta[ARGS] = [_at_home(arg) for arg in args]
        return super().parse_args(ctx, list(ctx.meta[ARGS]))

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand; for a long option typed with one dash, suggest two."""
        ctx.with_resource(messages(level_of(ctx.meta[ARGS])))
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            for arg in ctx.meta[ARGS]:
                # click reads -out as -o, -u and -t.
                if arg[1:2] != "-" and arg.startswith(error.option_name) and len(arg) > 2:
                    message = f"There is no option '{arg}': write -{arg}."
                    raise click.UsageError(message, error.ctx) from error
            if error.ctx is None or not error.option_name.startswith("--"):
                raise
            from genkit_cli.explain import explain

            message = explain(error.option_name, error.ctx.command.get_params(error.ctx))
            raise click.UsageError(message, error.ctx) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the arguments name, and suggest one for a misspelt name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"There is no command '{args[0]}'.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


def _command(name: str) -> click.Command:
    # A keyword of Python cannot name a module.
    file = name.replace("-", "_") + "_" * keyword.iskeyword(name)
    module = importlib.import_module(f"genkit_cli.commands.{file}")
    command: click.Command = module.command
    return command


def _common() -> list[click.Option]:
    return [
        click.Option(names, is_flag=True, expose_value=False, help=text) for names, text in _COMMON
    ]


def _at_home(arg: str) -> str:
    name, equals, value = arg.partition("=")
    head, path = (name + equals, value) if arg.startswith("--") else ("", arg)
    return head + at_home(path)


@click.command(
    cls=Commands,
    params=_common(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name=genkit.__distribution__, prog_name="genkit")
def cli() -> None:
    """Train, compare and use image tokenizers: generative models with a discrete bottleneck.

    \b
    genkit train --encoder aren --levels 2 --attention pixel     trains on built-in faces, offline
    genkit evaluate runs/faces                                   its figures on held-out images
    genkit train-prior runs/faces                                a prior over its indices
    genkit sample runs/faces-prior --number 16 --out pictures    new images
    """  # noqa: D301 (click wants the character that the escape stands for)


def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 2 wrong usage, 130 Ctrl-C, 1 any other error or signal to stop.
    """
    try:
        _main()
    except SystemExit as end:
        if end.code != CTRL_C or os.name != "posix" or not (sys.stdin and sys.stdin.isatty()):
            raise
        # A shell stops its loop only if a program ends by the signal itself, as Python does after
        # this exception. The shell reports 130 either way.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt from None


def _main() -> None:
    prepare()
    if "_GENKIT_COMPLETE" in os.environ:  # Warnings would garble the line that is being typed.
        logging.getLogger("genkit").setLevel(logging.ERROR)
    try:
        sys.exit(cli.main(prog_name="genkit", standalone_mode=False) or 0)
    except click.ClickException as error:
        _show_traceback()
        error.show()
        sys.exit(error.exit_code)
    except GenkitError as error:
        advice = isinstance(error, FailedTogether) and _out_of_memory(error)
        _fail(f"{error}; {_MORE_MEMORY}" if advice else str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        sys.exit(CTRL_C)
    except (RuntimeError, MemoryError) as error:
        if _out_of_memory(error):
            _fail(f"there is not enough memory: {_MORE_MEMORY}")
        if not _lost_contact(error):
            raise
        from genkit_cli.launch import LOST_CONTACT

        _fail("another process of this run is gone; the last checkpoint is intact.", LOST_CONTACT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        # Errors with a file name are handled where that file is written.
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        give_up(sys.stdout)
        _fail("the output cannot be written: No space left on device")


def _fail(message: str, code: int = 1) -> NoReturn:
    _show_traceback()
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(code)


def _show_traceback() -> None:
    if "--traceback" in sys.argv:
        traceback.print_exc()


def _lost_contact(error: Exception) -> bool:
    """Whether a collective operation failed because another process ended."""
    return "WORLD_SIZE" in os.environ and any(
        text in str(error)
        for text in ("closed by peer", "Connection reset", "Broken pipe", "remote process exited")
    )


def _out_of_memory(error: Exception) -> bool:
    text = str(error)
    signs = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
