"""Tables for a terminal, without importing rich, which is slow."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

import click

_WIDTH = 110


def print_table(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print columns side by side; the last one is wrapped to the remaining width.

    Names are never broken, not even at hyphens, so that they can be copied.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    left = min(shutil.get_terminal_size().columns, _WIDTH) - sum(widths, len(indent))
    for *cells, last in rows:
        lines = textwrap.wrap(
            last,
            max(left - 2 * len(widths), 20),
            break_on_hyphens=False,
            break_long_words=False,
        )
        for number, line in enumerate(lines or [""]):
            shown = ("" if number else cell for cell in cells)
            padded = (f"{cell:<{width}}  " for cell, width in zip(shown, widths, strict=True))
            click.echo(f"{indent}{''.join(padded)}{line}".rstrip())
