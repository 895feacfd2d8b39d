"""The text of the line that says what a caller waits for."""

from __future__ import annotations

import io
import sys

import pytest

from atoll.sdk.display.live_line import Waiting, duration, fit, text, width
from atoll.sdk.display.output import CallerStreams


@pytest.mark.parametrize(
    ("calls", "line"),
    [
        ([], ""),
        ([Waiting("running", "train", 40.0)], "atoll: running train, 1 min 00 s"),
        ([Waiting("waiting", "3", 95.0)], "atoll: waiting for a free slot, 3 before this call, 5 s"),
        ([Waiting("waiting", "0", 95.0)], "atoll: waiting for a free slot, next in line, 5 s"),
        ([Waiting("building", "Installing numpy", 99.5)], "atoll: building the environment: Installing numpy, 0 s"),
        ([Waiting("starting", "", 98.0)], "atoll: starting a worker, 2 s"),
        (
            [Waiting("running", "f", 90.0), Waiting("waiting", "0", 80.0), Waiting("running", "g", 99.0)],
            "atoll: 3 calls: 2 running, 1 waiting for a free slot, 20 s",
        ),
        ([Waiting("waiting", "much", 100.0)], "atoll: waiting for a free slot, next in line, 0 s"),
    ],
)
def test_one_line_for_all_calls(calls: list[Waiting], line: str) -> None:
    """One call is described, several are counted by what they wait for; the time is that of the longest wait."""
    assert text(calls, 100.0, 100) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (61.0, "1 min 01 s"),
        (3599.0, "59 min 59 s"),
        (7380.0, "2 h 03 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    """Durations are whole and in words."""
    assert duration(seconds) == words


def test_the_line_is_narrower_than_the_terminal() -> None:
    """A long line loses the end of its text and keeps its time, whatever the width of its characters."""
    for columns in range(120):
        for detail in ("x" * 200, "\u6f22\u5b57" * 100, "e\u0301" * 100):
            line = text([Waiting("building", detail, 0.0)], 5.0, columns)
            assert width(line) <= max(columns - 1, 0)
            assert columns < 30 or line.endswith("\u2026, 5 s")


def test_what_comes_from_elsewhere_cannot_move_the_cursor() -> None:
    """Control characters in a builder's line or a function's name are shown as escapes; white space is one space."""
    assert fit("a\x1b[2Jb\r\n\tc\x07\x9bd", "", 80) == "a\\x1b[2Jb c\\x07\\x9bd"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_build_is_told_above_a_bar_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a progress bar, which has the last line, begin and end of a build have lines; without one, none has."""
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    lines = ("Building environment 1234", "Resolved 2 packages", "Built environment 1234 in 1 s")
    without = CallerStreams()
    for line in lines:
        without.progress(line)
    assert terminal.getvalue() == ""  # the live line shows it
    with tqdm(total=3, file=sys.stderr):
        beside = CallerStreams()
        for line in lines:
            beside.progress(line)
        assert beside.waits("building", "Resolved") is None
        shown = terminal.getvalue()
    assert "\ratoll: Building environment 1234\n" in shown
    assert "\ratoll: Built environment 1234 in 1 s\n" in shown
    assert "Resolved" not in shown
    assert shown.endswith("it/s]"), "the bar is drawn again below"
