"""Messages on stderr, as -q and -v select them.

The library logs with the standard `logging`, under `genkit`; the commands add their own under
`genkit_cli`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import click

_LOGGERS = ("genkit", "genkit_cli")
_log = logging.getLogger("genkit_cli")
_STARTED = time.monotonic()


def note(text: str) -> None:
    """Print a line on stderr that is neither a result nor an error; -q leaves it out."""
    _log.info("%s", text)


def is_quiet() -> bool:
    """Whether -q asks for errors and results alone."""
    return not _log.isEnabledFor(logging.WARNING)


def level_of(args: Sequence[str]) -> int:
    """The lowest level of messages that a command line asks for, anywhere before `--`."""
    end = args.index("--") if "--" in args else len(args)
    given = set(args[:end])
    quiet, verbose = given & {"-q", "--quiet"}, given & {"-v", "--verbose"}
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other.")
    return logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO


@contextmanager
def messages(level: int) -> Iterator[None]:
    """Print messages from this level on."""
    if level >= logging.ERROR:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler, loggers = _Handler(), [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, former in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(former)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.INFO:
            text = f"[{time.monotonic() - _STARTED:7.2f} s] {record.name}: {text}"
        elif not record.name.startswith("genkit_cli"):
            text = f"genkit: {text}"
        with suppress(OSError):  # A closed terminal or a full disk ends no command.
            click.echo(text, err=True)
