"""Plots of usage in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll.model.figures import Figures
from atoll.terminal_text import cell

LEAST_COLUMNS = 60
MOST_COLUMNS = 100
ROWS = 12
MOST_BARS = 8
MOST_NAME = 24


def calls_by_day(days: Sequence[Figures], columns: int, *, colours: bool) -> str:
    """Return a plot of the calls of each day, failed ones apart."""
    plot = _plot("calls by day", columns, ROWS)
    shown = days[-max(7, columns // 4) :]
    labels = [one.key[5:] for one in shown]
    marks = ["█", "█" if colours else "░"]
    good, failed = [one.calls - one.failed for one in shown], [one.failed for one in shown]
    plot.stacked_bar(labels, [good, failed], labels=["ok", "failed"], marker=marks, color=["green", "red"], width=0.6)
    return _text(plot, colours)


def time_by(groups: Sequence[Figures], columns: int, *, colours: bool) -> str:
    """Return a plot of the time of the groups that took most."""
    shown = [one for one in groups if one.wall_seconds > 0][:MOST_BARS]
    if not shown:
        return ""
    most = max(one.wall_seconds for one in shown)
    size, unit = next((pair for pair in ((3600, "hours"), (60, "minutes")) if most >= 2 * pair[0]), (1, "seconds"))
    plot = _plot(f"time in workers, {unit}", columns, 2 * len(shown) + 4)
    names = [cell(one.key or "none", MOST_NAME) for one in reversed(shown)]
    values = [one.wall_seconds / size for one in reversed(shown)]
    plot.bar(names, values, orientation="horizontal", color="blue", width=0.4)
    return _text(plot, colours)


def _plot(title: str, columns: int, rows: int) -> Any:
    import plotext  # slow to import, and for few

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.title(title)
    plotext.plotsize(min(columns, MOST_COLUMNS), rows)
    return plotext


def _text(plot: Any, colours: bool) -> str:
    text = str(plot.build()).rstrip("\n")
    return text if colours else str(plot.uncolorize(text))
