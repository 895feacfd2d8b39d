"""The bar that transfers show."""

from __future__ import annotations

import io
import re

import pytest

from atoll.storage.protocol.progress import ProgressLine, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def last_line(stream: io.StringIO) -> str:
    return stream.getvalue().split("\r")[-1].removesuffix("\x1b[K")


def test_a_transfer_shows_share_files_bytes_rate_and_what_is_left() -> None:
    """Half of the bytes in two seconds: a bar that is half full, the rate, and two seconds more."""
    stream, clock = Terminal(), Clock()
    line = ProgressLine("uploading", stream, clock)
    line.start(2000, 100 << 20)
    clock.now += 2
    line.advance(1200, 50 << 20)
    assert last_line(stream) == (
        "uploading [==========>         ]  50%  1,200/2,000 files  50.0/100.0 MiB  25.0 MiB/s  0:02 left"
    )
    clock.now += 2
    line.advance(800, 50 << 20)
    assert last_line(stream) == "uploading [====================] 100%  2,000/2,000 files  100.0/100.0 MiB  25.0 MiB/s"
    line.close()
    assert last_line(stream) == ""


def test_a_transfer_of_unknown_size_shows_what_has_come() -> None:
    """Without a total there is no bar, and still files, bytes and rate."""
    stream, clock = Terminal(), Clock()
    line = ProgressLine("downloading", stream, clock)
    clock.now += 1
    line.advance(3, 3 << 10)
    assert last_line(stream) == "downloading  3 files  3.0 KiB  3.0 KiB/s"


def test_the_bar_is_drawn_ten_times_a_second_at_most() -> None:
    """Many small files do not flood the terminal."""
    stream, clock = Terminal(), Clock()
    line = ProgressLine("uploading", stream, clock)
    line.start(1000, 1000)
    for _ in range(1000):
        clock.now += 0.001
        line.advance(1, 1)
    assert 9 <= stream.getvalue().count("\r") <= 11


def test_a_narrow_terminal_gets_a_line_that_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is shorter than the terminal is wide."""
    monkeypatch.setenv("COLUMNS", "40")
    stream, clock = Terminal(), Clock()
    line = ProgressLine("uploading", stream, clock)
    line.start(2000, 100 << 20)
    line.advance(1, 1)
    assert len(last_line(stream)) == 39


def test_more_than_was_announced_stays_at_the_end() -> None:
    """A file that grows while it is read does not push the bar over its end."""
    stream, clock = Terminal(), Clock()
    line = ProgressLine("uploading", stream, clock)
    line.start(1, 10)
    clock.now += 2
    line.advance(1, 25)
    assert "[====================] 100%" in last_line(stream)
    assert "10/10 B" in last_line(stream)


def test_nothing_is_drawn_where_no_terminal_is() -> None:
    """In a log there are no bars, but what must be said is."""
    stream = io.StringIO()
    line = ProgressLine("uploading", stream)
    line.start(1, 10)
    line.advance(1, 10)
    line.close()
    assert stream.getvalue() == ""
    line.say("waiting")
    assert stream.getvalue() == "atoll: waiting\n"


def test_what_is_said_does_not_stand_in_the_bar() -> None:
    """A message takes the bar away first, and has a line of its own."""
    stream = Terminal()
    line = ProgressLine("uploading", stream)
    line.start(1, 10)
    line.advance(0, 5)
    line.say("waiting")
    assert stream.getvalue().endswith("\r\x1b[Katoll: waiting\n")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**20, "1.5 MiB"), (5 * 2**50, "5120.0 TiB")],
)
def test_sizes_for_people(size: float, text: str) -> None:
    """Sizes are in units of 1024 bytes."""
    assert size_text(size) == text
    assert re.fullmatch(r"[\d.]+ \w+", text)
