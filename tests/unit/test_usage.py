"""`atoll usage`: sums of the records, plots, and a page that is whole, escaped and loads nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from atoll.cli import main
from atoll.cli.usage import command, page, plots
from atoll.daemon.records.database import Database
from atoll.host.local import LocalHost
from atoll.model import figures
from atoll.model.figures import Figures
from atoll.model.records import CallRecord

from ..conftest import find_tool

EVIL = "<script>alert(1)</script>\"'&\x1b[2J\u202e"
DISK = {"data_bytes": 3 << 30, "cache_bytes": 0}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "records")
    yield opened
    opened.close()


def record(number: int, function: str, seconds: float, **more: Any) -> CallRecord:
    at = 1_700_000_000.0 + 86400 * number
    return CallRecord(
        f"c{number}",
        function,
        "me",
        queued_at=at,
        started_at=at + 2,
        wall_seconds=seconds,
        cpu_seconds=seconds / 2,
        **more,
    )


def test_sums_are_those_of_the_records(database: Database) -> None:
    """Each key adds up to the same whole; other users' calls and earlier ones are not in it, refused ones are failures."""
    database.write([
        record(0, "train", 100.0, peak_bytes=5, gpus=2),
        record(1, "train", 50.0, outcome="error", peak_bytes=7),
        record(1, "score", 10.0, bytes_in=3, bytes_out=4),
        record(-5, "old", 1.0),
        CallRecord("r", "score", "me", queued_at=1_700_000_000.0, outcome="refused"),
        CallRecord("o", "train", "other", queued_at=1_700_000_000.0),
    ])  # fmt: skip
    rows = list(database.usage("me", 1_699_999_999.0, 100))
    train, score = figures.grouped(rows, "function")
    assert (train.key, train.calls, train.failed, train.wall_seconds, train.cpu_seconds) == ("train", 2, 1, 150.0, 75.0)
    assert (train.peak_bytes, train.gpu_seconds, train.queue_seconds) == (7, 200.0, 4.0)
    assert (score.calls, score.failed, score.moved_bytes, score.queue_seconds) == (2, 1, 7.0, 2.0)
    for key in figures.KEYS:
        groups = figures.grouped(rows, key, "me")
        assert sum(one.calls for one in groups) == 4
        assert sum(one.wall_seconds for one in groups) == figures.total(rows).wall_seconds == 160.0
    assert len(database.usage("me", 0.0, 2)) == 2


def test_records_of_an_earlier_version_get_the_new_column(tmp_path: Path) -> None:
    """A file without the number of GPUs is used on, and its calls count none."""
    first = Database(tmp_path)
    first.write([record(0, "f", 1.0)])
    first._connection.execute("ALTER TABLE calls DROP COLUMN gpus")
    first.close()
    second = Database(tmp_path)
    try:
        second.write([record(1, "f", 1.0, gpus=1)])
        assert sorted(one.gpus for one in second.list("me", {}, 10)) == [0, 1]
    finally:
        second.close()


def test_days_have_no_gaps() -> None:
    """Days without calls are there too, days of wrong clocks are not, and a long time is bounded."""
    row = {"outcome": "ok", "calls": 1, **dict.fromkeys(("wall_seconds", "cpu_seconds", "queue_seconds"), 1.0)}
    row |= {"gpu_seconds": 0.0, "peak_bytes": 1, "moved_bytes": 0.0}
    rows = [{**row, "day": day} for day in ("2026-01-30", "2026-02-02", "2999-01-01", "", "-4713-11-24")]
    assert [(one.key[5:], one.calls) for one in figures.daily(rows, "2026-02-03")] == [
        ("01-30", 1), ("01-31", 0), ("02-01", 0), ("02-02", 1), ("02-03", 0),
    ]  # fmt: skip
    assert figures.daily([], "2026-02-03") == []
    assert len(figures.daily([{**row, "day": "1999-01-01"}], "2026-02-03")) == figures.MOST_DAYS + 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.42, "0.42 s"), (42, "42 s"), (210, "3.5 min"), (7560, "2.1 h"), (1e6, "11.6 d")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    """The unit fits the size."""
    assert figures.duration(seconds) == text


class _Checked(HTMLParser):
    """Notes elements, addresses and handlers of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = set[str]()
        self.risky = list[str]()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.risky += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset") or name.startswith("on")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(name: str = EVIL) -> str:
    functions = [Figures(name, 3, 1, 10.0, 5.0, 1.0, 2.0, 1 << 20), *(Figures(f"f{n}", 1) for n in range(300))]
    days = [Figures("2026-01-01", 3, 1, 10.0, 5.0), Figures("2026-01-02")]
    return page.render(functions, days, functions[0], DISK, since=0.0, until=time.time())


def test_a_page_is_whole_and_loads_nothing() -> None:
    """A hostile name is text; no element, address or handler of the page asks for anything; charts are well-formed."""
    text = _page()
    seen = _Checked()
    seen.feed(text)
    seen.close()
    assert not seen.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert seen.risky == []
    assert "<script>alert(1)</script>\"'&\\x1b[2J\\u202e" in seen.text
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "101 more functions are not shown" in seen.text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) > 2
    for chart in charts:
        ET.fromstring(chart)
    first = ET.fromstring(charts[0])
    assert [one.text for one in first.iter("title")] == ["2026-01-01: 2 ok, 1 failed", "2026-01-02: 0 ok, 0 failed"]
    assert page.render([], [], Figures("all"), {}, since=0.0, until=1.0).count("No calls") == 1


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    """A real browser builds the document as it was meant: nothing of a hostile name became an element, or ran."""
    browser = next(filter(None, map(find_tool, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium here")
    file = tmp_path / "page.html"
    file.write_text(_page("<img src=x onerror=\"document.title='owned'\">"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run([browser, *options, file.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    seen = _Checked()
    seen.feed(done.stdout)
    assert "<title>Atoll usage</title>" in done.stdout
    assert "img" not in seen.tags
    assert {"svg", "table", "dl"} <= seen.tags


@pytest.mark.parametrize("colours", [True, False])
def test_plots_are_as_wide_as_the_terminal(colours: bool) -> None:
    """Bars of days and of groups fit the columns; names are cut and clean, and without colours failures differ."""
    days = [Figures(f"2026-01-{day:02}", 5, 2) for day in range(1, 20)]
    groups = [
        Figures(EVIL * 5, 1, 0, 7200.0),
        Figures("short", 1, 0, 60.0),
        *(Figures(f"f{n}", 1, 0, 1.0) for n in range(20)),
    ]
    for text in (plots.calls_by_day(days, 80, colours=colours), plots.time_by(groups, 80, colours=colours)):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert plain.replace("\n", "").isprintable()
        assert max(map(len, plain.split("\n"))) <= 80
        assert ("\x1b" in text) == colours
    if not colours:
        assert "░░ failed" in plots.calls_by_day(days, 80, colours=False)
    assert "<script>alert(1)</scrip\u2026" in plots.time_by(groups, 80, colours=False)
    assert plots.time_by([Figures("f")], 80, colours=colours) == ""


def test_the_command_prints_clean_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In a pipe there is a table; `--json` has the same figures, `--html` a file; a wrong time is wrong usage."""
    row = {
        "function": EVIL, "day": time.strftime("%Y-%m-%d"), "environment": "e", "outcome": "ok", "calls": 2, "wall_seconds": 3.0,
        "cpu_seconds": 1.0, "queue_seconds": 0.0, "peak_bytes": 1 << 20, "moved_bytes": 5.0, "gpu_seconds": 0.0,
    }  # fmt: skip
    monkeypatch.setattr(
        LocalHost, "request", lambda self, name, arguments, *_: {"usage": [row, {**row, "function": "g"}]}
    )
    monkeypatch.setattr(command, "disk_bytes", lambda _: DISK)
    assert main.run(["usage"]) == 0
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert "all" in shown
    assert "disk  data 3.0 GiB  cache 0 B" in shown
    assert main.run(["usage", "--by", "day", "--json", "--html", str(tmp_path / "u.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["calls"] for one in found["rows"]] == [4]
    assert (found["total"]["wall_seconds"], found["disk"]) == (6.0, DISK)
    assert (tmp_path / "u.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["u.html"]
    for columns, plotted in (("80", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main.run(["usage"]) == 0
        shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert ("time in workers" in shown) == plotted
        assert shown.replace("\n", "").isprintable()
    monkeypatch.undo()
    assert main.run(["usage", "--since", "yesterday"]) == 2
    assert main.run(["usage", "--by", "weather"]) == 2
