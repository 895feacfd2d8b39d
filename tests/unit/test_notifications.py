"""Notifications: the command of the settings, the desktop's, and their failures, which are one line."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll import settings
from atoll.detached.rows import Row
from atoll.host import notifications
from atoll.host.notifications import Ended, tell
from atoll.keeper.main import Keeper
from atoll.settings import NotificationsSettings

from ..waiting import ended as process_ended

ENDED = Ended("c1-2", "train", "error", "ValueError: <b>no</b>\nFORGED \x1b[2J", 130.4, detached=True)


def command(*code: str, seconds: float = 60.0) -> NotificationsSettings:
    return NotificationsSettings((sys.executable, "-c", "\n".join(code)), seconds=seconds)


def test_a_command_has_the_call_as_json_and_variables(tmp_path: Path) -> None:
    """It reads one object, has a variable for each fact, and needs no shell."""
    out = tmp_path / "out"
    options = command(
        "import json, os, sys",
        "facts = json.load(sys.stdin)",
        "variables = {k: v for k, v in os.environ.items() if k.startswith('ATOLL_CALL_')}",
        f"open({str(out)!r}, 'w').write(json.dumps([facts, variables]))",
    )
    assert tell(options, ENDED) == ""
    facts, variables = json.loads(out.read_text())
    assert (facts["call"], facts["function"], facts["outcome"], facts["detached"]) == ("c1-2", "train", "error", True)
    assert facts["message"] == ENDED.message
    assert facts["title"] == "train ended: error"
    assert facts["text"].startswith("2 min, call c1-2\nValueError: <b>no</b>\\nFORGED \\x1b[2J")
    assert (variables["ATOLL_CALL_OUTCOME"], variables["ATOLL_CALL_DETACHED"]) == ("error", "1")


def test_texts_that_are_no_unicode_are_told_of(tmp_path: Path) -> None:
    """A lone surrogate in a message, which no variable can hold, is shown as its escape."""
    out = tmp_path / "out"
    options = command(
        "import json, os, sys",
        "message = json.load(sys.stdin)['message']",
        f"open({str(out)!r}, 'w').write(json.dumps([message, os.environ['ATOLL_CALL_MESSAGE']]))",
    )
    assert tell(options, Ended("c1-2", "f\udcff", "error", "ValueError: a\ud800b")) == ""
    assert json.loads(out.read_text()) == ["ValueError: a\\ud800b"] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (NotificationsSettings(("/nonexistent/notifier",)), "`/nonexistent/notifier` cannot be run: No such file"),
        (command("raise SystemExit('no\\x1b[2J route\\nmore')"), "exits with 1: no\\x1b[2J route"),
        (command("import os; os.close(0); raise SystemExit(3)"), "exits with 3"),
        (command("import sys; sys.stderr.write('x' * 5_000_000); raise SystemExit(2)"), "exits with 2: xxx"),
    ],
)
def test_a_failure_is_one_line(options: NotificationsSettings, words: str) -> None:
    """A command that is missing or fails is told of in one printable line, of bounded length."""
    found = tell(options, ENDED)
    assert words in found
    assert found.isprintable()
    assert len(found) < 500


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    """After `seconds` nothing of it is left, even where a child holds its pipes."""
    mark = tmp_path / "child"
    options = command(
        "import os, signal",
        "child = os.fork()",
        f"if child: open({str(mark)!r}, 'w').write(str(child))",
        "signal.pause()",
        seconds=2.0,
    )
    assert "took longer than 2 s" in tell(options, ENDED)
    assert process_ended(int(mark.read_text()))


def test_the_desktop_gets_text_that_is_neither_option_nor_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`notify-send` is found on the search path; names of functions cannot be its options, nor their errors markup."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no `notify-send` here" in tell(NotificationsSettings(), ENDED)
    program = tmp_path / "notify-send"
    program.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {tmp_path}/arguments\n")
    program.chmod(0o755)
    assert tell(NotificationsSettings(), Ended("c", "--icon=x", "error", "<img>&")) == ""
    arguments = (tmp_path / "arguments").read_text().split("\0")[:-1]
    assert arguments[2:] == ["--", "--icon=x ended: error", "0 s, call c\n&lt;img&gt;&amp;"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert notifications._desktop(ENDED)[-3:] == ["--", ENDED.title, ENDED.text]


def test_a_batch_is_told_of_once_until_it_goes_on(tmp_path: Path) -> None:
    """Last calls that end together are one notification; calls that are in no batch are one each."""
    out = tmp_path / "out"
    command = json.dumps([sys.executable, "-c", f"open({str(out)!r}, 'a').write('x')"])
    (tmp_path / "settings.toml").write_text(f"[notifications]\ncommand = {command}\n")
    counts = {"ok": 2, "running": 1}
    keeper: Any = Keeper.__new__(Keeper)
    keeper._options, keeper._changed, keeper._told = settings.load(tmp_path), threading.Condition(), set()
    keeper._store = SimpleNamespace(find=lambda user, call: Row(call, user), counts=lambda user, batch: counts)
    batch, alone = Row("c1", "me", batch="b"), Row("c2", "me")
    keeper._notify(batch)
    assert not out.exists()
    del counts["running"]
    for row in (batch, batch, alone, alone):
        keeper._notify(row)
    assert out.read_text() == "xxx"
