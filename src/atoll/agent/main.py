"""The agent: the first process of a sandbox below bubblewrap's reaper.

Theory of operation. The agent imports what every worker needs, once, and forks a worker when the daemon asks. It stays
single-threaded, so that a fork is always safe. One process that has been forked ahead, the spare, waits for the next
worker's message: a fork and the first touch of its pages cost more than the call. Memory that it shares with each
worker says which lease's call the worker is running: when the daemon reports that a lease's client is gone, the
agent ends the worker if it is still busy for it (see `endings`), and leaves an idle one alone. When a worker ends, the processes that
it left behind are killed with it, and when the last worker has ended, every process that is left.

The preloader is an agent of its own below the first one, with packages of the environment imported (see
`agent.preloading`). The agent passes on to it what the daemon says of its workers.

Messages from the daemon: `fork` (with descriptors: control, data, stdout, stderr), `release`, `cancel`, `kill`,
`usage`, `preload` (modules to import, and variables for their import), and those of `agent.visits`. To the daemon:
`exited`, `usage`, `preloaded`, `answered`.
From a preloader to its agent: `importing`, `refused`, `preloaded`, `exited`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from atoll.agent import preloading, shared_memory, worker
from atoll.agent import usage as meter
from atoll.agent.dial import Dials
from atoll.agent.endings import Child, Endings
from atoll.agent.landlock import Landlock
from atoll.agent.leftovers import kill_left_behind
from atoll.agent.preloaders import Preloaders
from atoll.agent.process import start
from atoll.agent.shared_memory import SharedMemory
from atoll.wire.channel import Channel, ChannelClosed, Socket, pair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.agent.process.state import ProcessState
    from atoll.agent.visits import Visits

SPARE_SECONDS = 0.05
"""Seconds after its first worker until a sandbox gets a spare: most sandboxes of a single call have ended by then."""


class Spare(NamedTuple):  # not a dataclass: their module would cost every cold start 8 ms
    """A process that becomes the next worker."""

    pid: int
    pidfd: int
    channel: Channel


class Agent:
    """Forks, reaps and kills the workers of one sandbox, as the daemon at the other end of `channel` says.

    Args:
        landlock: keeps code in the forked processes from this one and from each other.
        first: whether this is the sandbox's agent, and not a preloader below it.
    """

    def __init__(self, channel: Channel, landlock: Landlock, *, first: bool = True) -> None:
        self._channel = channel
        self._landlock = landlock
        self._first = first
        self._poll = select.poll()
        self._on_ready: dict[int, Callable[[], None]] = {}
        self._workers: dict[str, Child] = {}
        self._spare: Spare | None = None
        self._spare_at = 0.0 if first else time.monotonic()
        self._preloaders = Preloaders(self)
        self._dials = Dials(channel, self)
        self._endings = Endings(self._workers)
        self._visits: Visits | None = None
        self._alarm, self._alarm_end = os.pipe()
        for descriptor in (self._alarm, self._alarm_end):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Serve until the daemon closes the channel."""
        self.watch(self._channel.fileno(), self._listen)
        self.watch(self._alarm, self._drain_alarm)
        while True:
            events = self._poll.poll(self._milliseconds())
            for descriptor, on_ready in [(one, self._on_ready[one]) for one, _ in events]:
                if self._on_ready.get(descriptor) is on_ready:  # else an event before it has closed this descriptor
                    on_ready()
            self._endings.check()
            self._preloaders.check_deadline()
            self._check_spare()

    def watch(self, descriptor: int, on_ready: Callable[[], None], events: int | None = None) -> None:
        """Call `on_ready` whenever a descriptor can be read, or instead has one of `events`."""
        self._poll.register(descriptor, select.POLLIN if events is None else events)
        self._on_ready[descriptor] = on_ready

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, which is still open."""
        self._poll.unregister(descriptor)
        del self._on_ready[descriptor]

    def _listen(self) -> None:
        if self._channel.fill():
            while self._channel.pending:
                self._handle(self._channel.receive().header)

    def _drain_alarm(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._alarm, 4096)

    def _milliseconds(self) -> float | None:
        times = self._endings.times()
        if self._preloaders.deadline:
            times.append(self._preloaders.deadline)
        if self._spare_at:
            times.append(self._spare_at)
        if not times:
            return None
        left = max(0.0, (min(times) - time.monotonic()) * 1000) + 1
        return min(left, worker.MAX_POLL_MILLISECONDS)  # times of workers are not trusted

    def _handle(self, message: dict[str, Any]) -> None:
        kind, name = message.get("type"), str(message.get("worker"))
        if kind == "fork":
            self._fork(name, message)
        elif kind == "usage":
            self._channel.send({"type": "usage", "workers": self._usage()})
        elif kind == "preload":
            self._preloaders.start(message)
        elif kind == "dial":
            self._dials.start(message)
        elif kind in {"exec", "begin", "leave"}:
            self._visit(kind, name, message)
        elif self._preloaders.pass_on(name, message):
            pass
        elif kind == "release":
            self._endings.release(name, int(str(message["epoch"])), float(message["grace_seconds"]))
        elif kind == "cancel":
            self._endings.cancel(name, float(message["grace_seconds"]), str(message.get("call", "")))
        elif kind == "kill":
            self._endings.kill(name)
        elif kind == "stacks":
            self._visit(kind, name, message)

    def _visit(self, kind: str, name: str, message: dict[str, Any]) -> None:
        if self._visits is None:
            from atoll.agent.visits import Visits  # few sandboxes have any

            self._visits = Visits(self, self._channel, self._workers, _bound_processes)
        self._visits.handle(kind, name, message)

    # --- workers ------------------------------------------------------------------------------------------------

    def _fork(self, name: str, message: dict[str, Any]) -> None:
        descriptors = self._channel.take_descriptors(4 if self._first else 5)
        try:
            if self._first:
                descriptors.append(shared_memory.make())
            memory = SharedMemory(descriptors[4])
            if message.get("preloaded") and self._preloaders.fork(name, message, descriptors, memory):
                return
            if not self._use_spare(name, message, descriptors, memory):
                pid = self.fork(lambda: self._serve(message, descriptors))
                self._add_worker(name, Child(pid, os.pidfd_open(pid), memory))
                self._spare_at = time.monotonic() + SPARE_SECONDS
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _add_worker(self, name: str, child: Child) -> None:
        self._workers[name] = child
        self.watch(child.pidfd, lambda: self._reap(name))

    def _serve(self, message: dict[str, Any], descriptors: list[int]) -> int:
        return self._work(message, descriptors, start.prepare_process())

    def _work(self, message: dict[str, Any], descriptors: list[int], state: ProcessState) -> NoReturn:
        self._landlock.set_dumpable(True)
        self._landlock.close()
        env = message.get("env")
        os.environ.update({str(k): str(v) for k, v in env.items()} if isinstance(env, dict) else {})
        os.environ["ATOLL_WORKER_ID"] = str(message["worker"])
        if "TZ" in os.environ:
            time.tzset()  # the C library has looked before
        os.umask(int(message["umask"]))
        os.setsid()
        _bound_processes(message.get("processes"))
        memory = SharedMemory(descriptors[4])
        os.close(descriptors[4])
        control = Channel(Socket(fileno=descriptors[0]))
        serving = worker.Worker(memory.words, control, memory.sheet, self._alarm_end, state)
        serving.run(message, descriptors[1:4])

    def fork(self, serve: Callable[[], int]) -> int:
        """Fork a process that runs `serve` to its end; return its number."""
        pid = os.fork()
        if pid == 0:
            self._run_child(serve)
        return pid

    def _run_child(self, serve: Callable[[], int]) -> NoReturn:
        status = 70
        try:
            self._channel.close()
            self._dials.close()
            os.close(self._alarm)
            if self._spare is not None:
                os.close(self._spare.pidfd)
                self._spare.channel.close()
            self._endings.close()
            self._preloaders.close()
            if self._visits is not None:
                self._visits.close()
            preloading.reseed()
            if self._landlock.enter():  # before any code of a package or a function runs here
                self._landlock.set_dumpable(True)  # a preloader without a domain stays closed, as the agent is
            status = serve()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    def _usage(self) -> dict[str, dict[str, Any]]:
        memories = {name: child.memory for name, child in self._workers.items()} | self._preloaders.workers
        found: dict[str, dict[str, Any]] = {}
        for name, memory in memories.items():
            busy, calls, *_ = memory.words
            found[name] = {"busy": busy, "calls": calls, **meter.running(memory.sheet)}
        return found

    def _reap(self, name: str) -> None:
        child = self._workers.pop(name)
        self.unwatch(child.pidfd)
        os.close(child.pidfd)
        _, status, usage = os.wait4(child.pid, 0)
        busy, calls, *_ = child.memory.words
        between_calls = busy == 0 and calls > 0
        waiting, running = meter.left(child.memory.sheet, usage)
        child.memory.close()
        kill_left_behind(name, child.pid, alone=self._alone, keep=self._preloaders.sessions)
        code = os.waitstatus_to_exitcode(status)
        exited = {"type": "exited", "worker": name, "status": code, "records": waiting, "call": running}
        reason = self._endings.ended(name)
        if between_calls or reason:
            exited["reason"] = "idle" if between_calls else reason
        self._channel.send(exited)

    def preloaded_worker_ended(self, exited: dict[str, Any]) -> None:
        """Report the end of a worker that a preloader has reaped."""
        if self._alone:
            kill_left_behind(str(exited["worker"]), 0, alone=True, keep=self._preloaders.sessions)
        self._channel.send(exited)

    @property
    def _alone(self) -> bool:
        """Return whether the sandbox has no live worker."""
        return self._first and not self._workers and not self._preloaders.workers

    def tell(self, message: dict[str, Any]) -> None:
        """Send to the daemon."""
        self._channel.send(message)

    def serve_preloaded(self, channel: Channel) -> None:
        """Be the agent of a preloader, which this process has become."""
        Agent(channel, self._landlock, first=False).run()

    # --- the spare ----------------------------------------------------------------------------------------------

    def _check_spare(self) -> None:
        if self._spare_at and self._spare_at <= time.monotonic():
            self._spare_at = 0.0
            if self._spare is None:
                self._make_spare()

    def _make_spare(self) -> None:
        ours, theirs = pair()

        def serve() -> int:
            ours.close()
            return self._wait_for_work(Channel(theirs))

        pid = self.fork(serve)
        theirs.close()
        self._spare = Spare(pid, os.pidfd_open(pid), Channel(ours))
        self.watch(self._spare.pidfd, self._spare_ended)

    def _wait_for_work(self, channel: Channel) -> int:
        state = start.prepare_process()
        try:
            message = channel.receive().header
            descriptors = channel.take_descriptors(5)
        except ChannelClosed:
            return 0
        channel.close()
        return self._work(message, descriptors, state)

    def _use_spare(self, name: str, message: dict[str, Any], descriptors: list[int], memory: SharedMemory) -> bool:
        """Make the spare a worker; return whether there was one."""
        spare, self._spare = self._spare, None
        if spare is None:
            return False
        self.unwatch(spare.pidfd)
        try:
            spare.channel.send(message, descriptors=descriptors)
        except (ChannelClosed, OSError):
            with contextlib.suppress(ProcessLookupError):  # it lives where the kernel let no descriptors through
                os.kill(spare.pid, signal.SIGKILL)
            os.close(spare.pidfd)
            os.waitpid(spare.pid, 0)
            return False
        finally:
            spare.channel.close()
        self._add_worker(name, Child(spare.pid, spare.pidfd, memory))
        self._spare_at = time.monotonic()
        return True

    def _spare_ended(self) -> None:
        """Forget a spare that code in the sandbox has killed."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self.unwatch(spare.pidfd)
            os.close(spare.pidfd)
            spare.channel.close()
            os.waitpid(spare.pid, 0)


def _bound_processes(count: object) -> None:
    """Bound how many processes and threads there may be of this sandbox's user when this worker starts another."""
    if isinstance(count, int) and count > 0:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def main() -> None:
    """Run the agent on the channel whose descriptor is the first argument."""
    landlock = Landlock()
    landlock.set_dumpable(False)
    channel = Channel(Socket(fileno=int(sys.argv[1])))
    sys.argv = [""]
    with contextlib.suppress(OSError, KeyError):  # only its owner may make it as programs expect it
        os.mkdir(os.environ["XDG_RUNTIME_DIR"], 0o700)
    start.prepare()
    gc.freeze()
    with contextlib.suppress(ChannelClosed):
        Agent(channel, landlock).run()
    os._exit(0)
