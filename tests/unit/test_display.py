"""Parts of the display without a terminal: the bar of `map`, whole lines, few lines, the choice of the display."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import CallTimeout, EnvironmentBuildError
from atoll.sdk.display import call_lines, mode, parallel, usage, words
from atoll.sdk.display.live_line import LiveLine
from atoll.sdk.display.map_bar import Counts, MapBar, text, total_of
from atoll.sdk.display.output import CallerStreams
from atoll.sdk.display.parallel import WholeLines
from atoll.sdk.display.usage import Ran, Usage


@pytest.mark.parametrize(
    ("counts", "left", "columns", "line"),
    [
        (Counts(143, 1, 2, 200), 12.0, 70, "143/200 ▕█████████████████▏      ▏ 2 running · 1 failed · 12 s left"),
        (Counts(0, 0, 2, 200), None, 60, "0/200 ▕                        ▏ 2 running · 3 s"),
        (Counts(200, 0, 0, 200), 0.0, 60, "200/200 ▕████████████████████████▏ 0 running · 0 s left"),
        (Counts(5, 0, 1, 20), 9.0, 40, "5/20 ▕██▊        ▏ 1 running · 9 s left"),
        (Counts(5, 2, 1, 20), 9.0, 40, "5/20 ▕███         ▏ 2 failed · 9 s left"),
        (Counts(5, 0, 1, 20), 9.0, 21, "5/20 ▕█   ▏ 9 s left"),
        (Counts(5, 0, 1, 20), 9.0, 12, "5/20 9 s l…"),
        (Counts(5, 1, 2), None, 70, "5 done · 2 running · 1 failed · 3 s"),
        (Counts(7, 0, 1, 5), 0.0, 30, "7/5 ▕██████████████▏ 0 s left"),
    ],
)
def test_the_bar_fits(counts: Counts, left: float | None, columns: int, line: str) -> None:
    """It has numbers, a bar as wide as there is room, and the time that remains; least important parts go first."""
    shown = text("", counts, 3.0, left, columns)
    assert shown == line
    assert words.width(shown) < columns


def test_a_title_is_one_printable_text() -> None:
    """Control characters are escapes, and a long title is cut."""
    shown = text("a\x1b[2J\n" + "b" * 200, Counts(1, 0, 1, 2), 1.0, None, 60)
    assert shown.startswith("a\\x1b[2J bbb")
    assert shown.isprintable()
    assert words.width(shown) < 60


class Sized:
    def __len__(self) -> int:
        raise RuntimeError("no length")


@pytest.mark.parametrize(
    ("inputs", "total"),
    [
        (([1, 2, 3],), 3),
        ((range(5), [1, 2]), 2),
        ((x for x in "ab"), -1),
        (([1, 2], (x for x in "a")), 2),
        ((Sized(),), -1),
        ((iter([1, 2]),), 2),
    ],
)
def test_the_number_of_calls_is_known_before(inputs: Any, total: int) -> None:
    """It is the shortest length that is known; an input without one, or whose length fails, is read all the same."""
    assert total_of(*(inputs if isinstance(inputs, tuple) else (inputs,))) == total


def test_lines_of_parallel_calls_are_whole() -> None:
    """An end of a line is waited for; what is left is a line too; of a bar the last state is shown."""
    lines = WholeLines("88b2c1d4-0123", colours=False)
    assert lines.take("stdout", b"one\ntw") == b"88b2c1d4 | one\n"
    assert lines.take("stderr", b"err\n") == b"88b2c1d4 | err\n"
    assert lines.take("stdout", b"o\n 10%\r 20%\r 30%\r\nrest") == b"88b2c1d4 | two\n88b2c1d4 |  30%\n"
    assert lines.rest() == [("stdout", b"88b2c1d4 | rest\n")]
    assert lines.rest() == []
    coloured = WholeLines("88b2c1d4", colours=True)
    assert coloured.take("stdout", b"a\n") == b"\x1b[2m88b2c1d4 |\x1b[22m a\n"


def test_pipes_get_the_exact_bytes_in_whole_lines() -> None:
    """Without a terminal nothing is added or taken, and a line without an end is bounded."""
    lines = WholeLines("", colours=False)
    assert lines.take("stdout", b"a\r\n\xff b\n10%\r") == b"a\r\n\xff b\n"
    assert lines.take("stdout", b"20%\r") == b""
    assert lines.rest() == [("stdout", b"10%\r20%\r")]
    much = b"x" * (parallel.MOST_HELD + 1)
    assert lines.take("stdout", much) == much


def test_lines_that_stay_are_few() -> None:
    """Ten at once, then one in ten seconds, which tells how many were left out."""
    budget = call_lines.Budget()
    assert [budget.take(1000.0) for _ in range(12)] == [0] * call_lines.MOST + [None, None]
    assert budget.take(1000.0 + call_lines.EVERY_SECONDS) == 2
    assert budget.take(1000.0 + call_lines.EVERY_SECONDS) is None


def test_a_line_that_stays_names_reason_and_peak() -> None:
    """Parts that are not known are left out; a function's name has no place of its definition."""
    parts = words.ended("main.<locals>.train", 42.0, "88b2c1d4-1", failed=False, peak_bytes=687 << 20, more=3)
    assert parts == ["✓ train", "42 s", "peak 687 MiB", "id 88b2c1d4", "3 more ended before"]
    assert words.ended("train", 0.62, "", failed=True, reason="timed out") == ["✗ train", "timed out", "0.6 s"]
    waits = words.ended("f", 0.012, "", failed=False, built_seconds=4.2, waited_seconds=0.9)
    assert waits == ["✓ f", "12 ms", "built 4 s"]
    assert words.ended("f", 3.0, "", failed=False, waited_seconds=61.0) == ["✓ f", "3.0 s", "waited 1 min 01 s"]
    assert words.fit_parts(parts, 30) == "✓ train · 42 s · peak 687 MiB"
    assert words.fit_parts(["x" * 50, "42 s"], 20) == "x" * 18 + "…"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_display_follows_the_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line is drawn on a terminal whose standard output is one too or a file; a pipe's reader may print there too."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("ATOLL_DISPLAY", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert mode.current() == mode.LIVE
    with open(tmp_path / "out", "w") as file, open(os.devnull, "w") as null:
        for stream in (file, null):
            monkeypatch.setattr(sys, "stdout", stream)
            assert mode.current() == mode.LIVE
    read, write = os.pipe()
    with open(write, "w") as pipe:
        os.close(read)
        monkeypatch.setattr(sys, "stdout", pipe)
        assert mode.current() == mode.PIPE
    monkeypatch.setattr(sys, "stdout", Terminal())
    for name, value, found in (("TERM", "dumb", mode.LINES), ("ATOLL_DISPLAY", "plain", mode.LINES)):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert mode.current() == found
    monkeypatch.setenv("ATOLL_DISPLAY", "none")
    assert mode.current() == mode.NONE
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setenv("ATOLL_DISPLAY", "auto")
    assert mode.current() == mode.PIPE


def test_a_wrong_display_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ATOLL_DISPLAY` with another word is one warning of a process, however many calls it makes, from any line."""
    monkeypatch.setattr(mode, "_chosen", "")
    monkeypatch.setattr(mode, "_refused", set())
    monkeypatch.setenv("ATOLL_DISPLAY", "foo")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mode.current()
        mode.current()
    assert [str(one.message) for one in told] == ["`ATOLL_DISPLAY` is `foo`; there are auto, plain, none"]


def test_the_command_line_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`choose` wins over the variable; another word is refused."""
    monkeypatch.setattr(mode, "_chosen", "")
    monkeypatch.setattr(mode, "verbose", False)
    monkeypatch.setenv("ATOLL_DISPLAY", "auto")
    mode.choose("none")
    assert mode.current() == mode.NONE
    mode.choose(more=True)
    assert (mode.current(), mode.verbose) == (mode.PIPE, True)
    with pytest.raises(ValueError, match="there are auto, plain, none"):
        mode.choose("loud")


def test_numbers_of_the_daemon_are_checked() -> None:
    """A row that is none is left out; the peak is the most that was seen."""
    usage = Usage()
    for row in ({"call": 3}, {"call": "a", "memory_bytes": "much"}, {"call": "b", "memory_bytes": -1}):
        usage._note(row)
    usage._note({"call": "c", "memory_bytes": 10, "peak_bytes": 30})
    usage._note({"call": "c", "memory_bytes": 20, "peak_bytes": None})
    assert usage._known == {"c": (20, 30)}
    assert (usage.peak("c"), usage.peak("c")) == (30, 0)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_line_that_another_call_has_begun_is_ended(monkeypatch: pytest.MonkeyPatch, on_terminal: bool) -> None:
    """It was alone by then; on a terminal its line ends before the other's. A pipe gets the exact bytes."""
    out = Terminal() if on_terminal else io.StringIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, out)
    for name, value in (("TERM", "xterm"), ("NO_COLOR", "1"), ("ATOLL_DISPLAY", "auto")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "active", set())  # a test before this one may have a call that still ends
    first = CallerStreams("aaaaaaaa-1", "first")
    first.stdout(b"loading")
    second = CallerStreams("bbbbbbbb-1", "second")
    second.stdout(b"line\n")
    second.stdout(b"another\n")
    first.stdout(b"done\n")
    for one in (first, second):
        one.end_lines()
    shown = "loading\nbbbbbbbb | line\nbbbbbbbb | another\naaaaaaaa | done\n"
    assert out.getvalue() == (shown if on_terminal else "loadingline\nanother\ndone\n")


def test_bars_of_two_maps_share_the_line() -> None:
    """Each has its share of the columns, and none is cut; one alone has all of them."""
    line, counts = LiveLine(), Counts(5, 1, 2, 20)
    for key in (1, 2):
        line._bars[key] = lambda now, columns: text("batch", counts, 3.0, 9.0, columns)
    shown, _ = line._text(0.0, 80)
    assert shown == "  ".join(["batch 5/20 ▕████            ▏ 9 s left"] * 2)
    line._bars[2] = lambda now, columns: ""
    assert line._text(0.0, 80)[0].endswith("2 running · 1 failed · 9 s left")


def test_an_interrupt_of_a_map_fails_no_call(capsys: pytest.CaptureFixture[str]) -> None:
    """The calls that it ends are not counted; a long title leaves room for the numbers."""
    counts = [Counts(5, 1, 3, 20)]
    bar = MapBar("score", "a long title " * 9, lambda: counts[0], mode.LINES)
    bar.interrupted()
    counts[0] = Counts(8, 4, 0, 20)
    bar.end("interrupted")
    assert capsys.readouterr().err.startswith("✗ a long title a long title… · 5 of 20 calls · 1 failed · interrupted")


def test_the_daemon_is_asked_of_calls_that_have_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that only waited has none; one whose build was long has; many failures and failed builds ask nothing."""
    asked: list[str] = []
    ran = Ran(0.5, 8.0, 20 << 20)

    def record(self: Usage, call: str, seconds: float, most_seconds: float) -> Ran:
        asked.append(call)
        return ran

    monkeypatch.setattr(Usage, "record", record)
    monkeypatch.setattr(usage, "usage", Usage())
    monkeypatch.setattr(call_lines, "budget", call_lines.Budget())
    monkeypatch.setattr(mode, "_chosen", "plain")
    lines: list[str] = []

    def end(call: str, *, failed: bool, error: BaseException | None = None, built_seconds: float = 0.0) -> None:
        call_lines.tell(lines.append, "f", call, 8.5, failed=failed, error=error, built_seconds=built_seconds)

    end("waited", failed=False)
    assert (lines, asked) == ([], ["waited"])
    end("built", failed=False, built_seconds=7.5)
    end("nothing", failed=True, error=EnvironmentBuildError("no such package"))
    end("late", failed=True, error=CallTimeout("late"))
    assert lines == [
        "✓ f · 0.5 s · built 7 s · peak 20 MiB · id built",
        "✗ f · 8.5 s · id nothing",
        "✗ f · timed out · 0.5 s · waited 8 s · peak 20 MiB · id late",
    ]
    for number in range(100):
        end(f"many{number}", failed=True)
    assert len(lines) == call_lines.MOST
    assert len(asked) == call_lines.MOST
