"""A page of usage: one HTML file with charts as SVG, light and dark, that loads nothing.

Names come from functions. Each text is made printable and escaped, and a policy forbids scripts and all that is not in
the file.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

from atoll.cli.tables import date, size
from atoll.model.figures import Figures, duration
from atoll.terminal_text import cell

WIDTH, HEIGHT = 720, 180
_LEFT, _BOTTOM, _TOP = 56, 22, 8
MOST_ROWS = 200
MOST_NAME = 80

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --card: #fff; --ink: #1c1c1a; --soft: #6d6c66; --line: #e4e3dd;
  --ok: #2a7de1; --bad: #d9483b; --cpu: #7a5cd0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161614; --card: #1f1f1c; --ink: #ecebe6; --soft: #a3a29a; --line: #36352f;
    --ok: #5aa2f0; --bad: #f07a6c; --cpu: #a58cf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .5rem; }
p { color: var(--soft); margin: .25rem 0 1.5rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .ok { fill: var(--ok); } .bad { fill: var(--bad); } .cpu { fill: var(--cpu); }
.key { display: inline-block; width: .7em; height: .7em; border-radius: .15em; margin: 0 .35em 0 .9em; }
.key.ok { background: var(--ok); } .key.bad { background: var(--bad); } .key.cpu { background: var(--cpu); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
td.bar { width: 30%; } td.bar svg { height: .8rem; }
"""


def render(
    functions: Sequence[Figures],
    days: Sequence[Figures],
    whole: Figures,
    disk: Mapping[str, int],
    *,
    since: float,
    until: float,
) -> str:
    """Return the page.

    Args:
        functions: figures by function.
        days: figures by day, without gaps.
        whole: figures of all calls.
        disk: sizes, by names that end in `_bytes`.
    """
    tiles = [
        ("calls", f"{whole.calls:,}"),
        ("failed", f"{whole.failed:,}"),
        ("time in workers", duration(whole.wall_seconds)),
        ("computing", duration(whole.cpu_seconds)),
        *([("GPUs held", duration(whole.gpu_seconds))] if whole.gpu_seconds else []),
        ("peak memory", size(whole.peak_bytes)),
        ("on the disk", size(sum(disk.values()))),
    ]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Atoll usage</title><style>{_STYLE}</style></head><body>",
        f"<h1>Usage</h1><p>{_text(date(since))} to {_text(date(until))}</p>",
        "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in tiles) + "</dl>",
    ]
    if days:
        parts += [
            '<h2>Calls by day<span class="key ok"></span>ok<span class="key bad"></span>failed</h2>',
            _chart(days, [("ok", lambda one: one.calls - one.failed), ("bad", lambda one: one.failed)], _count),
            '<h2>Computing by day<span class="key cpu"></span>CPU</h2>',
            _chart(days, [("cpu", lambda one: one.cpu_seconds)], duration),
        ]
    parts += ["<h2>Functions</h2>", _functions(functions), "<h2>Disk</h2>", _disk(disk), "</body></html>\n"]
    return "\n".join(parts)


def _text(text: str, most: int = 200) -> str:
    return html.escape(cell(text, most))


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _chart(
    days: Sequence[Figures], series: Sequence[tuple[str, Callable[[Figures], float]]], words: Callable[[float], str]
) -> str:
    """Return a chart of stacked bars, one for each day."""
    most = max(sum(value(one) for _, value in series) for one in days) or 1.0
    if words is _count:
        most = max(2, 2 * -(-int(most) // 2))  # so that the middle is a whole number
    step = (WIDTH - _LEFT) / len(days)
    room = HEIGHT - _BOTTOM - _TOP
    lines = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="a bar for each day">']
    for share in (0.0, 0.5, 1.0):
        y = _TOP + room * (1 - share)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words(most * share)}</text>')
    every = max(1, -(-len(days) // 10))
    for number, one in enumerate(days):
        x, base = _LEFT + number * step, float(_TOP + room)
        said = ", ".join(f"{words(value(one))} {name.replace('bad', 'failed')}" for name, value in series)
        lines.append(f"<g><title>{_text(one.key)}: {said}</title>")
        for name, value in series:
            height = room * value(one) / most
            base -= height
            width = max(step * 0.75, 0.5)
            lines.append(
                f'<rect class="{name}" x="{x + step * 0.125:.2f}" y="{base:.2f}" width="{width:.2f}" '
                f'height="{height:.2f}"/>'
            )
        lines.append("</g>")
        if number % every == 0:
            lines.append(
                f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_text(one.key[5:])}</text>'
            )
    return "\n".join([*lines, "</svg>"])


def _bar(share: float, name: str) -> str:
    return f'<svg viewBox="0 0 100 8" preserveAspectRatio="none"><rect class="{name}" width="{100 * share:.2f}" height="8"/></svg>'


def _functions(functions: Sequence[Figures]) -> str:
    if not functions:
        return "<p>No calls in this time.</p>"
    most = max(one.wall_seconds for one in functions) or 1.0
    has_gpus = any(one.gpu_seconds for one in functions)
    names = ("function", "calls", "failed", "time", "", "CPU", "waited", "peak", *(("GPU",) if has_gpus else ()))
    rows = []
    for one in functions[:MOST_ROWS]:
        cells = [f"{one.calls:,}", f"{one.failed:,}" if one.failed else "", duration(one.wall_seconds)]
        more = [duration(one.cpu_seconds), duration(one.queue_seconds), size(one.peak_bytes)]
        more += [duration(one.gpu_seconds) if one.gpu_seconds else ""] if has_gpus else []
        middle = f'<td class="bar">{_bar(one.wall_seconds / most, "ok")}</td>'
        shown = "".join(f"<td>{text}</td>" for text in cells) + middle + "".join(f"<td>{text}</td>" for text in more)
        rows.append(f'<tr><td title="{_text(one.key, 400)}">{_text(one.key, MOST_NAME)}</td>{shown}</tr>')
    left_out = len(functions) - MOST_ROWS
    note = f"<p>{left_out:,} more functions are not shown.</p>" if left_out > 0 else ""
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>{note}'


def _disk(disk: Mapping[str, int]) -> str:
    most = max(disk.values(), default=0) or 1
    rows = "".join(
        f"<tr><td>{_text(name.removesuffix('_bytes'))}</td><td>{size(count)}</td>"
        f'<td class="bar">{_bar(count / most, "cpu")}</td></tr>'
        for name, count in disk.items()
    )
    return f'<div class="scroll"><table><tr><th>kept</th><th>size</th><th></th></tr>{rows}</table></div>'
