"""Charts as SVG, made here: shapes and classes alone, since the page's policy forbids styles inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for share in (0.0, 0.5, 1.0):
        y = _TOP + room * (1 - share)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, WIDTH, y, y))
        text = words(most * share)
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, text))
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


def meter(share: float) -> Markup:
    """Return a bar that is filled by a share from 0 to 1; the number stands beside it."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="fill-ground" width="100" height="8"/><rect class="fill-ok" width="{:.2f}" height="8"/></svg>'
    ).format(filled)
