"""`atoll stack CALL`: the Python stacks of the worker of a running call."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from atoll.cli import hosts
from atoll.cli.calls import rows
from atoll.cli.tables import print_json
from atoll.cli.terminal import echo

LIBRARY = "/opt/atoll/lib/"
MOST_THREADS = 100
MOST_FRAMES = 200

_THREAD = re.compile(r"(Current thread|Thread) (0x[0-9a-fA-F]{1,16})(?: \[(.{1,64})\])? ?\(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d{1,9}|\?\?\?) in (.*)')


class Thread(NamedTuple):
    """A thread, and its frames as (function, file, line), the one that runs first."""

    name: str
    frames: list[tuple[str, str, str]]


def stack(call: str, /, *, every: bool = False, json: bool = False) -> int:
    """Show the stacks of all Python threads of a running call, the frames that run first.

    It works while the function sleeps, and while it is in a long call of a library. It interrupts it for a moment, as a
    signal does that a program handles: a library that sleeps or waits may do so for less time.

    Parameters
    ----------
    call: str
        The call's id, or 4 characters or more of its beginning.
    every: bool
        Show Atoll's own frames and threads too.
    json: bool
        Print an object with `threads`.
    """
    found = hosts.ask("calls.stacks", {"call": call})
    threads = read(found.pop("text"), every=every)
    if json:
        shown = [
            {"name": one.name, "frames": [dict(zip(_FIELDS, frame, strict=True)) for frame in one.frames]}
            for one in threads
        ]
        print_json({**found, "threads": shown})
        return 0
    for line in described(found, threads, time.time()):
        echo(line)
    return 0


_FIELDS = ("function", "file", "line")


def described(call: dict[str, Any], threads: list[Thread], now: float) -> list[str]:
    """Return the lines about a call and its threads."""
    since = rows.duration(max(now - call["since"], 0.0))
    lines = [f"{call['call'][: rows.SHORT_ID]}  {call['function']}  running for {since} on {call['worker']}"]
    for thread in threads:
        lines += ["", thread.name]
        lines += [f"    {function} ({file}:{line})" for function, file, line in thread.frames]
    return lines


def read(text: str, *, every: bool = False) -> list[Thread]:
    """Read what `faulthandler` has written; lines of another form are left out. The main thread comes first.

    Args:
        every: Atoll's own frames too, and threads that have no others.
    """
    threads: list[Thread] = []
    for line in text.splitlines():
        if match := _THREAD.match(line):
            if len(threads) >= MOST_THREADS:
                break
            current = match[1] == "Current thread"
            threads.append(Thread("main thread" if current else f"thread {match[3] or match[2]}", []))
            continue
        frame = _FRAME.match(line)
        shown = frame is not None and (every or not frame[1].startswith(LIBRARY))
        if frame is not None and shown and threads and len(threads[-1].frames) < MOST_FRAMES:
            threads[-1].frames.append((frame[3], frame[1], frame[2]))
    return sorted((one for one in threads if one.frames), key=lambda one: one.name != "main thread")
