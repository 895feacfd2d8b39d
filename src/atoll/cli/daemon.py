"""`atoll stop` and `atoll logs`: the daemon behind the local host."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from typing import Annotated

import cyclopts

from atoll import errors, ownership
from atoll.cli import hosts
from atoll.cli.tables import wrong_usage
from atoll.cli.terminal import echo, write_output
from atoll.host import daemon_socket
from atoll.host.local import local

STOP_SECONDS = 5.0
GREETING_SECONDS = 3.0
SIGNAL_SECONDS = 2.0
"""Seconds for a daemon to end, to answer a greeting, and to end after a signal, before the next measure."""
SOON_SECONDS = 0.5
"""Seconds of waiting for running calls before the caller is told."""


def stop() -> int:
    """Stop the daemon, and every call, worker and sandbox with it.

    Calls that run have their grace to end; Ctrl-C ends them at once.
    """
    hosts.tell_local("`atoll stop` stops the daemon")
    found = daemon_socket.daemon_pidfd(local.settings)
    if found is None:
        echo("no daemon is running")
        return 0
    pid, pidfd = found
    left: dict[str, int] = {}
    try:
        patience = STOP_SECONDS
        try:
            answer = local.request_running("stop", {}, greeting_seconds=GREETING_SECONDS) or {}
            left = answer.get("detached") or {}
            _wait_for_calls(pidfd, float(answer.get("grace_seconds", 0.0)))
        except errors.HostUnreachable:  # stopped or stuck: it will not end by itself
            patience = 0.0
        for number in (signal.SIGTERM, signal.SIGKILL):
            if select.select([pidfd], [], [], patience)[0]:
                break
            patience = SIGNAL_SECONDS
            echo(f"daemon {pid} does not end by itself: sending {number.name}")
            signal.pidfd_send_signal(pidfd, number)
        select.select([pidfd], [], [], STOP_SECONDS)
    finally:
        os.close(pidfd)
    echo(f"stopped daemon {pid}")
    for state, count in sorted(left.items()):
        calls = f"{count} detached call{'s' if count > 1 else ''}"
        if state == "waiting":
            echo(f"{calls} wait{'' if count > 1 else 's'} for the next daemon, which any command or call starts")
        else:
            echo(f"{calls} ran: lost unless the result came in time; with `retries` made again by the next daemon")
    return 0


def _wait_for_calls(pidfd: int, grace_seconds: float) -> None:
    """Wait for the end of a daemon while its calls have their grace; kill it on Ctrl-C."""
    try:
        if grace_seconds > 0 and not select.select([pidfd], [], [], min(SOON_SECONDS, grace_seconds))[0]:
            echo(f"waiting up to {grace_seconds:g} s for the running calls; Ctrl-C ends them now", flush=True)
            select.select([pidfd], [], [], grace_seconds)
    except KeyboardInterrupt:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def logs(
    call: str = "",
    /,
    *,
    lines: Annotated[int, cyclopts.Parameter(alias="-n")] = 50,
    follow: Annotated[bool, cyclopts.Parameter(alias="-f")] = False,
    raw: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    json: bool = False,
) -> int:
    """Print the end of the daemon's log, or with CALL the end of that call's output and its outcome.

    On a terminal control characters are shown as escapes, apart from colours and progress bars.

    Parameters
    ----------
    call: str
        A call's id, or its beginning.
    lines: int
        Lines of the daemon's log.
    follow: bool
        Follow the daemon's log until interrupted, or a call's output until the call is over.
    raw: bool
        Print the function's own bytes to a terminal too, whatever they do there.
    json: bool
        With CALL: print an object with `calls`, the attempts.
    """
    if lines < 0:
        return wrong_usage("-n must be at least 0")
    if call:
        from atoll.cli.calls import output

        return output.output(call, raw=raw, json=json, follow=follow)
    hosts.tell_local("this is the log of the daemon")
    path = local.settings.logs_directory / "daemon.log"
    try:
        with (
            ownership.directory(path.parent) as directory,
            open(directory.open(path.name, os.O_RDONLY), encoding="utf-8", errors="replace", newline="\n") as file,
        ):
            for line in deque(file, lines):
                write_output(line, raw=raw)
            while follow:
                line = file.readline()
                write_output(line, raw=raw)
                if not line:
                    time.sleep(0.2)
    except FileNotFoundError:
        echo(f"no log yet: `{path}` is written by the daemon")
    return 0
