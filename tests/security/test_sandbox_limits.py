"""Attacks from the agent's place: a sandbox is bounded as a whole, whatever its first process does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.environments.built.records import Environment
from atoll.model.specs import EnvironmentSpec, SandboxKey
from atoll.node.node import Node, NodeSandbox
from atoll.sandbox.limits.limits import Limits
from atoll.settings import PoolSettings, SandboxSettings, Settings

from ..conftest import Home
from ..waiting import PATIENCE_SECONDS, POLL_SECONDS

pytestmark = pytest.mark.as_user

OVERHEAD = 96 << 20

# Takes the place of an agent whose memory a function has written to. It never leaves the agent's group.
CODE = """
import os, sys, time
mebibytes, processes = int(sys.argv[1]), int(sys.argv[2])
def hold():
    while True:
        time.sleep(1000)
kept = [bytearray(b"x" * (1 << 20)) for _ in range(mebibytes)]
for number in range(processes):
    try:
        if os.fork() == 0:
            hold()
    except BlockingIOError:
        print(f"refused after {number}", file=sys.stderr, flush=True)
        break
else:
    print("held everything", file=sys.stderr, flush=True)
hold()
"""


class Attack:
    """A sandbox of a real node with hostile code in its agent's place."""

    def __init__(self, node: Node, sandbox: NodeSandbox, log: Path) -> None:
        self.node = node
        self.sandbox = sandbox
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    async def outcome(self, *, held_is_over: bool = True) -> str:
        """Wait until the code has said something or is dead; return its words.

        Args:
            held_is_over: a sandbox that holds everything would not be ended at the next look.
        """
        ended = asyncio.ensure_future(self.sandbox.failure())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not ended.done() and (not self.said or not (held_is_over or self.said.startswith("refused"))):
                    self.node.limits.poll()
                    await asyncio.sleep(POLL_SECONDS)
                return self.said if self.said and (held_is_over or not ended.done()) else "dead"
        finally:
            ended.cancel()


@contextlib.asynccontextmanager
async def attack(
    home: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, processes: int, worker_bytes: int = 0
) -> AsyncIterator[Attack]:
    """Run the code as the agent of a sandbox, with a worker admitted beside it if `worker_bytes` is given."""
    node = Node(Settings(home, sandbox=SandboxSettings(overhead_bytes=OVERHEAD)))
    environment = await node.environments.ensure(EnvironmentSpec("virtualenv"))
    command = [environment.python, "-I", "-S", "-c", CODE, str(mebibytes), str(processes)]
    monkeypatch.setattr(Environment, "command", lambda *_, **__: command)
    sandbox = node.start_sandbox(SandboxKey("someone", environment.key, "none"), environment)
    if worker_bytes:
        sandbox.limit.admit("worker", worker_bytes, 64)
    try:
        yield Attack(node, sandbox, home / "logs" / "sandboxes.log")
    finally:
        await sandbox.kill()
        sandbox.close()
        await node.close()


def test_code_in_the_agent_cannot_take_more_memory_than_the_allowance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a worker the sandbox has the allowance alone; the whole sandbox is ended when it takes more."""

    async def main() -> tuple[str, tuple[int, int] | None]:
        async with attack(tmp_path, monkeypatch, 400, 0) as made:
            return await made.outcome(), made.sandbox.limit.exceeded()

    said, exceeded = asyncio.run(main())
    assert said == "dead"
    assert exceeded is not None
    assert exceeded[0] == OVERHEAD
    assert OVERHEAD * 0.9 < exceeded[1] < 350 << 20


def test_a_live_worker_gives_its_sandbox_its_own_memory_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox's limit is the allowance and the limits of its workers together."""

    async def main(mebibytes: int) -> str:
        async with attack(tmp_path, monkeypatch, mebibytes, 0, worker_bytes=256 << 20) as made:
            return await made.outcome()

    assert asyncio.run(main(200)) == "held everything\n"
    (tmp_path / "logs" / "sandboxes.log").unlink()
    assert asyncio.run(main(600)) == "dead"


def test_code_in_the_agent_cannot_start_more_processes_than_the_allowance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes outside of the workers' groups are counted: refused by the kernel, or ended with the sandbox."""

    async def main() -> str:
        async with attack(tmp_path, monkeypatch, 0, 1000) as made:
            return await made.outcome(held_is_over=False)

    assert asyncio.run(main()).startswith(("refused after", "dead"))


def test_a_shell_has_the_limit_of_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sandbox has no agent and no other worker; it is ended when it takes more than a worker may."""

    async def main() -> int:
        sandbox, pool = SandboxSettings(overhead_bytes=OVERHEAD), PoolSettings(worker_memory_bytes=64 << 20)
        node = Node(Settings(tmp_path, sandbox=sandbox, pool=pool))
        environment = await node.environments.ensure(EnvironmentSpec("virtualenv"))
        command = [environment.python, "-I", "-S", "-c", CODE, "400", "0"]
        monkeypatch.setattr(Environment, "command", lambda *_, **__: command)
        null = os.open(os.devnull, os.O_RDWR)
        key = SandboxKey("someone", environment.key, "none")
        shell = node.start_shell(key, environment, {}, [null] * 3, terminal=False)
        os.close(null)
        ended = asyncio.ensure_future(shell.wait())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not ended.done():
                node.limits.poll()
                await asyncio.sleep(POLL_SECONDS)
        await node.close()
        return ended.result()

    assert asyncio.run(main()) != 0


def test_groups_of_ended_sandboxes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a sandbox's groups is left when it has ended, and nothing of the node's when that has."""

    async def main() -> list[Path]:
        async with attack(tmp_path, monkeypatch, 1, 3) as made:
            places = [place.directory for place in made.node.limits._places]
            assert await made.outcome() == "held everything\n"
            return places

    assert [place for place in asyncio.run(main()) if place.exists()] == []


@isolated(machine_type="XS", keep_alive=60)
def fill(number: int) -> None:
    """Take nearly all of the worker's memory, leave a file in `/tmp`, and end the worker; its sandbox stays."""
    data = bytearray(b"x") * (200 << 20)
    del data
    with open(f"/tmp/left-{number}", "wb") as file:
        file.write(bytearray(b"x") * (30 << 20))
    os._exit(sum(name.startswith("left-") for name in os.listdir("/tmp")))


def test_an_honest_worker_never_pays_for_files_that_others_left(atoll_home: Home, tmp_path: Path) -> None:
    """Files in `/tmp` fill the allowance; before a worker could meet the sandbox's limit, a fresh one is begun.

    A watchdog does not count such files: they have limits of their own.
    """
    limits = Limits(Settings(tmp_path))
    kind = limits.kind
    limits.close()
    if kind == "watchdog":
        pytest.skip("no cgroup can be made here")
    (atoll_home.path / "settings.toml").write_text(f"[sandbox]\noverhead_bytes = {OVERHEAD}\n")
    found = []
    for number in range(4):
        with pytest.raises(errors.WorkerDied) as caught:
            fill(number)
        found.append(caught.value.exit_status)
    assert 2 in found, "a sandbox serves further calls while there is room"
    assert 4 not in found, "a worn one serves none"


@isolated(machine_type="XS", network="none", keep_alive=0)
def fill_sockets() -> int:
    """Send over the sandbox's own loopback what nobody receives; return how many mebibytes the kernel took."""
    import socket

    listening = socket.create_server(("127.0.0.1", 0))
    piece, taken = bytes(1 << 20), 0
    held: list[tuple[socket.socket, socket.socket]] = []
    while taken < 1000 << 20 and len(held) < 400:
        sender = socket.create_connection(listening.getsockname())
        sender.setblocking(False)
        held.append((sender, listening.accept()[0]))
        try:
            while True:
                taken += sender.send(piece)
        except BlockingIOError:
            continue
    return taken >> 20


def test_buffers_of_sockets_are_bounded_as_memory_is(atoll_home: Home, tmp_path: Path) -> None:
    """Bytes that wait in TCP sockets are the kernel's memory, which version 1 counts apart and only if asked to."""
    limits = Limits(Settings(tmp_path))
    kind = limits.kind
    limits.close()
    if kind == "watchdog":
        pytest.skip("no cgroup can be made here")
    try:
        taken = fill_sockets()
    except errors.OutOfMemory:  # version 2 counts them with the rest
        return
    assert taken < 350, "the worker's limit is 256 MiB"


def test_no_process_of_a_sandbox_can_write_a_core_file(shared_home: Home) -> None:
    """A core of a worker would go to the machine's handler, with the caller's data in it."""

    @isolated
    def limits() -> tuple[Any, str]:
        import resource

        return resource.getrlimit(resource.RLIMIT_CORE), Path(f"/proc/{os.getppid()}/limits").read_text()

    own, agents = limits()
    assert own == (0, 0)
    (line,) = [line for line in agents.splitlines() if line.startswith("Max core")]
    assert line.split()[4:6] == ["0", "0"]
