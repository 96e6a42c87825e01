"""The `genkit` group, and how failures look and what they return."""

from __future__ import annotations

import importlib
import os
import sys

import click

import genkit
from genkit.errors import GenkitError
from genkit.registry import nearest

COMMANDS = (
    "train",
    "replay",
    "evaluate",
    "compare",
    "reconstruct",
    "encode",
    "decode",
    "inspect",
    "export",
    "push",
    "components",
    "plugins",
)


class Commands(click.Group):
    """Finds each subcommand in the file of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all subcommands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand's file and return its command; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"genkit_cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the arguments name, and suggest one for a misspelt name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"There is no command '{args[0]}'.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(genkit.__version__, prog_name="genkit")
def cli() -> None:
    """Train, compare and use image tokenizers: generative models with a discrete bottleneck.

    \b
    genkit train --encoder aren --levels 2 --attention pixel     trains on built-in faces, offline
    genkit evaluate runs/faces                                   its figures on held-out images
    """  # noqa: D301 (click wants the character that the escape stands for)


def main() -> None:
    """Run the command line: exit code 0 done, 2 wrong usage, 1 everything else."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GenkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if _out_of_memory(error):
            print(
                "Error: there is not enough memory: try a lower --batch-size, --resolution, "
                "--codebook-size or width",
                file=sys.stderr,
            )
            sys.exit(1)
        if not _lost_contact(error):
            raise
        from genkit_cli.launch import LOST_CONTACT

        print(
            "Error: another process of this run is gone; the last checkpoint is intact.",
            file=sys.stderr,
        )
        sys.exit(LOST_CONTACT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _lost_contact(error: Exception) -> bool:
    """Whether a collective operation failed because another process has ended."""
    return "WORLD_SIZE" in os.environ and any(
        text in str(error)
        for text in ("closed by peer", "Connection reset", "Broken pipe", "remote process exited")
    )


def _out_of_memory(error: Exception) -> bool:
    text = str(error)
    signs = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
