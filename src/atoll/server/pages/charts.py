"""Charts as SVG, made here: shapes and classes alone, since the page's policy forbids styles inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log10

from markupsafe import Markup

from atoll.model.figures import Figures
from atoll.terminal_text import cell

WIDTH, HEIGHT = 560, 170
_LEFT, _BOTTOM, _TOP = 80, 22, 14  # room for labels of a narrow page, which are larger
_MARKS = 7
"""The most labels below the bars."""


def bars(
    days: Sequence[Figures],
    series: Sequence[tuple[str, str, Callable[[Figures], float]]],
    words: Callable[[float], str],
    *,
    title: str,
    whole: bool = False,
) -> Markup:
    """Return stacked bars, one for each day; each has its figures as a title.

    Args:
        series: class, name and value of each layer, the lowest first.
        words: a value as text.
        title: says in words what the chart shows, for those who do not see it.
        whole: values are whole numbers.
    """
    most = max((sum(value(one) for _, _, value in series) for one in days), default=0.0) or 1.0
    if whole:
        most = max(2, 2 * -(-int(most) // 2))  # so that the middle is a whole number
    step = (WIDTH - _LEFT) / max(len(days), 1)
    room = HEIGHT - _BOTTOM - _TOP
    parts = _frame(most, words, title)
    every = max(1, -(-len(days) // _MARKS))
    for number, one in enumerate(days):
        x, base = _LEFT + number * step, float(_TOP + room)
        said = ", ".join(f"{words(value(one))} {name}" for _, name, value in series)
        parts.append(Markup("<g><title>{}: {}</title>").format(cell(one.key), said))
        for kind, _, value in series:
            height = room * value(one) / most
            base -= height
            width = max(min(step * 0.75, 36.0), 0.5)
            parts.append(
                Markup('<rect class="fill-{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>').format(
                    kind, x + (step - width) / 2, base, width, height
                )
            )
        parts.append(Markup("</g>"))
        if number % every == 0:
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    x + step / 2, HEIGHT - 6, cell(one.key[5:])
                )
            )
    return Markup("").join([*parts, Markup("</svg>")])


def _frame(most: float, words: Callable[[float], str], title: str) -> list[Markup]:
    """Return the beginning of a chart: its lines at nothing, at the middle and at the top, with their values."""
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for share in (0.0, 0.5, 1.0):
        y = _TOP + (HEIGHT - _BOTTOM - _TOP) * (1 - share)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, WIDTH, y, y))
        text = words(most * share)
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, text))
    return parts


def meter(share: float) -> Markup:
    """Return a bar that is filled by a share from 0 to 1; the number stands beside it."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="fill-ground" width="100" height="8"/><rect class="fill-ok" width="{:.2f}" height="8"/></svg>'
    ).format(filled)


def curves(
    series: Sequence[tuple[str, str, Sequence[float | None]]],
    words: Callable[[float], str],
    ends: tuple[str, str],
    *,
    title: str,
    filled: bool = False,
    least: float = 0.0,
) -> Markup:
    """Return lines over time, each with as many points; the last value of each is its title.

    Args:
        series: class, name and values, oldest first; None where there is none.
        words: a value as text.
        ends: the first and the last moment as text.
        filled: the ground below the first line is filled.
        least: the top of the chart, at least.
    """
    known = [value for _, _, values in series for value in values if value is not None]
    most = max([_round_up(max(known, default=0.0)), least]) or 1.0
    room, base = HEIGHT - _BOTTOM - _TOP, HEIGHT - _BOTTOM
    parts = [*_frame(most, words, title)]
    for number, (kind, name, values) in enumerate(series):
        step = (WIDTH - _LEFT - 4) / max(len(values) - 1, 1)
        places = [
            None if value is None else (_LEFT + 2 + step * index, base - room * min(value / most, 1.0))
            for index, value in enumerate(values)
        ]
        last = next((value for value in reversed(values) if value is not None), None)
        said = f"{name}: {'none' if last is None else words(last)}"
        parts.append(Markup("<g><title>{}</title>").format(said))
        for run in _runs(places):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            if filled and not number and len(run) > 1:
                around = f"{run[0][0]:.1f},{base} {points} {run[-1][0]:.1f},{base}"
                parts.append(Markup('<polygon class="area-{}" points="{}"/>').format(kind, around))
            if len(run) == 1:
                x, y = run[0]
                parts.append(Markup('<circle class="fill-{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(kind, x, y))
            else:
                parts.append(Markup('<polyline class="line-{}" points="{}"/>').format(kind, points))
        parts.append(Markup("</g>"))
    for x, anchor, text in ((_LEFT, "start", ends[0]), (WIDTH - 4, "end", ends[1])):
        parts.append(Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, HEIGHT - 6, anchor, text))
    return Markup("").join([*parts, Markup("</svg>")])


def _runs(places: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Return the points without gaps between them."""
    found: list[list[tuple[float, float]]] = [[]]
    for place in places:
        if place is not None:
            found[-1].append(place)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10 and so on, in the value's order of magnitude."""
    if value <= 0:
        return 0.0
    scale = 10.0 ** floor(log10(value))
    return next(scale * step for step in (1, 2, 5, 10) if value <= scale * step * 1.0000001)
