"""`atoll top`: its view driven by keys, with a daemon that is made up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from textual.widgets import DataTable, RichLog, Static

from atoll import errors
from atoll.cli.calls.machine_use import Snapshot, Use, bar, gpu_lines, heading
from atoll.cli.calls.top_view import Output, Question, Stacks, TopView

if TYPE_CHECKING:
    from textual.pilot import Pilot

NOW = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))
EVIL = "\x1b[2J[red]bold[/red]\n\u202egnp"


def call(name: str, function: str, **more: Any) -> dict[str, Any]:
    return {
        "call": name,
        "function": function,
        "state": "running",
        "since": NOW - 42,
        "queued_at": NOW - 60,
        "memory_bytes": 1400 << 20,
        "cpu_seconds": 40.0,
        "worker": "w1",
        "position": -1,
        "detail": "",
        "machine_type": "",
        **more,
    }


CAPACITY = {
    "machine": {"cpus": 8.0, "memory_bytes": 64 << 30, "gpus": [{"name": "NVIDIA A100", "free": False}]},
    "free": {"cpus": 3.5, "memory_bytes": 20 << 30, "gpus": 0},
    "types": [
        {"name": "S", "fits_now": 4, "full": True, "largest": False},
        {"name": "XL", "fits_now": 0, "full": False, "largest": False},
        {"name": "GPU", "fits_now": 0, "full": True, "largest": True},
    ],
}


class Fake:
    """A source without a daemon."""

    def __init__(self, *calls: dict[str, Any]) -> None:
        self.calls = list(calls)
        self.cancelled: list[str] = []
        self.printed = "step 1\nstep 2\n"
        self.over = False
        self.looks = 0

    def look(self) -> Snapshot:
        self.looks += 1
        use = Use(250 * self.looks, 1000 * self.looks, 16 << 30, 64 << 30)
        return Snapshot(NOW, {"calls": list(self.calls), "capacity": CAPACITY}, use)

    async def gpus(self) -> list[str]:
        return ["GPU0 busy"]

    def cancel(self, call: str) -> str:
        self.cancelled.append(call)
        self.calls = [one for one in self.calls if one["call"] != call]
        return f"cancelled {call}"

    def stacks(self, call: str) -> list[str]:
        if call.startswith("bbbb"):
            raise errors.ResourcesUnavailable("it has no worker yet", hint="wait")
        return [call, "main thread", f"    {EVIL} (train.py:12)"]

    def output(self, call: str, seen: int) -> dict[str, Any]:
        row = {"printed_bytes": len(self.printed), "output": self.printed[seen:], "state": "running"}
        if not self.over:
            return {"calls": [], "unfinished": [row]}
        record = {"outcome": "error", "error": "KeyError", "wall_seconds": 43.0, "output": self.printed}
        return {"calls": [{**record, "printed_bytes": len(self.printed)}]}


FIRST = call("aaaa1111-0123456789ab", "train")
SECOND = call("bbbb2222-0123456789ab", EVIL, state="waiting", position=0, detail="2 CPUs held by train")


def play(source: Fake, keys: Callable[[Pilot[int], TopView], Awaitable[None]]) -> None:
    """Run the view at 80 columns while `keys` presses some."""

    async def run() -> None:
        view = TopView(source)
        async with view.run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            await keys(pilot, view)

    asyncio.run(run())


def table_of(view: TopView) -> list[list[str]]:
    table = view.screen_stack[0].query_one("#calls", DataTable)
    return [[str(cell) for cell in table.get_row_at(place)] for place in range(table.row_count)]


async def until(pilot: Pilot[int], condition: Callable[[], Any]) -> None:
    for _ in range(2000):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError("still not so")


def said(view: TopView, name: str) -> str:
    return str(view.screen.query_one(name, Static).content)


def test_the_table_has_the_calls_and_follows_the_cursor() -> None:
    """Rows are escaped; the chosen call stays chosen when another comes or goes."""

    async def keys(pilot: Pilot[int], view: TopView) -> None:
        rows = table_of(view)
        assert rows[0][:5] == ["aaaa1111", "train", "running", "42 s", "1.4 GiB"]
        assert rows[1][:3] == ["bbbb2222", "\\x1b[2J[red]bold[/red]\\n\\u202egnp", "waiting 1"]
        await pilot.press("down")
        assert view.chosen == SECOND["call"]
        source.calls.insert(0, call("cccc3333-0123456789ab", "new"))
        await view.look()
        assert (len(table_of(view)), view.chosen) == (3, SECOND["call"])
        source.calls = source.calls[:1]
        await view.look()
        assert view.chosen == "cccc3333-0123456789ab"
        source.calls = []
        await view.look()
        assert view.chosen == ""
        await pilot.press("s", "c", "l")
        assert len(view.screen_stack) == 1
        assert "25% of" in said(view, "#heading")
        assert "GPU0 busy" in said(view, "#heading")

    source = Fake(FIRST, SECOND)
    play(source, keys)


def test_a_call_is_cancelled_after_a_question() -> None:
    """`n` leaves it alone, `y` cancels it, and the line below says what was done."""

    async def keys(pilot: Pilot[int], view: TopView) -> None:
        await pilot.press("c")
        assert isinstance(view.screen, Question)
        assert "Cancel call aaaa1111?" in said(view, "#question")
        await pilot.press("n")
        assert (source.cancelled, len(view.screen_stack)) == ([], 1)
        await pilot.press("c", "y")
        await until(pilot, lambda: source.cancelled == [FIRST["call"]] and len(table_of(view)) == 1)
        assert said(view, "#said") == f"cancelled {FIRST['call']}"

    source = Fake(FIRST, SECOND)
    play(source, keys)


def test_stacks_and_their_refusal() -> None:
    """`s` shows the stacks, escaped; a refusal is shown in their place; Escape leads back."""

    async def keys(pilot: Pilot[int], view: TopView) -> None:
        await pilot.press("s")
        assert isinstance(view.screen, Stacks)
        await until(pilot, lambda: "train.py:12" in said(view, "#stacks"))
        assert "\x1b" not in said(view, "#stacks")
        await pilot.press("escape", "down", "s")
        await until(pilot, lambda: "no worker yet" in said(view, "#stacks"))
        await pilot.press("q")
        assert len(view.screen_stack) == 1

    play(Fake(FIRST, SECOND), keys)


def test_output_is_followed_to_the_outcome() -> None:
    """Enter shows what was printed, then what comes, then the outcome."""

    async def keys(pilot: Pilot[int], view: TopView) -> None:
        await pilot.press("enter")
        assert isinstance(view.screen, Output)
        log = view.screen.query_one(RichLog)
        await until(pilot, lambda: [line.text for line in log.lines] == ["step 1", "step 2"])
        source.printed += "10%\r20%\r\n[b]\x1b[2J end"
        source.over = True
        await until(pilot, lambda: len(log.lines) == 5)
        assert [line.text.rstrip() for line in log.lines][2:] == [
            "20%",
            "[b]\\x1b[2J end",
            "-- error: KeyError after 43 s",
        ]
        await pilot.press("q")
        assert len(view.screen_stack) == 1
        await pilot.press("q")
        assert view.return_value == 0

    source = Fake(FIRST)
    play(source, keys)


@pytest.mark.parametrize("before", [[], ["c"], ["s"], ["l"]])
def test_ctrl_c_ends_it_on_every_screen(before: list[str]) -> None:
    """The status is that of a program that was interrupted."""

    async def keys(pilot: Pilot[int], view: TopView) -> None:
        await pilot.press(*before, "ctrl+c")
        await until(pilot, lambda: view.return_value == 130)

    play(Fake(FIRST), keys)


def test_it_says_that_no_call_runs() -> None:
    """An empty table has a reason above it."""

    async def keys(pilot: Pilot[int], view: TopView) -> None:
        assert "no call runs or waits" in said(view, "#heading")

    play(Fake(), keys)


def test_the_lines_above_fit_into_80_columns() -> None:
    """Sizes of four digits and all cores busy leave room."""
    machine = {"cpus": 115.2, "memory_bytes": 1003 << 30, "gpus": []}
    capacity = {"machine": machine, "free": {"cpus": 110.7, "memory_bytes": 1002 << 30, "gpus": 0}, "types": []}
    now = Snapshot(NOW, {"calls": [], "capacity": capacity}, Use(1000, 1000, 1023 << 30, 1023 << 30))
    assert max(map(len, heading(now, Snapshot(NOW, None)))) <= 80


def test_the_lines_above() -> None:
    """Use of the machine, what functions may have, and how many workers of each machine type fit."""
    before, now = (
        Snapshot(NOW, {"capacity": CAPACITY}, Use(busy, total, 16 << 30, 64 << 30))
        for busy, total in ((0, 0), (50, 100))
    )
    assert heading(now, before) == [
        f"CPU  {'█' * 5}{'░' * 5}  50% of {os.cpu_count()} cores  for functions: 3.5 of 8 free",
        f"mem  {'█' * 2}{'░' * 8}  25% of 64.0 GiB  for functions: 20.0 GiB of 64.0 GiB free",
        "GPU  0 of 1 free: NVIDIA A100 taken",
        "fit  S 4  GPU 0",
    ]
    assert heading(Snapshot(NOW, None)) == ["no daemon is running; the first call starts one"]
    assert (bar(-1.0), bar(2.0)) == ("░" * 10, "█" * 10)


def test_the_use_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU has a line with its load and memory; what cannot be read is left out, and so is a missing program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(gpu_lines()) == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 50, 10240, 81920'\necho '1, [N/A], [N/A], 81920'\necho failed\n")
    program.chmod(0o755)
    assert asyncio.run(gpu_lines()) == [f"GPU0 {'█' * 5}{'░' * 5}  50%   10.0 GiB of 80.0 GiB"]


def test_without_textual_the_command_says_what_to_install() -> None:
    """On a terminal; without one it prints a snapshot, with or without Textual."""
    code = (
        "import os, pty, sys\n"
        "sys.modules['textual'] = None\n"
        "from atoll.cli.main import run\n"
        "status = run(['top'])\n"
        "ours, theirs = pty.openpty()\n"
        "os.dup2(theirs, 0), os.dup2(theirs, 1)\n"
        "os._exit(status * 10 + run(['top']))\n"
    )
    environment = {**os.environ, "ATOLL_HOME": "/tmp/no-such-home"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "no daemon is running" in done.stdout
    assert "pip install 'atoll[top]'" in done.stderr
