"""The text of the line that says what a caller waits for."""

from __future__ import annotations

import pytest

from atoll.sdk.display.words import Waiting, duration, fit, text, width


@pytest.mark.parametrize(
    ("calls", "line"),
    [
        ([], ""),
        ([Waiting("running", "train", 40.0)], "running train · 1 min 00 s"),
        ([Waiting("waiting", "3", 95.0)], "waiting for a free slot · 3 before this call · 5 s"),
        ([Waiting("waiting", "0", 95.0)], "waiting for a free slot · next in line · 5 s"),
        ([Waiting("building", "Installing numpy", 99.5)], "building · Installing numpy · 0 s"),
        ([Waiting("starting", "", 98.0)], "starting a worker · 2 s"),
        (
            [Waiting("running", "f", 90.0), Waiting("waiting", "0", 80.0), Waiting("running", "g", 99.0)],
            "3 calls: 2 running, 1 waiting · 20 s",
        ),
        (
            [
                Waiting("running", "f", 97.0),
                Waiting("waiting", "one: 1 runs", 98.0),
                Waiting("waiting", "one: 1 runs", 98.0),
            ],
            "3 calls: 1 running, 2 waiting · one: 1 runs · 3 s",
        ),
        (
            [Waiting("waiting", "2 CPUs held by train (88b2c1, 12 min)", 99.0)],
            "waiting · 2 CPUs held by train (88b2c1, 12 min) · 1 s",
        ),
        ([Waiting("running", "train", 98.0, 1400 << 20)], "running train · 2 s · 1.4 GiB"),
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
        for detail in ("x" * 200, "\u6f22\u5b57" * 100, "e\u0301" * 200):
            line = text([Waiting("building", detail, 0.0)], 5.0, columns)
            assert width(line) <= max(columns - 1, 0)
            assert columns < 30 or line.endswith("\u2026 \u00b7 5 s")


def test_what_comes_from_elsewhere_cannot_move_the_cursor() -> None:
    """Control characters in a builder's line or a function's name are shown as escapes; white space is one space."""
    assert fit("a\x1b[2Jb\r\n\tc\x07\x9bd", "", 80) == "a\\x1b[2Jb c\\x07\\x9bd"
