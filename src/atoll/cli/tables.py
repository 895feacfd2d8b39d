"""Output of the commands that list and show records: tables, JSON, sizes, ages, and errors of usage."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows as a table; only the column `requirements` wraps.

    Args:
        columns: names of the columns.
        rows: a text for each column.
        right: columns that are aligned to the right.
    """
    # Deferred: `--json` and `--help` need no rich.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        fold = column == "requirements"
        table.add_column(
            column,
            overflow="fold" if fold else "ellipsis",
            no_wrap=not fold,
            justify="right" if column in right else "left",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    width = None if sys.stdout.isatty() else 100_000  # whole lines for programs
    Console(width=width).print(table, crop=False)


def size(size_bytes: int) -> str:
    """Return a size for people: `512 B`, `12 MiB`, `1.5 GiB`."""
    number = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def age(moment: float) -> str:
    """Return the time since a moment (seconds since the epoch) for people: `3 min`."""
    seconds = max(0, int(time.time() - moment))
    for step, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= step:
            return f"{seconds // step} {unit}"
    return f"{seconds} s"


def wrong_usage(message: str) -> int:
    """Print an error of usage and return its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2
