"""Output of the commands that list and show records: tables, JSON, sizes, ages, and errors of usage."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from atoll.cli.terminal import echo, echo_json
from atoll.terminal_text import cell, printable

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    echo_json(json.dumps(value, indent=2))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    right: Sequence[str] = (),
    fold: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> None:
    """Print rows as a table, each on one line; cells are escaped, and cut on a terminal.

    Args:
        columns: names of the columns; no heading if all are empty.
        rows: a text for each column.
        title: a line above.
        right: columns that are aligned to the right.
        fold: columns that wrap and are not cut.
        styles: of the rows' first cells, such as `green`.
    """
    # Deferred: `--json` and `--help` need no rich.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        heading = Text(column, overflow="ellipsis", no_wrap=True)
        table.add_column(heading, overflow="fold", justify="right" if column in right else "left")
    for number, row in enumerate(rows):
        style = styles[number] if number < len(styles) else ""
        cells = []
        for column, text in zip(columns, row, strict=True):
            shown = cell(text) if terminal and column not in fold else printable(text)
            # not the column but the text refuses to wrap: rich then narrows the widest columns, not all of them
            cells.append(Text(shown) if column in fold else Text(shown, overflow="ellipsis", no_wrap=True))
        cells[0].style = style
        table.add_row(*cells)
    if title:
        echo(title)
    width = None if terminal else 100_000  # whole lines for programs
    Console(width=width).print(table, crop=False)


def size(size_bytes: int) -> str:
    """Return a size for people: `512 B`, `12 MiB`, `1.5 GiB`."""
    number = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def date(moment: float, pattern: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a moment (seconds since the epoch) as local time; a time that no calendar has, as a function may claim, in
    seconds."""
    try:
        return time.strftime(pattern, time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return f"{moment:.0f} s"


def age(moment: float) -> str:
    """Return the time since a moment (seconds since the epoch) for people: `3 min`."""
    seconds = max(0, int(time.time() - moment))
    for step, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= step:
            return f"{seconds // step} {unit}"
    return f"{seconds} s"


def wrong_usage(message: str) -> int:
    """Print an error of usage and return its exit status."""
    echo(f"error: {message}", error=True)
    return 2


def moment_of(text: str) -> float | None:
    """Return seconds since the epoch; None for a text that says no moment."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d|w)", text)
    if match is not None:
        return time.time() - float(match[1]) * _UNITS[match[2]]
    try:
        return dt.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        return None
