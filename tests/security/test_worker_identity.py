"""Attacks on the daemon's idea of which process is a worker: processes are proven by the kernel and held by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.engine import killing, limiting
from atoll.engine.call_claims import Makers
from atoll.engine.pool_messages import Messages
from atoll.engine.pool_state import PoolState
from atoll.sandbox.held_process import HeldProcess, Member, hold, prove
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import WORKER
from atoll.wire.channel import Channel
from atoll.wire.frames import FrameError

from ..waiting import ended

pytestmark = pytest.mark.as_user

LINE = """
import os, sys
for depth in range(3):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        os._exit(0)
    os.write(1, f"{os.getpid()}\\n".encode())
sys.stdin.read()
"""
"""Four processes, each the child of the one before, like a sandbox's: outer, first process, agent, worker."""


@pytest.fixture
def line() -> Iterator[list[int]]:
    """The numbers of four processes, from the outer one to the worker."""
    outer = subprocess.Popen([sys.executable, "-c", LINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert outer.stdin is not None
    assert outer.stdout is not None
    try:
        yield [outer.pid, *(int(outer.stdout.readline()) for _ in range(3))]
    finally:
        outer.stdin.close()
        outer.stdout.close()
        outer.wait()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine that is in no sandbox."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def dead() -> tuple[int, int]:
    """Return number and pidfd of a process that has ended and was waited for."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    return pid, pidfd


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


def gives_pidfds() -> bool:
    """Return whether this kernel sends pidfds with messages."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ours.setsockopt(socket.SOL_SOCKET, 76, 1)
        except OSError:
            return False
    return True


@pytest.mark.parametrize("by_pidfd", [True, False], ids=["pidfd", "number"])
def test_a_process_below_the_outer_one_is_proven(line: list[int], by_pidfd: bool) -> None:
    """Its first process and its agent are found on the way."""
    outer, init, agent, worker = line
    member = prove(worker, os.pidfd_open(worker) if by_pidfd else -1, outer)
    assert member is not None
    assert (member.pid, member.init, member.agent) == (worker, init, agent)
    assert member.lives()
    copy = member.copy()
    member.close()
    assert not member.lives()
    assert copy.lives()
    copy.close()


def test_processes_outside_of_the_sandbox_are_not_proven(line: list[int], stranger: subprocess.Popen[bytes]) -> None:
    """Neither a process of another place, nor the agent itself, nor one that has ended, nor one that nobody names."""
    outer, init, agent, worker = line
    dead_pid, dead_pidfd = dead()
    assert prove(stranger.pid, -1, outer) is None
    assert prove(stranger.pid, os.pidfd_open(stranger.pid), outer) is None
    assert prove(worker, os.pidfd_open(stranger.pid), outer) is None
    assert prove(agent, -1, outer) is None
    assert prove(init, -1, outer) is None
    assert prove(worker, -1, stranger.pid) is None
    assert prove(dead_pid, dead_pidfd, outer) is None
    assert prove(dead_pid, -1, outer) is None
    assert prove(0, -1, outer) is None


def test_a_process_is_held_below_its_parent_only(line: list[int]) -> None:
    """A number that has passed to a child of somebody else is not taken for the old one."""
    outer, init, agent, _ = line
    held = hold(init, outer)
    assert held is not None
    assert held.lives()
    held.close()
    assert hold(agent, outer) is None


def test_the_kernel_names_the_sender_of_a_greeting(line: list[int]) -> None:
    """The process that sends counts, and not the one that made the socket; on Linux 6.5 it comes as a pidfd."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        channel = AsyncChannel(ours, WORKER)
        channel.learn_sender()
        pid = os.fork()
        if pid == 0:
            Channel(theirs).send({"type": "hello"})
            select.select([], [], [])
        theirs.close()
        await channel.receive()
        sender, pidfd = channel.take_sender()
        assert sender == pid
        assert (pidfd >= 0) == gives_pidfds()
        os.kill(pid, 9)
        if pidfd >= 0:
            assert select.select([pidfd], [], [], 60)[0]
            os.close(pidfd)
        reap(pid)
        channel.close()

    asyncio.run(scenario())


def test_later_messages_cost_no_descriptors() -> None:
    """The kernel is asked for the first sender only; those before it was taken leave nothing open."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        channel, sender = AsyncChannel(ours, WORKER), Channel(theirs)
        channel.learn_sender()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            sender.send({"type": "hello"})
            await channel.receive()
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        _, pidfd = channel.take_sender()
        if pidfd >= 0:
            os.close(pidfd)
        sender.send({"type": "idle"})
        await channel.receive()
        assert channel._channel.sender_pidfd == -1
        assert len(os.listdir("/proc/self/fd")) == before
        channel.close()
        sender.close()

    asyncio.run(scenario())


class World:
    """A pool's messages with one sandbox and one worker, of the processes that a test gives them."""

    def __init__(self, outer: int, process: Any = None) -> None:
        self.state = PoolState()
        self.messages: Any = Messages.__new__(Messages)
        self.sent: list[dict[str, Any]] = []
        self.was_killed = asyncio.Event()
        self.performed: list[Any] = []
        ours, self.theirs = socket.socketpair()
        self.control = AsyncChannel(ours, WORKER)
        self.control.learn_sender()
        limit = SimpleNamespace(admit=lambda *_: None, dismiss=lambda _: None, exceeded=lambda: None)
        node = SimpleNamespace(
            limit=limit,
            pid=outer,
            identify=lambda pid, pidfd: prove(pid, pidfd, outer),
            channel=SimpleNamespace(post=lambda message, _: self.sent.append(message)),
            kill=self._kill,
        )
        self.worker: Any = SimpleNamespace(
            id="w1", sandbox="s1", process=process, pid=0, init=0, agent=0, control=self.control, killed=False
        )
        self.worker.__dict__.update(
            limit=None, allotment=SimpleNamespace(limited=False), cancelled=False, cancelled_call="", lease=None
        )
        self.worker.__dict__.update(
            nested=False,
            cancelled_call="",
            expired=False,
            last=None,
            makers=Makers(),
            ended=asyncio.Event(),
            place=SimpleNamespace(last_records=lambda *_, **__: []),
        )
        self.sandbox: Any = SimpleNamespace(id="s1", node=node, init=None, lived=True)
        self.state.workers["w1"], self.state.sandboxes["s1"] = self.worker, self.sandbox  # type: ignore[assignment]
        self.messages._state = self.state
        self.messages.__dict__.update(
            kill=killing.Killing(self.state, self.messages.to_agent, self.messages.to_worker).kill,
            limiting=SimpleNamespace(ended=lambda _: None),
            nested=SimpleNamespace(ended=lambda _: None),
            _perform=self.performed.append,
            _schedule=SimpleNamespace(worker_ended=lambda *_, **__: []),
        )

    async def _kill(self) -> None:
        self.was_killed.set()

    def close(self) -> None:
        self.theirs.close()
        self.control.close()
        for held in (self.worker.process, self.sandbox.init):
            if isinstance(held, HeldProcess):
                held.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_a_greeting_from_outside_of_the_sandbox_ends_the_worker(line: list[int]) -> None:
    """Who has the worker's channel, and is no process of its sandbox, is not made a worker."""

    async def scenario() -> None:
        world = World(line[0])
        Channel(world.theirs).send({"type": "hello"})  # by this process, which is no child of the sandbox
        await world.messages.listen("w1", world.control)
        assert (world.worker.process, world.worker.pid) == (None, 0)
        assert world.sent == [{"type": "kill", "worker": "w1"}]
        world.close()

    run(scenario())


def test_a_greeting_from_a_process_that_has_ended_ends_the_worker() -> None:
    """Its number may belong to any other process by now."""

    async def scenario() -> None:
        world = World(os.getpid())
        pid = os.fork()
        if pid == 0:
            Channel(world.theirs).send({"type": "hello"})
            os._exit(0)
        reap(pid)
        await world.messages.listen("w1", world.control)
        assert (world.worker.process, world.worker.pid) == (None, 0)
        assert world.sent == [{"type": "kill", "worker": "w1"}]
        world.close()

    run(scenario())


def test_a_worker_is_not_moved_under_a_limit_by_a_number_of_another_process(
    stranger: subprocess.Popen[bytes],
) -> None:
    """After a worker's end its number may be another process's: that one is neither limited nor killed."""
    _, pidfd = dead()
    member = Member(stranger.pid, pidfd, 1, 1)
    added: list[int] = []
    limit: Any = SimpleNamespace(add=added.append, adopt=lambda *_: added.append(0))
    assert limiting._put_under(limit, member)
    member.kill()
    member.close()
    member.kill()
    assert added == []
    assert stranger.poll() is None


def test_strays_are_killed_only_below_a_first_process_that_lives(
    line: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a sandbox's first process may pass on, with the sandbox's end, to one that has children too."""
    outer, init, agent, worker = line
    killed: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, _: killed.append(pidfd))
    for first, found in ((HeldProcess(init, dead()[1]), 0), (HeldProcess(init, os.pidfd_open(init)), 1)):
        strays = [[agent, worker, outer], []]
        limits: Any = SimpleNamespace(strays=lambda *_, left=strays: left.pop(0))
        node = SimpleNamespace(limit=SimpleNamespace(dismiss=lambda _: None))
        sandboxes: Any = {"s1": SimpleNamespace(init=first, node=node)}
        tidy = limiting.Limiting(limits, {}, sandboxes, lambda _: None, lambda _: None)
        tidy.ended(SimpleNamespace(id="w1", sandbox="s1", process=object(), agent=1))  # type: ignore[arg-type]
        assert len(killed) == found, "only the agent is a child of the first process"
        first.close()


def test_an_end_that_is_only_claimed_ends_the_worker(stranger: subprocess.Popen[bytes]) -> None:
    """An agent that reports the end of a worker that lives frees no slot: the process is killed."""

    async def scenario() -> None:
        member = Member(stranger.pid, os.pidfd_open(stranger.pid), 1, 1)
        world = World(os.getpid(), member)
        world.messages._worker_exited("s1", "w1", 0, {"reason": "idle"})
        assert ended(stranger.pid)
        assert not world.state.workers
        world.close()

    run(scenario())


def test_a_worker_ends_also_where_its_agent_is_stopped(
    stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill that the agent does not carry out is the daemon's own; an end that it does not report ends the sandbox."""
    monkeypatch.setattr(killing, "KILLED_SECONDS", 0.01)
    monkeypatch.setattr(killing, "REAPED_SECONDS", 0.01)

    async def scenario() -> None:
        world = World(os.getpid(), Member(stranger.pid, os.pidfd_open(stranger.pid), 1, 1))
        world.messages.kill(world.worker)
        world.messages.kill(world.worker)
        assert world.sent == [{"type": "kill", "worker": "w1"}] * 2
        await asyncio.wait_for(world.was_killed.wait(), 60)
        assert ended(stranger.pid)
        world.state.workers.clear()
        with contextlib.suppress(FrameError):
            await world.state.cancel_tasks()
        world.close()

    run(scenario())
