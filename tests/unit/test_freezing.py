"""The pause of a user's sandboxes during a switch: nothing runs in it, and it always ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from atoll.node import freezing
from atoll.node.freezing import Pauses
from atoll.process import is_stopped
from atoll.sandbox.limits.freezing import Freezer, GroupFreezer, StopSignals
from atoll.sandbox.limits.memory_watchdog import children
from atoll.sandbox.limits.sandbox_limit import SandboxLimit
from atoll.storage.sync.pause import Pause
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import PEER
from atoll.wire.channel import Channel, ChannelClosed, pair

from ..waiting import until

FAMILY = """
import os, subprocess, sys
below = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"], stdout=subprocess.PIPE)
below.stdout.readline()
print(below.pid, flush=True)
below.wait()
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process and its child, by their numbers."""
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        below = int(process.stdout.readline())
        try:
            yield process.pid, below
        finally:
            for pid in (below, process.pid):
                os.kill(pid, signal.SIGKILL)


def test_signals_stop_all_that_runs_and_wake_nothing_else(family: tuple[int, int]) -> None:
    """A process that was stopped before stays stopped."""
    above, below = family
    os.kill(below, signal.SIGSTOP)
    until(lambda: is_stopped(below))
    freezer = StopSignals(lambda: [above, *children(above)])
    freezer.freeze()
    until(freezer.is_frozen)
    assert is_stopped(above)
    assert (freezer.stops(above), freezer.stops(below)) == (True, False)
    freezer.thaw()
    freezer.thaw()
    until(lambda: not is_stopped(above))
    assert is_stopped(below)
    os.kill(below, signal.SIGCONT)
    again = StopSignals(lambda: [above, *children(above)])
    until(lambda: not is_stopped(below))
    again.freeze()
    until(again.is_frozen)
    assert is_stopped(above)
    assert is_stopped(below)
    again.thaw()
    until(lambda: not is_stopped(above) and not is_stopped(below))


@pytest.fixture
def in_vfork() -> Iterator[int]:
    """A process that waits in `vfork` for its child, which waits for a signal."""
    script = """
import ctypes, mmap, signal
libc = ctypes.CDLL(None)
stack = mmap.mmap(-1, 1 << 16)
top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 16)
signal.signal(signal.SIGINT, signal.SIG_DFL)
libc.clone(libc.pause, ctypes.c_void_p(top), 0x4000 | 0x100 | signal.SIGCHLD, None)
print("over", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            until(lambda: bool(children(process.pid)))
            yield process.pid
        finally:
            for pid in [*children(process.pid), process.pid]:
                os.kill(pid, signal.SIGKILL)


def test_a_process_in_vfork_is_still_while_its_child_is(in_vfork: int) -> None:
    """It takes the stop before it runs again: once the child has gone it is stopped, until the pause ends."""
    (below,) = children(in_vfork)
    freezer = StopSignals(lambda: [in_vfork, *children(in_vfork)])
    until(freezer.is_frozen)
    assert (is_stopped(in_vfork), is_stopped(below)) == (False, True)
    assert freezer.stops(in_vfork)
    os.kill(below, signal.SIGKILL)
    until(lambda: is_stopped(in_vfork))
    assert freezer.is_frozen()
    freezer.thaw()
    until(lambda: not is_stopped(in_vfork))


def test_a_child_that_no_list_has_shown_yet_counts_as_running(in_vfork: int) -> None:
    """A process that is seen in `vfork` may have begun it since the last list."""
    lists = [[in_vfork], [in_vfork]]
    freezer = StopSignals(lambda: lists.pop(0) if lists else [in_vfork, *children(in_vfork)])
    assert not freezer.is_frozen()
    until(freezer.is_frozen)
    assert all(is_stopped(pid) for pid in children(in_vfork))
    freezer.thaw()


def groups() -> dict[str, tuple[Path, int]]:
    """Return where groups that can be frozen may be made here, with their versions."""
    places = {"version 1": (Path("/sys/fs/cgroup/freezer"), 1)}
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if Path(mount, "cgroup.controllers").exists():
            places["version 2"] = (Path(mount), 2)
    return {name: place for name, place in places.items() if os.access(place[0] / "cgroup.procs", os.W_OK)}


@pytest.mark.parametrize("version", ["version 1", "version 2"])
def test_the_kernel_stops_a_group_without_a_trace(version: str, family: tuple[int, int]) -> None:
    """No process of the group looks stopped, and all go on."""
    if version not in groups():
        pytest.skip(f"no groups of {version} here")
    above, number = groups()[version]
    group = above / f"atoll-test-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        for pid in family:
            (group / "cgroup.procs").write_text(str(pid))
        freezer = GroupFreezer(group, number)
        assert not freezer.is_frozen()
        freezer.freeze()
        until(freezer.is_frozen)
        assert not any(is_stopped(pid) or freezer.stops(pid) for pid in family)
        freezer.thaw()
        assert not freezer.is_frozen()
        for pid in family:
            (above / "cgroup.procs").write_text(str(pid))
    finally:
        until(lambda: not remaining(group))
    freezer.freeze()
    assert freezer.is_frozen(), "a sandbox that has ended keeps nobody waiting"
    freezer.thaw()


def test_a_pause_that_takes_long_is_asked_for_again(tmp_path: Path) -> None:
    """In version 1 a process that forks just then may miss it."""
    (tmp_path / "freezer.state").write_text("FREEZING")
    assert not GroupFreezer(tmp_path, 1).is_frozen()
    assert (tmp_path / "freezer.state").read_text().startswith("FROZEN")


def remaining(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return group.exists()


class Fake:
    """A sandbox as far as pauses know it, and its freezer."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.frozen = False
        self.times = 0
        self._stuck = stuck

    def freezer(self) -> Freezer:
        return cast("Freezer", self)

    def freeze(self) -> None:
        self.frozen = True
        self.times += 1

    def is_frozen(self) -> bool:
        return self.frozen and not self._stuck

    def thaw(self) -> None:
        self.frozen = False

    def stops(self, pid: int) -> bool:
        return self.frozen and pid == 1

    @property
    def limit(self) -> SandboxLimit:
        return cast("SandboxLimit", self)


def serve(work: Callable[[Pauses, Callable[[str], Channel]], Any]) -> None:
    """Run work in a thread beside the pauses of a loop; it is given them, and what opens a peer's channel for a user."""

    async def main() -> None:
        pauses, loop, tasks = Pauses(), asyncio.get_running_loop(), list[asyncio.Task[None]]()

        async def opened(user: str) -> Channel:
            ours, theirs = pair()
            tasks.append(asyncio.create_task(pauses.serve(user, AsyncChannel(ours, PEER))))
            return Channel(theirs)

        def open_channel(user: str) -> Channel:
            return asyncio.run_coroutine_threadsafe(opened(user), loop).result()

        await asyncio.to_thread(work, pauses, open_channel)
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_pause_is_that_of_one_user_and_takes_in_what_starts_meanwhile() -> None:
    """Sandboxes of others go on; one that ends meanwhile does not matter."""
    mine, late, other = Fake(), Fake(), Fake()

    def work(pauses: Pauses, open_channel: Callable[[str], Channel]) -> None:
        pauses.add("me", mine.limit)
        pauses.add("other", other.limit)
        with contextlib.closing(open_channel("me")) as channel:
            with Pause(channel).held():
                assert mine.frozen
                assert pauses.stops("me", 1)
                assert not pauses.stops("other", 1)
                pauses.add("me", late.limit)
                assert late.frozen
            until(lambda: not mine.frozen and not late.frozen)
            pauses.remove("me", mine.limit)
            with Pause(channel).held():
                assert (mine.frozen, late.frozen) == (False, True)
        until(lambda: not late.frozen)

    serve(work)
    assert (mine.times, late.times, other.times) == (1, 2, 0)


def test_a_pause_ends_with_its_peer_and_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that dies, or says nothing more, keeps nothing frozen; the latter may have another pause."""
    mine = Fake()

    def work(pauses: Pauses, open_channel: Callable[[str], Channel]) -> None:
        pauses.add("me", mine.limit)
        channel = open_channel("me")
        channel.send({"type": "freeze"})
        assert channel.receive().type == "frozen"
        channel.close()
        until(lambda: not mine.frozen)
        monkeypatch.setattr(freezing, "MOST_SECONDS", 0.05)
        with contextlib.closing(open_channel("me")) as channel:
            with Pause(channel).held():
                until(lambda: not mine.frozen)
            with Pause(channel).held():
                assert mine.frozen

    serve(work)


def test_a_sandbox_that_cannot_be_frozen_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch goes on after a while and is told; the next ones wait less, until one succeeds."""
    monkeypatch.setattr(freezing, "FREEZING_SECONDS", 0.08)
    stuck = Fake(stuck=True)

    def work(pauses: Pauses, open_channel: Callable[[str], Channel]) -> None:
        pauses.add("me", stuck.limit)
        with contextlib.closing(open_channel("me")) as channel:
            pause = Pause(channel)
            for patience in (0.05, 0.05):
                with pause.held():
                    assert stuck.frozen
                    assert not pause.whole
                    assert pauses._patience == {"me": patience}
            stuck._stuck = False
            with pause.held():
                assert pause.whole
                assert not pauses._patience
        until(lambda: not stuck.frozen)

    serve(work)


def test_the_pauses_of_a_user_have_turns_and_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two peers do not pause one user together, and together no more than a share of the time."""
    waits = list[float]()
    sleep = asyncio.sleep

    async def remembered(seconds: float) -> None:
        if seconds > 0.01:
            waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", remembered)
    mine = Fake()

    def work(pauses: Pauses, open_channel: Callable[[str], Channel]) -> None:
        pauses.add("me", mine.limit)
        with contextlib.closing(open_channel("me")) as first, contextlib.closing(open_channel("me")) as second:
            first.send({"type": "freeze"})
            assert first.receive().type == "frozen"
            second.send({"type": "freeze"})
            pauses._paces["me"].take(1.0)  # as if the pause had taken so long
            assert not waits
            first.send({"type": "thaw"})
            assert second.receive().type == "frozen"
            second.send({"type": "thaw"})

    serve(work)
    assert 0 < waits[0] <= 1.0 / freezing.SHARE
    assert mine.times == 2


def test_a_peer_without_a_daemon_goes_on() -> None:
    """Where nobody answers there is no pause, and no error."""
    with Pause(None).held():
        pass
    ours, theirs = pair()
    ours.close()
    pause = Pause(Channel(theirs))
    for _ in range(2):
        with pause.held():
            pass


def test_a_peer_that_sends_something_else_is_left() -> None:
    """The daemon closes the channel, and nothing is frozen."""
    mine = Fake()

    def work(pauses: Pauses, open_channel: Callable[[str], Channel]) -> None:
        pauses.add("me", mine.limit)
        with contextlib.closing(open_channel("me")) as channel:
            channel.send({"type": "something"})
            with pytest.raises(ChannelClosed):
                channel.receive()

    serve(work)
    assert not mine.times
