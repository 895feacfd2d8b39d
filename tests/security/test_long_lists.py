"""A user's long requirements: read beside the node's loop, in turns, and given up when nobody waits."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.daemon import leasing, requests
from atoll.daemon.leasing import Caller, Listener
from atoll.environments.asked import reading, requirements
from atoll.environments.asked.reading import Readings
from atoll.errors import EnvironmentBuildError, ResourcesUnavailable
from atoll.model.specs import EnvironmentSpec, LeaseSpec

SECONDS = 30.0
NAMES = ("one", "two", "three", "/refused")


class Reader:
    """The reading of names, each of which waits until the test lets it go on."""

    def __init__(self) -> None:
        self.began, self.go = threading.Semaphore(0), threading.Event()
        self.read: list[str] = []
        self.in_time = True

    def named(self, _entry: str, text: str) -> str:
        """Read one name."""
        self.read.append(text)
        self.began.release()
        self.in_time = self.go.wait(SECONDS if threading.current_thread() is not threading.main_thread() else 0.2)
        return text

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, timeout=SECONDS)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    made = Reader()
    monkeypatch.setattr(requirements, "_named", made.named)
    monkeypatch.setattr(requirements, "_known", {})
    return made


def bob(user: str = "u-bob") -> Caller:
    return Caller(user, remote=True)


def ask(kind: str, services: Any, caller: Caller, names: tuple[str, ...] = NAMES) -> Any:
    """Return the work of a request with requirements; one of them is refused, so that nothing is built."""
    spec = EnvironmentSpec(requirements=names)
    if kind == "lease":
        return leasing.ask(services, caller, LeaseSpec(spec, network="none"), "", Listener(print, print))
    if kind == "shell":
        return leasing.prepared(services, caller, LeaseSpec(spec, network="none"), print)
    return requests.answer(services, caller, kind, {"environment": spec.to_data()}, print)


def node() -> Any:
    return cast("Any", SimpleNamespace(users=SimpleNamespace(readings=Readings()), settings=None, engine=None))


@pytest.mark.parametrize("kind", ["lease", "shell", "environments.lock", "environments.build", "environments.upgrade"])
def test_the_loop_goes_on_while_a_users_list_is_read(kind: str, reader: Reader) -> None:
    """The reading waits for what the loop alone can do: it is not on the loop."""

    async def main() -> None:
        task = asyncio.ensure_future(ask(kind, node(), bob()))
        await reader.begun()
        reader.go.set()
        with pytest.raises(EnvironmentBuildError, match="names a local path"):
            await task

    asyncio.run(main())
    assert reader.in_time
    assert reader.read == ["one", "two", "three"]


def test_a_list_that_nobody_waits_for_is_given_up(reader: Reader) -> None:
    """A line that closes ends its reading at the next entry, and then lets the user's next one begin."""

    async def main() -> None:
        services = node()
        task = asyncio.ensure_future(ask("environments.lock", services, bob()))
        await reader.begun()
        task.cancel()
        other = asyncio.ensure_future(ask("environments.lock", services, bob(), ("four", "/refused")))
        for _ in range(3):
            await asyncio.sleep(0)
        reader.go.set()
        await asyncio.wait([task, other])
        assert task.cancelled()
        assert isinstance(other.exception(), EnvironmentBuildError)

    asyncio.run(main())
    assert reader.read == ["one", "four"]


def test_users_take_turns(reader: Reader) -> None:
    """However many lists one user sends, another's is read beside the first of them."""

    async def main() -> None:
        services = node()
        tasks = [
            asyncio.ensure_future(ask("environments.lock", services, bob(), (f"bob-{number}", "/refused")))
            for number in range(20)
        ]
        await reader.begun()
        tasks.append(asyncio.ensure_future(ask("environments.lock", services, bob("u-ann"), ("ann", "/refused"))))
        await reader.begun()
        assert reader.read == ["bob-0", "ann"]
        reader.go.set()
        await asyncio.wait(tasks)

    asyncio.run(main())
    assert len(reader.read) == 21


def test_what_was_read_is_known_to_the_request(reader: Reader) -> None:
    """No list of others makes the loop read a request's list again."""

    async def main() -> None:
        reader.go.set()
        names = ("one", "two")
        await Readings().run("u-bob", lambda: requirements.parse(names))
        requirements._known.clear()
        requirements.parse(names)
        await asyncio.create_task(asyncio.to_thread(requirements.parse, names))

    asyncio.run(main())
    assert reader.read == ["one", "two"]
    assert reading.known() == {}


def test_a_list_beyond_the_bound_is_refused_unread(reader: Reader) -> None:
    """A user's list is bounded in characters."""
    names = tuple(f"p{number}{'x' * 1000}" for number in range(600))
    with pytest.raises(ResourcesUnavailable, match="characters"):
        asyncio.run(ask("environments.lock", node(), bob(), names))
    assert reader.read == []
