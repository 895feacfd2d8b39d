"""Tables that fit a terminal: columns that are not needed are left out, one is narrowed, and none becomes a row of dots.

`lay_out` is pure. Columns of the highest rank go first where there is no room; then the columns with a `least` give up
what they have beyond it, the widest first.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.cli.terminal import echo
from atoll.terminal_text import printable

GAP = "  "
COMFORTABLE = 28
"""Characters to which a column that is always shown is not narrowed for one that is not."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        right: aligned to the right, as numbers are.
        least: characters below which it is not narrowed; 0 if it is shown whole or not at all.
        rank: 0 if it is always shown; the highest rank is left out first.
    """

    name: str
    right: bool = False
    least: int = 0
    rank: int = 0


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return the heading and a line for each row, escaped; at most `width` characters wide if there are so many."""
    from rich.cells import cell_len  # late: `--json` and `--help` need no rich

    shown = [[printable(text) for text in row] for row in rows]
    table = [[column.name for column in columns], *shown]
    widths = [max(cell_len(row[place]) for row in table) for place in range(len(columns))]
    used = [place for place in range(len(columns)) if not columns[place].rank or any(row[place] for row in shown)]
    if width is not None:
        used = _fitting(columns, widths, used, width)
        _narrow(columns, widths, used, width)
    return [
        GAP.join(_cell(row[place], widths[place], right=columns[place].right) for place in used).rstrip()
        for row in table
    ]


def _least(column: Column, width: int) -> int:
    return min(width, column.least) if column.least else width


def _fitting(columns: Sequence[Column], widths: Sequence[int], used: list[int], width: int) -> list[int]:
    """Return the columns for which there is room beside the most important ones, which are not narrowed for others."""

    def room(place: int) -> int:
        column, natural = columns[place], widths[place]
        return _least(column, natural) if column.rank else min(natural, max(column.least, COMFORTABLE))

    while sum(room(place) + len(GAP) for place in used) - len(GAP) > width:
        most = max(used, key=lambda place: (columns[place].rank, place))
        if not columns[most].rank:
            break
        used = [place for place in used if place != most]
    return used


def _narrow(columns: Sequence[Column], widths: list[int], used: Sequence[int], width: int) -> None:
    over = sum(widths[place] + len(GAP) for place in used) - len(GAP) - width
    while over > 0:
        spare = {place: widths[place] - _least(columns[place], widths[place]) for place in used}
        widest = max(spare, key=lambda place: (spare[place] > 0, widths[place]))
        if spare[widest] <= 0:
            return
        widths[widest] -= 1
        over -= 1


def _cell(text: str, width: int, *, right: bool) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        return f"{set_cell_size(text, width - 1)}\u2026"
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding


def print_fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal; whole lines where there is none."""
    for line in lay_out(columns, rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
        echo(line)
