"""The signal that asks a process to end, as Ctrl-C or its supervisor would ask a program of its own.

A process that has a handler for SIGTERM, or ignores it, gets SIGTERM. Any other Python program gets SIGINT, which is a
`KeyboardInterrupt` in its main thread, or the choice of a handler that it has for that. Programs that handle neither
get SIGTERM, which ends them. No handler of Atoll's own is needed in a worker: a SIGTERM from elsewhere ends it as it
ends any program.
"""

from __future__ import annotations

import contextlib
import os
import signal


def interrupt(pid: int, pidfd: int = -1) -> None:
    """Ask a process of this sandbox to end, by its pidfd where there is one."""
    with contextlib.suppress(OSError):
        number = _asking(pid)
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)


def _asking(pid: int) -> signal.Signals:
    with open(f"/proc/{pid}/status", "rb") as status:
        fields = dict(line.split(b":", 1) for line in status if line.startswith(b"Sig"))
    caught, ignored = int(fields[b"SigCgt"], 16), int(fields[b"SigIgn"], 16)
    if _has(caught | ignored, signal.SIGTERM) or not _has(caught, signal.SIGINT):
        return signal.SIGTERM
    return signal.SIGINT


def _has(mask: int, number: signal.Signals) -> bool:
    return bool(mask >> (number - 1) & 1)
