"""Tables as Markdown, LaTeX or comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

FORMATS = ("text", "markdown", "latex", "csv")
_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], best: set[tuple[int, int]]) -> str:
    """A table in Markdown; the cells `best`, given by row and column, are bold."""
    lines = [list(head), ["---"] * len(head)]
    for y, row in enumerate(rows):
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append([f"**{cell}**" if (y, x) in best else cell for x, cell in enumerate(cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], best: set[tuple[int, int]]) -> str:
    """A table in LaTeX with the rules of `booktabs`; the cells `best` are bold."""
    body = []
    for y, row in enumerate(rows):
        cells = [cell.translate(_LATEX) for cell in row]
        body.append(
            [f"\\textbf{{{cell}}}" if (y, x) in best else cell for x, cell in enumerate(cells)]
        )
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        f"{' & '.join(each.translate(_LATEX) for each in head)} \\\\",
        "\\midrule",
        *(f"{' & '.join(row)} \\\\" for row in body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines)


def comma_separated(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values; None is an empty cell."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *rows])
    return stream.getvalue().rstrip("\n")
