"""`atoll status`, `atoll stop` and `atoll logs`: the daemon behind the local host."""

from __future__ import annotations

import json as json_module
import os
import select
import signal
import sys
import time
from collections import deque
from typing import Annotated, Any

import cyclopts

from atoll import errors
from atoll.cli.tables import age
from atoll.host import daemon_start
from atoll.host.local import local

STOP_SECONDS = 5.0
GREETING_SECONDS = 3.0
SIGNAL_SECONDS = 2.0
"""Seconds for a daemon to end, to answer a greeting, and to end after a signal, before the next measure."""


def status(*, json: bool = False) -> int:
    """Show the daemon, its sandboxes and workers. Starts nothing.

    Parameters
    ----------
    json: bool
        Print an object with `daemon`, `sandboxes` and `workers`.
    """
    found = local.request_running("status", {})
    if json:
        print(json_module.dumps(found or {"daemon": None, "sandboxes": [], "workers": []}, indent=2))
        return 0
    if found is None:
        print("no daemon is running; the first call starts one")
        return 0
    _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    daemon = found["daemon"]
    console.print(
        f"daemon {daemon['pid']}, version {daemon['version']}, since {age(daemon['started_at'])}, "
        f"{daemon['waiting']} waiting, state in {daemon['home']}",
        markup=False,
        highlight=False,
    )
    for title, rows, columns in (
        ("sandboxes", found["sandboxes"], ("id", "environment", "network", "user", "pid", "since", "workers")),
        ("workers", found["workers"], ("id", "sandbox", "function", "state", "pid", "since", "memory", "calls")),
    ):
        if not rows:
            console.print(f"no {title}")
            continue
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column)
        for row in rows:
            shown = {
                **row,
                "pid": row["pid"] or "",
                "since": age(row["started_at"]),
                "memory": f"{row.get('memory_bytes', 0) / (1 << 20):.0f} MiB",
            }
            table.add_row(*(Text(str(shown[column])) for column in columns))
        console.print(table)


def stop() -> int:
    """Stop the daemon, and every call, worker and sandbox with it."""
    pid = daemon_start.daemon_pid(local.settings)
    if pid is None:
        print("no daemon is running")
        return 0
    pidfd = os.pidfd_open(pid)
    try:
        patience = STOP_SECONDS
        try:
            local.request_running("stop", {}, greeting_seconds=GREETING_SECONDS)
        except errors.HostUnreachable:  # stopped or stuck: it will not end by itself
            patience = 0.0
        for number in (signal.SIGTERM, signal.SIGKILL):
            if select.select([pidfd], [], [], patience)[0]:
                break
            patience = SIGNAL_SECONDS
            print(f"daemon {pid} does not end by itself: sending {number.name}")
            signal.pidfd_send_signal(pidfd, number)
        select.select([pidfd], [], [], STOP_SECONDS)
    finally:
        os.close(pidfd)
    print(f"stopped daemon {pid}")
    return 0


def logs(
    call: str = "",
    /,
    *,
    lines: Annotated[int, cyclopts.Parameter(alias="-n")] = 50,
    follow: Annotated[bool, cyclopts.Parameter(alias="-f")] = False,
    json: bool = False,
) -> int:
    """Print the end of the daemon's log, or with CALL the end of that call's output and its outcome.

    Parameters
    ----------
    call: str
        A call's id, or its beginning.
    lines: int
        Lines of the daemon's log.
    follow: bool
        Follow the daemon's log, until interrupted.
    json: bool
        With CALL: print an object with `calls`, the attempts.
    """
    if lines < 0:
        print("error: -n must be at least 0", file=sys.stderr)
        return 2
    if call:
        from atoll.cli import calls

        return calls.output(call, json=json)
    path = local.settings.logs_directory / "daemon.log"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in deque(file, lines):
                print(line, end="")
            while follow:
                line = file.readline()
                print(line, end="", flush=True)
                if not line:
                    time.sleep(0.2)
    except FileNotFoundError:
        print(f"no log yet: `{path}` is written by the daemon")
    return 0
