"""Every engine keeps the contract: leases are granted, bounded, killed and given back, each user's apart."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from atoll import errors
from atoll.engine.contract import EngineLease
from atoll.model.specs import EnvironmentSpec, LeaseSpec
from tests.conformance.engines import ENGINES, Bench

SECONDS = 30.0
Scenario = Callable[[Bench], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]


@pytest.fixture(params=sorted(ENGINES))
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario on a fresh engine, for a minute at most."""

    async def on_engine(scenario: Scenario) -> None:
        async with ENGINES[request.param]() as bench:
            try:
                await asyncio.wait_for(scenario(bench), 60)
            finally:
                for lease in bench.leases:
                    lease.close_descriptors()

    return lambda scenario: asyncio.run(on_engine(scenario))


def ask(bench: Bench, user: str = "ann", **terms: Any) -> EngineLease:
    spec = LeaseSpec(EnvironmentSpec(), network="none", **terms)
    lease = bench.engine.ask(user, spec, bench.environment, None)
    bench.leases.append(lease)
    return lease


async def granted(bench: Bench, user: str = "ann", **terms: Any) -> EngineLease:
    lease = ask(bench, user, **terms)
    await asyncio.wait_for(asyncio.shield(lease.granted), SECONDS)
    return lease


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


def test_a_lease_is_granted_with_its_ends(run: Run) -> None:
    """It names a worker and has three descriptors, which are the client's until they are closed."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        assert lease.worker
        assert lease.fresh
        assert lease.position() == -1
        assert len(set(lease.descriptors)) == 3
        assert not lease.ended.done()
        lease.close_descriptors()
        assert lease.descriptors == ()
        lease.release()

    run(scenario)


def test_a_worker_serves_one_lease_after_another(run: Run) -> None:
    """A released lease leaves an idle worker, which the next lease of the same terms gets."""

    async def scenario(bench: Bench) -> None:
        first = await granted(bench)
        first.release()

        async def idle() -> bool:
            return [row["state"] for row in (await bench.engine.status())[1]] == ["idle"]

        await until(idle)
        second = await granted(bench)
        assert (second.worker, second.fresh) == (first.worker, False)
        assert second.epoch != first.epoch
        other = await granted(bench, env=(("A", "1"),))
        assert other.worker != first.worker

    run(scenario)


def test_leases_wait_for_cores_in_order(run: Run) -> None:
    """With two cores taken, the others wait in the order of their users' turns, are counted by user, and can be withdrawn."""

    async def scenario(bench: Bench) -> None:
        held = [await granted(bench) for _ in range(2)]
        for lease in held:
            bench.begin_call(lease)
        third, fourth, fifth = ask(bench), ask(bench, "bob"), ask(bench, "bob")
        assert [lease.position() for lease in (third, fourth, fifth)] == [0, 0, 1]
        assert [bench.engine.waiting(user) for user in (None, "ann", "bob", "eve")] == [3, 1, 2, 0]
        fourth.release()
        assert fourth.granted.cancelled()
        assert fifth.position() == 0
        held[0].release()
        await asyncio.wait_for(fifth.granted, SECONDS)  # ann has a core, and bob has none
        assert third.position() == 0

    run(scenario)


def test_a_lease_that_waits_says_for_what(run: Run) -> None:
    """The first in turn is told who holds the cores, those behind it their turn; a user learns no name of another's."""

    async def scenario(bench: Bench) -> None:
        held = [await granted(bench, function="train"), await granted(bench, "bob", function="secret")]
        for lease in held:
            bench.begin_call(lease)
        first, second = ask(bench), ask(bench, "bob")
        assert first.reason() == "2 CPUs held by train and other users"
        assert second.reason() == "2 CPUs held by secret and other users"
        assert held[0].reason() == ""
        first.release()
        assert second.reason() == "2 CPUs held by secret and other users"

    run(scenario)


def test_capacity_follows_the_leases(run: Run) -> None:
    """Free cores go with leases and come back; every machine type has a row."""

    async def scenario(bench: Bench) -> None:
        before = bench.engine.capacity()
        assert before["free"]["cpus"] == before["machine"]["cpus"] == 2
        lease = await granted(bench)
        assert bench.engine.capacity()["free"]["cpus"] == 1
        fits = {row["name"]: row["fits_now"] for row in bench.engine.capacity()["types"]}
        assert fits == {"XS": 4, "S": 2, "M": 0, "L": 0, "XL": 0, "GPU-T4": 0, "GPU": 0}
        lease.release()
        await until(lambda: bool(bench.engine.capacity()["free"]["cpus"] == 2))
        (await granted(bench, machine_type="S")).release()
        await until(lambda: bool(bench.engine.capacity()["free"] == before["free"]))
        assert len((await bench.engine.status())[1]) == 2, "idle workers live, and count as free"

    run(scenario)


def test_what_can_never_be_granted_is_refused(run: Run) -> None:
    """A machine type with GPUs is refused at once where there is none."""

    async def scenario(bench: Bench) -> None:
        with pytest.raises(errors.ResourcesUnavailable):
            ask(bench, machine_type="GPU")

    run(scenario)


def test_kill_ends_the_call_with_its_reason(run: Run) -> None:
    """`ended` says that the worker was killed; the next lease gets another worker."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        bench.begin_call(lease)
        lease.kill()
        error = await asyncio.wait_for(asyncio.shield(lease.ended), SECONDS)
        assert error is not None
        assert error["code"] == "worker_died"
        assert bench.engine.find("ann", lease.worker) is None
        lease.release()
        assert (await granted(bench)).worker != lease.worker

    run(scenario)


def test_cancel_ends_the_call(run: Run) -> None:
    """`ended` has the reason, within the grace that the lease was asked for with."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench, grace_seconds=0.1)
        bench.begin_call(lease)
        await until(lambda: _runs(bench, "ann"))
        lease.cancel()
        error = await asyncio.wait_for(asyncio.shield(lease.ended), SECONDS)
        assert error is not None
        assert error["code"] == "worker_died"
        lease.release()

    run(scenario)


def test_release_kills_a_call_that_runs(run: Run) -> None:
    """Its worker ends, so that nobody computes for a client that has left."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        bench.begin_call(lease)
        await until(lambda: _runs(bench, "ann"))
        lease.release()

        async def ended() -> bool:
            _, workers = await bench.engine.status("ann")
            return lease.worker not in [row["id"] for row in workers]

        await until(ended)

    run(scenario)


async def _runs(bench: Bench, user: str) -> bool:
    return len(await bench.engine.running(user)) == 1


def test_each_user_sees_their_own(run: Run) -> None:
    """Status, running calls, workers and the age of sandboxes are those of the user that is asked for."""

    async def scenario(bench: Bench) -> None:
        ann, bob = await granted(bench), await granted(bench, "bob")
        assert ann.worker != bob.worker
        bench.begin_call(bob)
        await until(lambda: _runs(bench, "bob"))
        for user, lease in (("ann", ann), ("bob", bob)):
            sandboxes, workers = await bench.engine.status(user)
            assert [row["user"] for row in sandboxes] == [user]
            assert [row["id"] for row in workers] == [lease.worker]
            assert bench.engine.find(user, lease.worker) is lease
            assert bench.engine.oldest_sandbox(user) is not None
        assert bench.engine.find("bob", ann.worker) is None
        assert bench.engine.oldest_sandbox("eve") is None
        assert await bench.engine.status("eve") == ([], [])
        sandboxes, workers = await bench.engine.status()
        assert (len(sandboxes), len(workers)) == (2, 2)
        assert bench.engine.network_of(ann.worker) == "none"
        assert bench.engine.is_trusted(ann.worker)
        assert not bench.engine.is_trusted("gone")

    run(scenario)


def test_quiet_ends_one_users_sandboxes_and_holds_their_calls(run: Run) -> None:
    """New calls begin when it is over; another user's go on meanwhile; a second one is refused."""

    async def scenario(bench: Bench) -> None:
        engine = bench.engine
        (await granted(bench)).release()
        bob = await granted(bench, "bob")

        async def busy() -> None: ...

        async with engine.quiet("ann", busy):
            assert engine.oldest_sandbox("ann") is None
            assert engine.is_quiet("ann")
            assert not engine.is_quiet("bob")
            lease = ask(bench)
            withdrawn = ask(bench)
            withdrawn.release()
            assert engine.find("bob", bob.worker) is bob
            assert not lease.granted.done()
            assert lease.reason() == "the restore of its volume"
            with pytest.raises(errors.VolumeBusy):
                await engine.quiet("ann", busy).__aenter__()
        await asyncio.wait_for(lease.granted, SECONDS)
        assert not engine.is_quiet("ann")

    run(scenario)


def test_quiet_asks_while_calls_run(run: Run) -> None:
    """Its caller may give up, and the user's calls begin again."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        bench.begin_call(lease)

        async def busy() -> None:
            raise errors.VolumeBusy("calls run", hint="wait")

        with pytest.raises(errors.VolumeBusy, match="calls run"):
            async with bench.engine.quiet("ann", busy):
                raise AssertionError("a call runs")
        assert not bench.engine.is_quiet("ann")
        assert not lease.ended.done()

    run(scenario)


def test_dial_reaches_a_port_of_the_sandbox(run: Run) -> None:
    """Bytes go both ways; several streams are apart."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        bench.begin_call(lease)
        async with bench.listen(lease) as port:
            streams = await asyncio.gather(*(lease.dial(port) for _ in range(5)))
            for number, stream in enumerate(streams):
                await asyncio.to_thread(_check_echo, stream, b"%d" % number * 1000)
                stream.close()

    run(scenario)


def _check_echo(stream: socket.socket, data: bytes) -> None:
    assert stream.getblocking()
    stream.settimeout(SECONDS)
    stream.sendall(data)
    found = b""
    while len(found) < len(data):
        found += stream.recv(1 << 16)
    assert found == data


def test_dial_names_what_is_missing(run: Run) -> None:
    """A port without a listener, and a lease whose worker has left, are two errors."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        async with bench.listen(lease) as port:
            ...
        with pytest.raises(errors.PortUnreachable):
            await lease.dial(port)
        lease.release()
        with pytest.raises(errors.WorkerDied):
            await lease.dial(port)

    run(scenario)


def test_close_ends_everything(run: Run) -> None:
    """Leases that are held end with an error."""

    async def scenario(bench: Bench) -> None:
        lease = await granted(bench)
        bench.begin_call(lease)
        await bench.engine.close()
        assert not (await bench.engine.status())[1] or lease.ended.done()

    run(scenario)
