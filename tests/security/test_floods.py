"""Agents and builds that print without end: the daemon drops the rest at a bounded rate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from atoll import process
from atoll.node import stderr_log

from ..waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TURNS = 400


def test_a_flood_of_stderr_takes_few_turns_of_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the event loop's turns few read from a pipe that is always full; its first part is in the log."""
    log, reads, read = tmp_path / "log", list[int](), os.read

    def counted(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        reads.append(len(data))
        return data

    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:

        async def opened() -> int:
            return stack.enter_context(stderr_log.logged_stderr(log))

        def turned(seen: bool = False) -> bool:
            runner.run(asyncio.sleep(0))
            return seen or (log.exists() and log.stat().st_size == stderr_log.MAX_LOGGED_BYTES)

        with subprocess.Popen(["cat", "/dev/zero"], stdout=runner.run(opened())) as flood:
            stack.close()
            monkeypatch.setattr(os, "read", counted)
            until(turned)
            reads.clear()
            for _ in range(TURNS):
                turned()
            taken = len(reads)
            flood.kill()
        until(lambda: turned(True) and reads[-1:] == [0])
    assert taken < TURNS // 4
    assert log.stat().st_size == stderr_log.MAX_LOGGED_BYTES


def test_a_build_that_prints_lines_without_end_is_not_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded number of lines the output is neither split nor cleaned, and read with rests; its end is kept."""
    sleep, rests = asyncio.sleep, list[float]()

    async def counted(seconds: float) -> None:
        rests.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", counted)
    lines = 5 * process.MAX_LINES
    passed = 0

    def count(_line: str) -> None:
        nonlocal passed
        passed += 1

    command = ["/bin/sh", "-c", f"yes | head -n {lines}; echo end"]
    done = asyncio.run(process.run(command, env={"PATH": os.defpath}, on_line=count))
    assert done.output.endswith("y\nend\n")
    assert 0 < passed <= process.MAX_LINES
    assert rests
    assert set(rests) == {process.PAUSE_SECONDS}
