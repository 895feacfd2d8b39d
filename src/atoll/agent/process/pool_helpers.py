"""Helpers of process pools, which outlive the call that has started them and keep its variables and its umask.

- The fork server of `multiprocessing` ends after each call. One whose children a `@cached` value uses is left to these,
  and later pools start another.
- Trackers of resources stay, since they would remove memory and semaphores that are still in use. One with variables or
  a umask of a call ends where it has nothing to remove; otherwise the worker serves no other call.
- The pool that loky uses again ends with a call that has changed these, and before another program's lease.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

END_SECONDS = 0.5
"""Seconds for the end of one in good order."""
_TRACKERS = ("multiprocessing.resource_tracker", "joblib.externals.loky.backend.resource_tracker")
_POOLS = ("joblib.externals.loky.reusable_executor", "loky.reusable_executor")

_clean: set[int] = set()
"""Trackers that have nothing of a call."""


def server() -> int | None:
    """Return the number of the fork server."""
    found = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    return getattr(found, "_forkserver_pid", None)


def running() -> set[int]:
    """Return the trackers, and the children of pools that are made to outlive a call and have no work."""
    found = {pid for tracker in _trackers() if (pid := tracker._pid)}
    for _, pool in _pools():
        if not pool._pending_work_items:
            found.update(pool._processes)
    return found


def end_server(kept: bool) -> None:
    """Have the next pool start a fork server of its own; end this one unless it is kept for its children."""
    holder: Any = sys.modules["multiprocessing.forkserver"]._forkserver
    pid, descriptor, address = holder._forkserver_pid, holder._forkserver_alive_fd, holder._forkserver_address
    holder._forkserver_pid = holder._forkserver_alive_fd = holder._forkserver_address = None
    if hasattr(holder, "_forkserver_authkey"):  # from Python 3.14 on
        holder._forkserver_authkey = None
    if not kept:
        os.close(descriptor)  # its word to end
        _reap(pid)
        with contextlib.suppress(OSError):
            os.unlink(address)


def lost_tracker(variables: dict[bytes, bytes], umask: int) -> str:
    """Return the name of a tracker that has a call's variables or umask and cannot end; empty for none.

    Args:
        variables: those that every call finds.
    """
    for tracker in _trackers():
        pid = tracker._pid
        if pid is None or pid in _clean:
            continue
        if _is_clean(pid, variables, umask):
            _clean.add(pid)
        elif _has_memory() or "loky" in type(tracker).__module__:
            return f"child {pid}"
        else:
            descriptor, tracker._fd, tracker._pid = tracker._fd, None, None
            os.close(descriptor)
            _reap(pid)
    return ""


def end_pools(kept: set[int]) -> None:
    """Have loky make a new pool for the next time; end the present one unless its children are kept."""
    for module, pool in _pools():
        module._executor = None
        pids = set(pool._processes)
        if pids and pids <= kept:
            continue
        with contextlib.suppress(Exception):
            pool.shutdown(wait=True, kill_workers=True)
        for pid in pids:
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, signal.SIGKILL)


def _trackers() -> list[Any]:
    found = [getattr(sys.modules.get(name), "_resource_tracker", None) for name in _TRACKERS]
    return [one for one in found if one is not None]


def _pools() -> list[tuple[Any, Any]]:
    found = [(sys.modules.get(name), getattr(sys.modules.get(name), "_executor", None)) for name in _POOLS]
    return [one for one in found if one[1] is not None]


def _is_clean(pid: int, variables: dict[bytes, bytes], umask: int) -> bool:
    """Return whether a process was started with nothing but what every call finds."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
        with open(f"/proc/{pid}/status", "rb") as file:
            found = next((int(line.split()[1], 8) for line in file if line.startswith(b"Umask:")), umask)
    except OSError:
        return False
    return found == umask and {one for one in entries if one} <= {b"=".join(one) for one in variables.items()}


def _has_memory() -> bool:
    """Return whether there is shared memory or a semaphore, which a tracker might remove at its end."""
    try:
        return bool(os.listdir("/dev/shm"))
    except OSError:
        return False


def _reap(pid: int) -> None:
    """Wait for the end of a child that was told to end; kill one that does not."""
    deadline = time.monotonic() + END_SECONDS
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(END_SECONDS / 500)
