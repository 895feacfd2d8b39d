"""A program on a pseudo terminal, its screen as an emulator (`pyte`) sees it, and that screen as text and as SVG."""

from __future__ import annotations

import contextlib
import fcntl
import html
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyte

from .waiting import PATIENCE_SECONDS

_COLOURS = {
    "default": "#d8dee9", "black": "#3b4252", "red": "#bf616a", "green": "#a3be8c", "brown": "#ebcb8b",
    "blue": "#81a1c1", "magenta": "#b48ead", "cyan": "#88c0d0", "white": "#e5e9f0",
}  # fmt: skip
_DIM = "#8f98a8"
_UNITS = r"ms|s|min|h|B|KiB|MiB|GiB"
_VARYING = (
    (re.compile(r" · waited \d+ (s|min \d+ s)\b"), ""),  # for a worker, on a busy machine
    (re.compile(r"(\brunning \w+ · \d+ s) · [\d.]+ [KMG]?i?B\b"), r"\1"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{12})?\b"), "IDIDIDID"),
    (re.compile(rf"\b\d+(\.\d+)? ({_UNITS})\b( \d\d ({_UNITS})\b)?"), r"0 \2"),
    (re.compile(r"\b\d+/(\d+)"), r"0/\1"),
    (re.compile(r"▕[█▏▎▍▌▋▊▉ ]*▏"), "▕█▏"),
    (re.compile(r"\b[1-9]\d* running\b"), "0 running"),
    (re.compile(r"(▏.*?)\b\d+ failed"), r"\g<1>0 failed"),
    (re.compile(r" +\d+%\|.*?\|"), " 0%|"),  # tqdm
    (re.compile(r"\[[^]]*(it/s|s/it)\]"), "[]"),
    (re.compile(r"\b(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\b"), "00:00:00"),
    (re.compile(r"\w*…"), "…"),
    (re.compile(r"^daemon .*\nmachine .*\n", re.MULTILINE), "daemon\nmachine\n"),
    (re.compile(r"^(machine type .*\n)(\S.*\n)+", re.MULTILINE), r"\1"),
    (re.compile(r"^(s\d+ .*\n)+", re.MULTILINE), "s0\n"),
    (re.compile(r"(\S)  +(?=\S)"), r"\1  "),  # columns
    (re.compile(r" +$", re.MULTILINE), ""),
)


class _Screen(pyte.Screen):
    """A screen that remembers faint text, which pyte does not know, as italics."""

    def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
        super().select_graphic_rendition(
            *(3 if one == 2 else 23 if one == 22 else one for one in attributes), **options
        )


class TerminalProgram:
    """A program that runs on a terminal of its own.

    Args:
        redirect: descriptors of the program that are files or pipes instead, by number.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        columns: int = 80,
        rows: int = 24,
        cwd: str | None = None,
        redirect: Mapping[int, int] | None = None,
    ) -> None:
        self.screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self._main, other = pty.openpty()
        self.resize(columns, rows)
        streams = {number: (redirect or {}).get(number, other) for number in range(3)}
        self._child = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            stdin=other,
            stdout=streams[1],
            stderr=streams[2],
            env=dict(env),
            cwd=cwd,
        )
        os.close(other)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window; the program gets SIGWINCH."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys: `\\x03` is Ctrl-C."""
        os.write(self._main, keys.encode())

    @property
    def text(self) -> str:
        """The screen's lines, without what is empty at the end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip() + "\n"

    def until(self, shown: str | Callable[[str], Any]) -> str:
        """Read until the screen shows a text (a regular expression); return the screen."""
        found = shown if callable(shown) else lambda text: re.search(shown, text)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not found(self.text):
            assert self._read(deadline), f"not shown: {shown}\n{self.text}"
        return self.text

    def finish(self) -> int:
        """Read to the end; return the program's status."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(deadline):
            pass
        return self._child.wait(PATIENCE_SECONDS)

    def _read(self, deadline: float) -> bool:
        if not select.select([self._main], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise AssertionError(f"the program prints nothing more\n{self.text}")
        try:
            data = os.read(self._main, 1 << 16)
        except OSError:
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)

    def close(self) -> None:
        """End the program, if it still runs."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)
            self._child.wait()
        os.close(self._main)

    @property
    def is_restored(self) -> bool:
        """Whether lines wrap and the cursor is visible, as before the program."""
        return pyte.modes.DECAWM in self.screen.mode and not self.screen.cursor.hidden


def normalized(text: str) -> str:
    """Return a screen without the parts that differ from run to run: times, sizes, ids, lengths of bars."""
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    return text


def svg(screen: pyte.Screen, title: str) -> str:
    """Return a screen as an image that holds its text."""
    lines = max((number for number, line in enumerate(screen.display) if line.strip()), default=0) + 1
    wide, high, edge = 8.4, 20, 14
    width, height = screen.columns * wide + 2 * edge, lines * high + 2 * edge + 20
    font = "font-family='ui-monospace,SFMono-Regular,Menlo,Consolas,monospace' font-size='14'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' role='img' {font}>",
        f"<title>{html.escape(title)}</title>",
        f"<rect width='{width:g}' height='{height:g}' rx='8' fill='#2e3440'/>",
        *(f"<circle cx='{edge + 6 + 18 * n}' cy='14' r='5' fill='#4c566a'/>" for n in range(3)),
    ]
    for row in range(lines):
        y = edge + 34 + row * high
        spans = "".join(
            f"<tspan x='{edge + start * wide:g}'{style}>{html.escape(text)}</tspan>"
            for start, style, text in _runs(screen, row)
        )
        parts.append(f"<text y='{y}' xml:space='preserve' fill='{_COLOURS['default']}'>{spans}</text>")
    return "\n".join([*parts, "</svg>", ""])


def _runs(screen: pyte.Screen, row: int) -> list[tuple[int, str, str]]:
    """Return pieces of a row with the same style."""
    runs: list[tuple[int, str, str]] = []
    last = len(screen.display[row].rstrip())
    for column in range(last):
        cell = screen.buffer[row][column]
        colour = _DIM if cell.italics and cell.fg == "default" else _COLOURS.get(cell.fg, f"#{cell.fg}")
        style = "" if colour == _COLOURS["default"] else f" fill='{colour}'"
        style += " font-weight='bold'" if cell.bold else ""
        if runs and runs[-1][1] == style:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + cell.data)
        else:
            runs.append((column, style, cell.data))
    return runs


def text_of(image: str) -> str:
    """Return the text in an image that `svg` has made."""
    rows = re.findall(r"<text [^>]*>(.*?)</text>", image)
    lines = [html.unescape(re.sub(r"<[^>]*>", "", row)).rstrip() for row in rows]
    return "\n".join(lines).rstrip() + "\n"
