"""The answers of an evaluation of `needle` as tables, one for each length."""

from __future__ import annotations

from typing import Any

from dit_sparse.haystack import TASKS
from dit_sparse.quality.cases import DENSE
from dit_sparse.quality.intervals import wilson
from dit_sparse.quality.needle import ASKED, TAIL, Cell, Result, Row

TITLES = (
    "method", "density", "texts", *(f"{task}, %" for task in TASKS), "as dense, %", "perplexity",
)  # fmt: skip


def table(result: Result, length: int) -> list[list[str]]:
    """Return the cells of the rows at a length, in the order of `TITLES`; "" where none is."""
    return [_line(row, length) for row in result.rows if row.cells or row.failed]


def markdown(result: Result) -> str:
    """Return all tables and notes."""
    parts = []
    for length in result.lengths:
        rows = table(result, length)
        parts.append(f"### {length:,} tokens\n")
        parts += [_row(TITLES), "|---" + "|---:" * (len(TITLES) - 1) + "|", *map(_row, rows), ""]
    return "\n".join([*parts, *(f"- {note}" for note in notes(result)), ""])


def notes(result: Result) -> list[str]:
    """Return what belongs under the tables."""
    asked = ", ".join(f"{n} of {task}" for task, n in ASKED.items())
    found = [
        f"the same {result.count} texts of each length for every row, each with {asked}; a "
        "question is answered when all tokens of its answer are found",
        "in brackets: 95 % intervals (Wilson), taking questions for independent",
        "as dense: looked-up tokens, right or wrong, that are the dense model's; perplexity: of "
        f"filler among the last {TAIL} tokens",
        "density: exact query-key pairs of the calls that are sparse",
    ]
    found += [f"{row.label}: not measured: {row.failed}" for row in result.rows if row.failed]
    return found


def _line(row: Row, length: int) -> list[str]:
    cell = row.cell(length)
    if cell is None:
        return [row.label, *("" for _ in TITLES[1:])]
    dense = row.label == DENSE
    return [
        row.label,
        "" if dense else f"{cell.density:.3f}",
        str(cell.texts),
        *(_share(cell, task) for task in TASKS),
        "" if dense or cell.agreement is None else f"{100 * cell.agreement:.1f}",
        f"{cell.perplexity:.2f}",
    ]


def _share(cell: Cell, task: str) -> str:
    """Return the questions of a task that were answered, with an interval."""
    low, high = wilson(cell.right[task], cell.texts * ASKED[task])
    return f"{100 * cell.right[task]:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
