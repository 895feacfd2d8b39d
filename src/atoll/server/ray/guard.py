"""The guard: runs a machine's member process for its actor, starts it again when it ends, and leaves nothing behind.

Theory of operation. The kernel's parent-death signal will not do here: it fires with the *thread* that started the
child, Ray starts actors on threads of its own, and a change of uid clears it. So the guard holds one end of a socket
pair whose other end only the actor's process has: its end of file is the actor's end, however that came, with the
raylet too, which takes its workers along. The guard leaves the actor's process tree at once, since Ray kills the direct
children of a worker that exits. It adopts orphans (`PR_SET_CHILD_SUBREAPER`), so that the machine's daemon, which leaves
its parent as well, stays below it. In the end it sends SIGTERM to all that is below, waits, and sends SIGKILL until
nothing is left. A lock in the state directory makes the next guard wait for that.

It writes JSON lines to the socket: `{"state", "pid", "exits"}` and `{"line"}` of the program's output.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from atoll import process

FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 30.0
LASTED_SECONDS = 60.0
"""A program that lived that long starts again after the first pause."""
GRACE_SECONDS = 8.0
LOOK_SECONDS = 0.05
LOCK, JOINED = "ray-guard.lock", "ray-node"
"""Files in the state directory: held by its one guard; the Ray node as which it has joined."""

_own = set[int]()
"""Children that are waited for by what started them."""


def main() -> None:
    """Run: `python -m atoll.server.ray.guard DESCRIPTOR`; the first line is an order, as `machine.Machine` has it."""
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>
    with contextlib.suppress(OSError):  # Ray has the kernel kill its workers first; a machine's daemon is none of them
        Path("/proc/self/oom_score_adj").write_text("0")
    asyncio.run(_run(socket.socket(fileno=int(sys.argv[1]))))


async def _run(channel: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel, limit=1 << 22)

    def tell(**message: Any) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    loop = asyncio.get_running_loop()
    first = await reader.readline()
    if not first:
        return
    over = asyncio.ensure_future(reader.read())
    loop.add_signal_handler(signal.SIGTERM, over.cancel)
    loop.add_signal_handler(signal.SIGINT, over.cancel)
    loop.add_signal_handler(signal.SIGCHLD, _reap_orphans)
    keeping = asyncio.ensure_future(_keep_running(json.loads(first), tell))
    keeping.add_done_callback(lambda _: over.cancel())
    with contextlib.suppress(asyncio.CancelledError):
        await over
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    writer.close()


async def _keep_running(order: dict[str, Any], tell: Callable[..., None]) -> None:
    """Run the program again and again; when cancelled, end it and all below."""
    async with _only_one(Path(order["home"])):
        try:
            pause, exits, joined = FIRST_PAUSE_SECONDS, 0, Path(order["home"], JOINED)
            while True:
                began = asyncio.get_running_loop().time()
                if joined.exists() and joined.read_text() == order["node"]:
                    status = await _run_once(order["argv"], order, tell, exits)
                else:
                    status = await _run_once(order["join"], order, tell, exits, order.get("given", ""))
                    if status == 0:
                        joined.write_text(order["node"])
                        continue
                exits += 1
                if asyncio.get_running_loop().time() - began > LASTED_SECONDS:
                    pause = FIRST_PAUSE_SECONDS
                tell(state="waiting", pid=0, exits=exits, status=status)
                await asyncio.sleep(pause)
                pause = min(2 * pause, MOST_PAUSE_SECONDS)
        finally:
            await _end_all()


async def _run_once(
    argv: list[str], order: dict[str, Any], tell: Callable[..., None], exits: int, given: str = ""
) -> int:
    try:
        with os.fdopen(os.memfd_create("given"), "w") as file:  # longer than a pipe holds
            file.write(given)
            file.flush()
            file.seek(0)
            child = process.Child(argv, env=order["env"], stdin=file, stdout=process.PIPE, stderr=process.STDOUT)
    except OSError as error:
        tell(line=f"cannot start `{argv[0]}`: {error.strerror}")
        return -1
    _own.add(child.pid)
    tell(state="running", pid=child.pid, exits=exits)
    assert child.stdout is not None
    lines = asyncio.StreamReader(limit=1 << 16)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), child.stdout
    )
    passing = asyncio.ensure_future(_pass_lines(lines, tell))
    try:
        status = await child.wait()
        _own.discard(child.pid)
        return status
    finally:
        passing.cancel()
        transport.close()


async def _pass_lines(lines: asyncio.StreamReader, tell: Callable[..., None]) -> None:
    while data := await lines.read(1 << 14):
        for line in data.decode("utf-8", "replace").splitlines()[-50:]:
            tell(line=line[:500])


@contextlib.asynccontextmanager
async def _only_one(home: Path) -> AsyncIterator[None]:
    """Hold the lock of a state directory: an earlier guard may still be ending what it ran."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / LOCK).open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                await asyncio.sleep(LOOK_SECONDS)  # locks have no event to wait for
        yield


# --- the end ----------------------------------------------------------------------------------------------------------


async def _end_all() -> None:
    """End all processes below this one: each is a child sooner or later, since orphans are adopted."""
    told = set[int]()
    deadline = asyncio.get_running_loop().time() + GRACE_SECONDS
    while children := _children():
        late = asyncio.get_running_loop().time() > deadline
        for pid in children:
            if late or pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        await asyncio.sleep(LOOK_SECONDS)
        _reap_orphans()


def _children() -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


def _reap_orphans() -> None:
    """Wait for adopted children that have ended; that of `process.Child` is waited for by that, which needs its status."""
    for pid in _children():
        if pid not in _own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    main()
