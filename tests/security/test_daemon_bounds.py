"""Attacks on the daemon's memory and time by code in a sandbox: each is refused, paused or ended, and others go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest

from atoll import __version__, errors, isolated
from atoll.agent import usage
from atoll.agent.worker import Worker
from atoll.daemon import leasing, places
from atoll.daemon.control import Connection
from atoll.daemon.leasing import Caller
from atoll.daemon.running_calls import RunningCalls
from atoll.engine import running_calls
from atoll.engine.accounts import Account, Opener
from atoll.engine.actions import Grant, Request
from atoll.engine.call_claims import Claimed, Place
from atoll.engine.nested_connections import MAX_NESTED_CONNECTIONS, NestedConnections
from atoll.engine.pool_state import PoolState
from atoll.engine.preloading import Preloading
from atoll.engine.schedule import Schedule
from atoll.environments.asked import requirements
from atoll.environments.built import preloads
from atoll.environments.built.preloads import MOST_MODULES, Preloads
from atoll.environments.store import EnvironmentStore
from atoll.host import daemon_start
from atoll.model.resources import Bounds as Places
from atoll.model.specs import EnvironmentSpec, LeaseSpec, SandboxKey, WorkerKey, held_bytes
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import AGENT, CLIENT, NESTED, WORKER, Bounds, Pace
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError, encode
from tests.conformance.engines import embedded_pool
from tests.conftest import Home

from ..waiting import PATIENCE_SECONDS

MEBIBYTE = 1 << 20
SPEC = LeaseSpec(EnvironmentSpec(), "f")


# --- memory -----------------------------------------------------------------------------------------------------------


@isolated(network="none", timeout=60)
def fill_the_daemon(version: str, texts: int, connections: int) -> list[str]:
    """Open nested leases whose messages carry many objects; return the daemon's answers."""
    from atoll.wire import nested
    from atoll.wire.channel import Channel

    spec = '{"environment":{},"function":"f","max_concurrency":1,"identity":"same"}'
    message = f'{{"type":"lease","spec":{spec},"junk":[{"{}," * texts}{{}}]}}'.encode()
    channels, answers = [], []
    for _ in range(connections):
        channel = Channel(nested.connect())
        channels.append(channel)
        channel.socket.settimeout(60)
        with contextlib.suppress(OSError):
            channel.send({"type": "hello", "version": version})
            channel.send(message)
    for channel in channels:
        try:
            channel.receive()
            answers.append(str(channel.receive().type))
        except OSError as error:
            answers.append(type(error).__name__)
    return answers


@pytest.mark.as_user
def test_functions_cannot_fill_the_daemons_memory(atoll_home: Home) -> None:
    """Neither with messages of 4 MiB, which are refused, nor with many of the size that is taken."""
    fill_the_daemon(__version__, 1, 0)
    pid = atoll_home.daemon_pid()
    before = _peak_bytes(pid)
    answers = fill_the_daemon(__version__, 1_390_000, 4)
    assert set(answers) <= {"failed", "ChannelClosed"}
    fill_the_daemon(__version__, 60_000, 24)
    assert _peak_bytes(pid) - before < 48 * MEBIBYTE


def _peak_bytes(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


def test_a_lease_keeps_nothing_of_its_message(run: Run) -> None:
    """Only checked fields of a lease's message live on with the lease."""

    async def scenario() -> None:
        alive: list[Any] = []

        async def ask(_services: Any, _caller: Any, _spec: Any, _client: Any, _listener: Any) -> Any:
            gc.collect()
            alive.extend(one for one in gc.get_objects() if type(one) is list and len(one) == 54_321)
            raise errors.ResourcesUnavailable("enough", hint="")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leasing, "ask", ask)
            asked = _frames({"type": "lease", "spec": SPEC.to_data(), "junk": [{}] * 54_321})
            answer = await _answer(Caller("me", "w1"), asked)
        assert answer[-1]["type"] == "failed"
        assert not alive

    run(scenario())


def test_requests_of_functions_are_accounted_for_by_worker_sandbox_and_user() -> None:
    """A full account refuses by name, and leaves room for other sandboxes and users."""
    account = Account(3, 5, 7, 9)
    one, same, other, user = (Opener(*names) for names in ("uab", "uac", "ude", "vfg"))
    assert [account.take(one) for _ in range(4)] == [True, True, True, False]
    assert account.full(one) == "worker"
    assert [account.take(same) for _ in range(3)] == [True, True, False]
    assert account.full(same) == "sandbox"
    assert [account.take(other) for _ in range(3)] == [True, True, False]
    assert account.full(other) == "user"
    assert [account.take(user) for _ in range(3)] == [True, True, False]
    assert account.full(user) == "total"
    for opener, count in ((one, 3), (same, 2), (other, 2), (user, 2)):
        assert account.held(opener) == count
        account.take(opener, -count)
        assert account.held(opener) == 0
    assert account.take(user, 3)


def test_the_memory_of_a_spec_is_counted() -> None:
    """Many small texts count for the memory that they take, and not for their characters."""
    small = LeaseSpec(EnvironmentSpec(), env=tuple((f"V{number}", "") for number in range(4000)))
    assert held_bytes(SPEC) < 8192
    assert held_bytes(small) > 400_000
    services: Any = SimpleNamespace(request_bytes=Account(held_bytes(small) + 1000, 1 << 30, 1 << 30, 1 << 30))
    caller = Caller("me", "w1", sandbox="s1")
    with places.request_bytes(services, caller, small):
        with pytest.raises(errors.ResourcesUnavailable, match="one worker"):
            places.request_bytes(services, caller, small).__enter__()
        with places.request_bytes(services, Caller("me", "w2", sandbox="s1"), small):
            pass
    with places.request_bytes(services, caller, small):
        pass


@pytest.mark.parametrize(
    "more",
    [
        {"env": {f"V{number}": "" for number in range(5000)}},
        {"mounts": {f"/m{number}": "/" for number in range(5000)}},
        {"preload": ["m"] * 5000},
        {"environment": {"kind": "conda", "packages": ["p" * 30_000] * 20, "pip": ["q" * 30_000] * 20}},
    ],
    ids=["variables", "mounts", "modules", "conda"],
)
def test_lists_of_a_spec_are_bounded(more: dict[str, Any]) -> None:
    """A small text makes no large values."""
    with pytest.raises(ValueError, match="more than"):
        LeaseSpec.from_data({**SPEC.to_data(), **more})


@pytest.mark.parametrize("part", [[], {}, 1, {"a": 1}])
def test_a_message_with_very_many_values_is_not_read(part: Any) -> None:
    """A function's message has at most so many, whatever its bytes; one of many texts with few values is read."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel = AsyncChannel(theirs, NESTED)
        sender = Channel(ours)
        try:
            sender.send({"type": "lease", "spec": ["x" * 100] * 1000})
            assert (await channel.receive()).type == "lease"
            threading.Thread(target=sender.send, args=({"x": [part] * NESTED.header_parts},), daemon=True).start()
            with pytest.raises(FrameError, match="parts"):
                await channel.receive()
        finally:
            channel.close()
            sender.close()

    asyncio.run(main())


def test_a_message_over_the_bound_is_refused_by_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the honest client, before it sends, and the daemon name the sizes."""

    async def scenario() -> None:
        answers = await _answer(
            Caller("me", "w1"), _frames({"type": "lease", "spec": "x" * NESTED.header_bytes}), NESTED
        )
        assert answers[-1]["error"]["code"] == "resources_unavailable"
        assert str(NESTED.header_bytes) in answers[-1]["error"]["message"]

    run(scenario())
    large = {"type": "lease", "spec": "x" * (NESTED.header_bytes + 1)}
    assert daemon_start._text(large)
    monkeypatch.setattr("atoll.wire.nested._control", (0, None))
    with pytest.raises(errors.ResourcesUnavailable, match=str(NESTED.header_bytes)):
        daemon_start._text(large)


def test_memory_of_large_messages_is_reserved_and_given_back(run: Run) -> None:
    """A message larger than the channel's own memory is read only where its account has room; an idle one has none."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        channel, held = AsyncChannel(theirs, NESTED), [0, 40_000]
        channel.reserve(lambda size: _take(held, size))
        sender = Channel(ours)
        sender.send({"type": "x" * 30_000})
        assert (await channel.receive()).type == "x" * 30_000
        sender.send({"type": "small"})
        assert (await channel.receive()).type == "small"
        assert held[0] == 0
        thread = threading.Thread(target=_send_quietly, args=(sender, {"type": "x" * 100_000}))
        thread.start()
        with pytest.raises(FrameError, match="no memory"):
            await channel.receive()
        assert held[0] > 0
        channel.close()
        assert held[0] == 0
        thread.join()
        sender.close()

    run(scenario())


def _take(held: list[int], size: int) -> bool:
    if held[0] + size > held[1]:
        return False
    held[0] += size
    return True


def _send_quietly(channel: Channel, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        channel.send(message)


def test_one_read_decodes_few_messages(run: Run) -> None:
    """The objects of messages that nobody has received are few, also behind a message that needed more memory."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MEBIBYTE)
        with ours:
            ours.setblocking(False)
            ours.send(b"".join([*encode({"type": "x" * 60_000}), *encode({}) * 8000]))
            channel = AsyncChannel(theirs, NESTED)
            await channel.receive()
            await channel.receive()
            assert len(channel._channel._decoder.messages) < 500
            channel.close()

    run(scenario())


def test_a_client_that_does_not_read_loses_lines_of_progress(run: Run) -> None:
    """Nothing gathers for it in the daemon."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            channel = AsyncChannel(theirs, NESTED)
            connection = Connection(SimpleNamespace(), channel, Caller("me", "w1"), lambda _: None)  # type: ignore[arg-type]
            for _ in range(2000):
                connection._progress("x" * 4000)
            assert channel.queued_bytes < 5000
            channel.close()

    run(scenario())


def test_usage_keeps_what_is_known_of_the_sandboxs_own_workers() -> None:
    """Whatever else an agent reports is dropped at once."""
    state = PoolState()
    state.workers["w1"] = SimpleNamespace(id="w1", sandbox="s1")  # type: ignore[assignment]
    junk = {"busy": 10**400, "calls": True, "call": "c" * 10_000, "function": ["f"] * 10_000, "more": [{}] * 1000}
    found = running_calls.used(
        state.workers_in("s1"), {"w1": junk, "w2": junk, **{f"x{number}": {} for number in range(1000)}}
    )
    assert list(found) == ["w1"]
    assert len(json.dumps(found)) < 400
    assert running_calls.used(state.workers_in("s2"), {"w1": junk}) == {}


def test_connections_are_refused_by_name_and_end_with_their_worker(run: Run) -> None:
    """A worker, a sandbox and a user have a share; the honest client is told, and the daemon keeps none for the dead."""

    async def scenario() -> None:
        serving = 0

        async def serve(connection: socket.socket, opener: Opener) -> None:
            nonlocal serving
            serving += 1
            try:
                await asyncio.Event().wait()
            finally:
                serving -= 1
                connection.close()

        connections, clients = NestedConnections(serve), list[socket.socket]()
        pace = Pace(1e6, 1e6)
        for _ in range(MAX_NESTED_CONNECTIONS + 1):
            ours, theirs = socket.socketpair()
            clients.append(ours)
            connections.open(theirs, "me", "s1", "w1", pace)
        await turns(lambda: serving == MAX_NESTED_CONNECTIONS)
        refused = Channel(clients.pop())
        assert refused.receive().header["error"]["code"] == "resources_unavailable"
        refused.close()
        connections.ended("w1")
        await turns(lambda: not serving)
        await turns(lambda: not connections._account.held(Opener("me", "s1", "w1")))
        assert all(client.recv(1) == b"" for client in clients)
        for client in clients:
            client.close()
        ours, theirs = socket.socketpair()
        connections.open(theirs, "me", "s1", "w1", pace)  # and its end, before its first step
        await connections.close()
        assert ours.recv(1) == b""
        ours.close()

    run(scenario())


def test_what_calls_import_is_bounded(tmp_path: Path) -> None:
    """Names that functions make up fill neither the daemon's memory nor the environment's file."""
    found = Preloads()
    for number in range(4):
        names = {f"m{number}_{one}": "r" for one in range(MOST_MODULES)}
        found = found.with_outcome((), (), names)
    assert len(found.refused) == MOST_MODULES


def test_answers_of_an_agent_are_heard_as_often_as_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that reports again and again makes the daemon write no further files and lines of its log."""
    written: list[Preloads] = []
    monkeypatch.setattr(preloads, "write", lambda _, found, **__: written.append(found))
    sandbox: Any = SimpleNamespace(unwanted=False, lived=True, key=SandboxKey("me", "e"))
    worker: Any = SimpleNamespace(key=SimpleNamespace(sandbox=sandbox.key))
    environments: Any = {"e": SimpleNamespace(directory=tmp_path)}
    learned = Preloading({"s": sandbox}, environments, lambda _: {}, lambda *_: None)
    learned.imported(worker, {"modules": ["a", "b", "c"]})
    for number in range(50):
        learned.refused("s", {"module": "a", "reason": f"{number}"})
        learned.finished("s", {"modules": ["b"], "refused": {"c": f"{number}"}})
    assert len(written) == 3


# --- time -------------------------------------------------------------------------------------------------------------

Run = Callable[[Any], None]


@pytest.fixture
def run() -> Run:
    """Run a scenario in a thread: a loop that a flood keeps busy for ever fails the test, and does not hang it."""

    def on_thread(scenario: Any) -> None:
        outcome: list[BaseException] = []

        def work() -> None:
            try:
                asyncio.run(asyncio.wait_for(scenario, PATIENCE_SECONDS))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS / 4)
        assert not thread.is_alive(), "the event loop has no turn for others"
        for error in outcome:
            raise error

    return on_thread


async def turns(condition: Callable[[], bool]) -> None:
    """Give the loop turns until a condition holds."""
    while not condition():  # noqa: ASYNC110 - the turns are counted
        await asyncio.sleep(0)


def test_a_pace_pauses_a_peer_that_is_ahead() -> None:
    """Tokens gather up to the burst; a group's pace holds for its members together."""
    now = [0.0]
    group = Pace(10, 10, clock=lambda: now[0])
    first, second = (Pace(100, 5, group, clock=lambda: now[0]) for _ in range(2))
    first.take(5)
    assert first.seconds() == 0
    first.take(1)
    assert first.seconds() == pytest.approx(0.01)
    second.take(4)
    second.take(5)
    assert second.seconds() == pytest.approx(0.5)
    now[0] = 100.0
    assert first.seconds() == second.seconds() == 0
    first.take(5)
    assert first.seconds() == 0


@contextlib.contextmanager
def flood(sock: socket.socket, message: dict[str, Any]) -> Iterator[None]:
    """Send a message from a process of its own, again and again, as fast as it is read."""
    data = b"".join(encode(message)) * 1000
    sock.setblocking(True)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            while True:
                sock.sendall(data)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("bounds", [AGENT, WORKER, NESTED, CLIENT], ids=["agent", "worker", "nested", "client"])
def test_a_flood_leaves_the_loop_to_others(run: Run, bounds: Bounds) -> None:
    """Between two turns of the loop, one message of a peer is handled."""

    async def scenario() -> None:
        handled = turns = most = 0

        async def receive(channel: AsyncChannel) -> None:
            nonlocal handled
            with contextlib.suppress(ChannelClosed):
                while True:
                    await channel.receive()
                    handled += 1

        ours, theirs = socket.socketpair()
        channel = AsyncChannel(theirs, bounds)
        with ours, flood(ours, {"type": "usage"}):
            task = asyncio.ensure_future(receive(channel))
            while handled < 3000:
                before = handled
                await asyncio.sleep(0)
                turns += 1
                most = max(most, handled - before)
            channel.close()
            await task
        assert most <= 2
        assert turns >= 1000

    run(scenario())


@pytest.mark.parametrize("bounds", [AGENT, WORKER, NESTED], ids=["agent", "worker", "nested"])
def test_a_flood_is_held_up_in_the_kernel(run: Run, bounds: Bounds) -> None:
    """A peer that is ahead of its pace is not read: no more than its burst is handled at once."""

    async def scenario() -> None:
        now = [0.0]
        ours, theirs = socket.socketpair()
        channel = AsyncChannel(theirs, bounds, Pace(bounds.rate, bounds.burst, clock=lambda: now[0]))
        handled = 0
        with ours, flood(ours, {"type": "usage"}):
            while channel._pace is not None and channel._pace.seconds() == 0:
                await channel.receive()
                handled += 1
            waiting = asyncio.ensure_future(channel.receive())
            for _ in range(100):
                await asyncio.sleep(0)
            assert not waiting.done()
            assert handled <= bounds.burst + 1
            now[0] = 3600.0
            await waiting
            channel.close()

    run(scenario())


@pytest.mark.as_user
def test_calls_of_other_sandboxes_finish_while_an_agent_floods(run: Run) -> None:
    """Leases are granted and `status` is answered; few messages of the flood are handled meanwhile."""

    async def scenario() -> None:
        async with embedded_pool() as bench:
            node: Any = bench.engine._node  # type: ignore[attr-defined]
            messages: Any = bench.engine._messages  # type: ignore[attr-defined]
            handled, original = [0], messages._from_agent

            def count(name: str, message: dict[str, Any], channel: AsyncChannel) -> None:
                handled[0] += message.get("type") == "junk"
                original(name, message, channel)

            messages._from_agent = count
            hostile = bench.engine.ask("ann", LeaseSpec(EnvironmentSpec(), network="none"), bench.environment, None)
            bench.leases.append(hostile)
            await hostile.granted
            agent = socket.socket(fileno=os.dup(node.live[0]._agent._channel.fileno()))
            with agent, flood(agent, {"type": "junk"}):
                await turns(lambda: handled[0] > 0)
                for _ in range(20):
                    spec = LeaseSpec(EnvironmentSpec(), network="outbound")
                    lease = bench.engine.ask("bob", spec, bench.environment, None)
                    bench.leases.append(lease)
                    await lease.granted
                    await bench.engine.status("bob")
                    lease.release()
            hostile.release()
            assert handled[0] <= AGENT.burst + AGENT.rate * PATIENCE_SECONDS

    run(scenario())


def test_a_client_that_speaks_while_it_waits_is_refused(run: Run) -> None:
    """A message out of turn does not keep the loop busy for as long as the lease waits."""

    async def scenario() -> None:
        released: list[bool] = []
        lease: Any = SimpleNamespace(
            worker="",
            granted=asyncio.get_running_loop().create_future(),
            position=lambda: 0,
            reason=lambda: "its turn: next in line",
            release=lambda: released.append(True),
        )

        async def ask(*_: Any) -> Any:
            return lease

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leasing, "ask", ask)
            asked = _frames({"type": "lease", "spec": SPEC.to_data()})
            answers = await _answer(Caller("me", "w1"), asked, later={"type": "junk"})
        assert answers[-1]["error"]["code"] == "protocol_mismatch"
        assert released == [True]

    run(scenario())


def test_a_function_pays_for_the_reading_of_its_requirements(run: Run) -> None:
    """A lease with many requirements costs tokens by their size; of its connections one at a time has them read."""

    async def scenario() -> None:
        now = [0.0]
        pace = Pace(NESTED.rate, NESTED.burst, clock=lambda: now[0])
        names, asked = [f"a{number}>=1,<2;python_version<'3'" for number in range(190)], [0]

        async def ask(*_: Any) -> Any:
            asked[0] += 1
            raise errors.ResourcesUnavailable("enough", hint="")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leasing, "ask", ask)
            message = _frames({"type": "lease", "spec": {**SPEC.to_data(), "environment": {"requirements": names}}})
            pace.take(NESTED.burst - 10)
            answers = [asyncio.ensure_future(_answer(Caller("me", "w1"), message, NESTED, pace=pace)) for _ in "ab"]
            await turns(lambda: asked[0] > 0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert asked[0] == 1
            assert pace.seconds() > 1
            now[0] = 3600.0
            for answer in answers:
                assert (await answer)[-1]["type"] == "failed"

    run(scenario())


NESTED_SERVICES: Any = SimpleNamespace(
    engine=SimpleNamespace(
        environment_of=lambda worker: EnvironmentSpec(requirements=("b",) * 300 if worker == "large" else ()),
        is_trusted=lambda _: False,
        network_of=lambda _: "none",
    ),
    settings=SimpleNamespace(environments=SimpleNamespace(functions_use_credentials=True)),
)


def test_long_requirements_of_a_function_are_refused_by_name() -> None:
    """They would be read on the loop; the calling function's own ones have been read."""
    long = EnvironmentSpec(requirements=("b",) * 300)
    for spec in (
        long,
        EnvironmentSpec(requirements=("a;" + " or ".join(["os_name=='z'"] * 3000),)),
        EnvironmentSpec(kind="conda", packages=("a",) * 100, channels=("c",) * 60, pip=("p",) * 60),
    ):
        with pytest.raises(errors.ResourcesUnavailable, match="may have 200"):
            leasing.checked(NESTED_SERVICES, Caller("me", "w1"), LeaseSpec(spec, "f"))
    assert leasing.checked(NESTED_SERVICES, Caller("me", "large"), LeaseSpec(long, "f")).environment == long


def test_requirements_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks and the build of one request, and further requests with the same list, share the result."""
    read, checked, named, is_remote = [0], [0], requirements._named, requirements._is_remote
    monkeypatch.setattr(requirements, "_named", lambda *of: (read.__setitem__(0, read[0] + 1), named(*of))[1])
    monkeypatch.setattr(
        requirements, "_is_remote", lambda of: (checked.__setitem__(0, checked[0] + 1), is_remote(of))[1]
    )
    names = tuple(f"read-once-{number}" for number in range(50))
    for _ in range(3):
        leasing.checked(NESTED_SERVICES, Caller("me", "w1"), LeaseSpec(EnvironmentSpec(requirements=names), "f"))
        requirements.parse(names)
    assert (read[0], checked[0]) == (50, 50)
    for number in range(100):
        requirements.parse((f"other-{number}",))
    assert not requirements.is_known(names)


def test_builds_of_one_worker_take_turns(run: Run) -> None:
    """Those of other workers and of programs start at once."""

    async def scenario() -> None:
        store: Any = SimpleNamespace(_turns=WeakValueDictionary())
        building: list[str] = []
        end = asyncio.Event()

        async def build(worker: str) -> None:
            async with EnvironmentStore._turn(store, worker):
                building.append(worker)
                await end.wait()

        tasks = [asyncio.ensure_future(build(worker)) for worker in ["w1"] * 20 + ["w2", ""]]
        await turns(lambda: len(building) >= 4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert building == ["w1", "w1", "w2", ""]
        tasks[5].cancel()
        end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert building.count("w1") == 19
        del tasks
        await asyncio.sleep(0)  # the loop lets go of the task that was cancelled
        gc.collect()
        assert not store._turns

    run(scenario())


@pytest.mark.as_user
def test_leases_that_one_function_hoards_keep_no_program_waiting() -> None:
    """A program's request, and another function's, come before further ones of a worker that holds leases."""
    schedule = Schedule(Places(2, 64, 8))
    key = WorkerKey(SandboxKey("me", "e"))
    actions = [*schedule.ask(Request("hostile", key, 10)), *schedule.ask(Request("honest", key, 10))]
    hostile, honest = (action.worker for action in actions if isinstance(action, Grant))
    for number in range(100):
        actions += schedule.ask(Request(f"h{number}", key, 10, parent=hostile))
    schedule.ask(Request("program", key, 10))
    actions = schedule.ask(Request("other", key, 10, parent=honest))
    other = next(action.worker for action in actions if isinstance(action, Grant))
    schedule.ask(Request("more", key, 10, parent=honest))
    assert schedule.position("program") == 0
    assert [request.id for request in schedule.waiting[:4]] == ["program", "h1", "more", "h2"]
    schedule.withdraw("more")
    actions = schedule.worker_ended(1.0, other) + schedule.worker_ended(1.0, honest)
    assert "program" in [action.request for action in actions if isinstance(action, Grant)]


def test_an_unused_lease_that_others_wait_for_ends_before_its_keep_alive() -> None:
    """Else a function would hold a core for as long as it likes, and compute nothing."""
    worker = Worker.__new__(Worker)
    control: Any = SimpleNamespace(fill=lambda: True, pending=True)

    def receive() -> Any:
        control.pending = False
        return SimpleNamespace(header={"type": "reclaim", "epoch": 3})

    control.receive = receive
    worker._control, worker._data = control, None
    worker._epoch, worker._served, worker._reclaimed = 3, False, False
    worker._deadline, worker._first_call_by = 1e9, 5.0
    worker._listen()
    assert worker._deadline == 5.0


def test_records_beyond_the_rate_are_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker, and all workers of a user together, make the daemon read so many a second."""
    read = [0]

    def count(slots: str, last: Any) -> list[list[Any]]:
        read[0] += 1
        return [["c", "f", "", 0.0, 0.0, 0.0, 0.0, 0, 0, 0, "ok", "", ""]] * 100

    monkeypatch.setattr(usage, "read_slots", count)
    users = Pace(1000, 1000, clock=lambda: 0.0)
    first, second = (Place(SandboxKey("me", "e"), "s", name, lambda: 0.0, users) for name in ("w1", "w2"))
    kept = sum(len(list(first.reported({"slots": "", "last": []}, nested=False))) for _ in range(500))
    assert (kept, read[0]) == (1100, 11)
    assert list(second.reported({"slots": "", "last": []}, nested=False)) == []
    assert read[0] == 11


# --- a connection -----------------------------------------------------------------------------------------------------


def _frames(message: dict[str, Any]) -> bytes:
    return b"".join([*encode({"type": "hello", "version": __version__}), *encode(message)])


async def _answer(
    caller: Caller,
    data: bytes,
    bounds: Bounds = CLIENT,
    later: dict[str, Any] | None = None,
    pace: Pace | None = None,
) -> list[dict[str, Any]]:
    """Serve a connection that carries these bytes; return everything that the daemon answers.

    Args:
        later: is sent after the first `waiting`.
    """
    ours, theirs = socket.socketpair()
    account = Account(1 << 30, 1 << 30, 1 << 30, 1 << 30)
    outputs = SimpleNamespace(close=lambda _: None)
    services: Any = SimpleNamespace(
        request_bytes=account,
        recorder=SimpleNamespace(add=lambda _: None),
        outputs=outputs,
        claimed=Claimed(),
        joined=SimpleNamespace(fence=SimpleNamespace(check=lambda: None)),
        running_calls=RunningCalls(SimpleNamespace()),
    )
    connection = Connection(services, AsyncChannel(theirs, bounds, pace), caller, lambda _: None)
    serving = asyncio.ensure_future(connection.serve())
    client = AsyncChannel(ours)
    answers = []
    loop = asyncio.get_running_loop()
    writing = loop.create_task(_write(client, data))
    with contextlib.suppress(ChannelClosed):
        while True:
            answers.append((await client.receive()).header)
            if answers[-1].get("type") == "waiting" and later is not None:
                await client.send(later)
    await serving
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    client.close()
    return answers


async def _write(client: AsyncChannel, data: bytes) -> None:
    view = memoryview(data)
    while view:
        with contextlib.suppress(BlockingIOError):
            view = view[client._channel.socket.send(view[:4096], socket.MSG_DONTWAIT) :]
        await asyncio.sleep(0)
