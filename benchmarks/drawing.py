"""Charts for the pages, as SVG of shapes and text alone: bars of one figure, and lines over a scale of powers of ten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 46
COLOURS = ("#1f6f8b", "#c2571a", "#5b7f2b", "#7a4d8c")
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}.grid{stroke:#ddd}"
    ".line{fill:none;stroke-width:2}.ground{fill:#fff}</style>"
)


def bars(title: str, unit: str, values: Sequence[tuple[str, float]]) -> str:
    """Return one bar for each value, from left to right.

    Args:
        unit: behind each figure.
    """
    most = max(value for _, value in values) or 1.0
    step = (WIDTH - LEFT - RIGHT) / len(values)
    parts = []
    for number, (name, value) in enumerate(values):
        height = (HEIGHT - TOP - BOTTOM) * value / most
        x, y = LEFT + number * step + step * 0.15, HEIGHT - BOTTOM - height
        colour = COLOURS[0] if number == 0 else "#9aa5ab"
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" height="{height:.1f}" fill="{colour}"/>')
        middle = x + step * 0.35
        parts.append(_text(middle, y - 6, f"{value:.3g}{unit}", "middle"))
        parts.append(_text(middle, HEIGHT - BOTTOM + 20, name, "middle"))
    return _whole(title, parts)


def lines(
    title: str, below: str, unit: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, most: float = 0.0
) -> str:
    """Return a line through each series' points; the lower scale has equal room for each power of ten.

    Args:
        below: what the lower scale is.
        unit: of the left scale.
        most: end of the left scale; 0 for the largest value.
    """
    xs = sorted({x for _, points in series for x, _ in points})
    low, high = math.log10(xs[0]), math.log10(xs[-1])
    most = most or max(y for _, points in series for _, y in points) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low) if high > low else 0.5
        room = HEIGHT - TOP - BOTTOM
        return LEFT + across * (WIDTH - LEFT - RIGHT - 130), HEIGHT - BOTTOM - room * min(y / most, 1.0)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(xs[0], most * share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT - 130}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{most * share:.3g}{unit}", "end"))
    parts += [_text(place(x, 0)[0], HEIGHT - BOTTOM + 18, f"{x:,.0f}", "middle") for x in xs]
    parts.append(_text((LEFT + WIDTH - RIGHT - 130) / 2, HEIGHT - 6, below, "middle"))
    for number, (name, points) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        y = TOP + 20 * number + 8
        parts.append(f'<rect x="{WIDTH - 140}" y="{y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(WIDTH - 122, y + 2, name, "start"))
    return _whole(title, parts)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{classes}>{escape(text)}</text>'


def _whole(title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    ground = f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>'
    return "\n".join([head, STYLE, ground, _text(LEFT, 22, title, "start", "title"), *parts, "</svg>", ""])
