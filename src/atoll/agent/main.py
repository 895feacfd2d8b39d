"""The agent: the first process of a sandbox below bubblewrap's reaper.

It imports what every worker needs, once, and forks a worker when the daemon asks. It stays single-threaded, so that
a fork is always safe. A page of memory shared with its workers says which lease's call each of them is running:
when the daemon reports that a lease's client is gone, the agent kills the worker if it is still busy for it, and
leaves an idle one alone. When a worker ends, the processes that it left behind are killed with it, and when the last
one has ended, every process that there still is.

Messages from the daemon: `fork` (with descriptors: control, data, stdout, stderr), `release`, `kill`, `usage`.
To the daemon: `exited`, `usage`.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import sys
import time
from typing import NoReturn

from atoll.agent import usage as meter
from atoll.agent import worker
from atoll.wire.channel import Channel, ChannelClosed, Socket

MAX_WORKERS = 1024
WORDS = 3
"""Unsigned words of shared memory for each worker: the epoch that it is busy for, the calls it has served, and when
its call must have ended (`time.monotonic_ns`; 0 for never)."""
STOP_ROUNDS = 100
"""How often to look for what a worker left behind, while there is more of it."""

RELEASE_CHECKS_SECONDS = (0.0, 0.02, 0.1, 0.3)
"""When to look, after a lease ended, whether its worker runs a call for it: a call may just be arriving."""


class Agent:
    """Forks, reaps and kills the workers of one sandbox, as the daemon at the other end of `channel` says."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._poll = select.poll()
        self._memory = mmap.mmap(-1, MAX_WORKERS * WORDS * 8)
        self._words = memoryview(self._memory).cast("Q")
        self._sheets = memoryview(mmap.mmap(-1, MAX_WORKERS * meter.SHEET_BYTES))
        self._free = list(range(MAX_WORKERS - 1, -1, -1))
        self._workers: dict[str, tuple[int, int, int]] = {}  # id -> pid, pidfd, index of its busy word
        self._by_pidfd: dict[int, str] = {}
        self._checks: list[tuple[float, str, int]] = []
        self._overdue: set[str] = set()
        self._alarm, self._alarm_end = os.pipe()
        for descriptor in (self._alarm, self._alarm_end):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Serve until the daemon closes the channel."""
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(self._alarm, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll(self._milliseconds()):
                if descriptor == self._channel.fileno():
                    if not self._channel.fill():
                        continue
                    while self._channel.pending:
                        self._handle(self._channel.receive().header)
                elif descriptor in self._by_pidfd:
                    self._reap(self._by_pidfd[descriptor])
                elif descriptor == self._alarm:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._alarm, 4096)
            self._check_released()
            self._check_deadlines()

    def _milliseconds(self) -> float | None:
        times = [deadline / 1e9 for deadline in self._deadlines().values()]
        if self._checks:
            times.append(min(self._checks)[0])
        if not times:
            return None
        return max(0.0, (min(times) - time.monotonic()) * 1000) + 1

    def _deadlines(self) -> dict[str, int]:
        """When the running calls that have a timeout must have ended."""
        found = {name: self._words[index * WORDS + 2] for name, (_, _, index) in self._workers.items()}
        return {name: deadline for name, deadline in found.items() if deadline and name not in self._overdue}

    def _check_deadlines(self) -> None:
        now = time.monotonic_ns()
        for name, deadline in self._deadlines().items():
            if deadline <= now:
                self._overdue.add(name)
                self._kill(name)

    def _handle(self, message: dict[str, object]) -> None:
        kind, name = message.get("type"), str(message.get("worker"))
        if kind == "fork":
            self._fork(name, message)
        elif kind == "release":
            epoch = int(str(message["epoch"]))
            now = time.monotonic()
            self._checks.extend((now + delay, name, epoch) for delay in RELEASE_CHECKS_SECONDS)
        elif kind == "kill":
            self._kill(name)
        elif kind == "usage":
            self._channel.send({"type": "usage", "workers": self._usage()})

    def _fork(self, name: str, message: dict[str, object]) -> None:
        descriptors = self._channel.take_descriptors(4)
        index = self._free.pop()
        pid = os.fork()
        if pid == 0:
            self._become_worker(name, index, message, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self._workers[name] = (pid, pidfd, index)
        self._by_pidfd[pidfd] = name
        self._poll.register(pidfd, select.POLLIN)

    def _become_worker(self, name: str, index: int, message: dict[str, object], descriptors: list[int]) -> NoReturn:
        status = 70
        try:
            self._channel.close()
            os.close(self._alarm)
            for _, pidfd, _ in self._workers.values():
                os.close(pidfd)
            env = message.get("env")
            os.environ.update({str(k): str(v) for k, v in env.items()} if isinstance(env, dict) else {})
            os.environ["ATOLL_WORKER_ID"] = name
            if "TZ" in os.environ:
                time.tzset()  # the C library has looked before
            os.setsid()
            _bound_processes(message.get("processes"))
            words = self._words[index * WORDS : (index + 1) * WORDS]
            control = Channel(Socket(fileno=descriptors[0]))
            serving = worker.Worker(words, control, self._sheet(index), self._alarm_end)
            status = serving.run(message, descriptors[1:])
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    def _sheet(self, index: int) -> memoryview:
        return self._sheets[index * meter.SHEET_BYTES : (index + 1) * meter.SHEET_BYTES]

    def _check_released(self) -> None:
        now = time.monotonic()
        due = [check for check in self._checks if check[0] <= now]
        if due:
            self._checks = [check for check in self._checks if check[0] > now]
            for _, name, epoch in due:
                known = self._workers.get(name)
                if known is not None and self._words[known[2] * WORDS] == epoch:
                    self._kill(name)

    def _usage(self) -> dict[str, dict[str, int | str]]:
        found: dict[str, dict[str, int | str]] = {}
        for name, (_, _, index) in self._workers.items():
            busy, calls = self._words[index * WORDS], self._words[index * WORDS + 1]
            call, function = meter.running(self._sheet(index))
            found[name] = {"busy": busy, "calls": calls, "call": call, "function": function}
        return found

    def _kill(self, name: str) -> None:
        if name in self._workers:
            pid, pidfd, _ = self._workers[name]
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            kill_left_behind(name, pid)

    def _reap(self, name: str) -> None:
        pid, pidfd, index = self._workers.pop(name)
        _, status, usage = os.wait4(pid, 0)
        between_calls = self._words[index * WORDS] == 0 and self._words[index * WORDS + 1] > 0
        self._poll.unregister(pidfd)
        os.close(pidfd)
        del self._by_pidfd[pidfd]
        for word in range(index * WORDS, (index + 1) * WORDS):
            self._words[word] = 0
        sheet = self._sheet(index)
        waiting, running = meter.left(sheet, usage)
        meter.clear(sheet)
        self._free.append(index)
        kill_left_behind(name, pid, alone=not self._workers)
        code = os.waitstatus_to_exitcode(status)
        exited = {"type": "exited", "worker": name, "status": code, "records": waiting, "call": running}
        if between_calls:
            exited["reason"] = "idle"
        elif name in self._overdue:
            exited["reason"] = "timeout"
        self._overdue.discard(name)
        self._channel.send(exited)


def _bound_processes(count: object) -> None:
    """Bound how many processes and threads there may be of this sandbox's user when this worker starts another."""
    if isinstance(count, int) and count > 0:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def kill_left_behind(name: str, session: int, *, alone: bool = False) -> None:
    """Kill the processes that worker `name` started and that outlived it: those of its session, and those that
    carry its mark in their environment; every process where it was `alone`.

    All are stopped before any is killed: what is stopped starts nothing, and keeps counting against the number of
    processes that there may be, so that those which multiply run out of places.
    """
    stopped: set[int] = set()
    for _ in range(STOP_ROUNDS):
        found = _left_behind(name, session, alone) - stopped
        if not found:
            break
        for pid in found:
            _signal(pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _left_behind(name: str, session: int, alone: bool) -> set[int]:
    mark = f"ATOLL_WORKER_ID={name}\0".encode()
    found = set()
    for entry in os.listdir("/proc"):
        pid = int(entry) if entry.isdigit() else 0
        if pid in (0, 1, os.getpid(), session):
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                state, _parent, _group, of_session = stat.read().rsplit(b") ", 1)[1].split()[:4]
            belongs = alone or int(of_session) == session
            if not belongs:
                with open(f"/proc/{entry}/environ", "rb") as environ:
                    belongs = mark in environ.read() + b"\0"
        except (OSError, ValueError, IndexError):
            continue
        if belongs and state not in (b"Z", b"X"):
            found.add(pid)
    return found


def main() -> None:
    """Run the agent on the channel whose descriptor is the first argument."""
    channel = Channel(Socket(fileno=int(sys.argv[1])))
    sys.argv = [""]
    worker.prepare()
    gc.freeze()
    with contextlib.suppress(ChannelClosed):
        Agent(channel).run()
    os._exit(0)
