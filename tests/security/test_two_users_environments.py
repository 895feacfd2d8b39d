"""One user's attacks on the environments of another, who asks for the same packages: nothing untrusted is shared."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atoll.environments.build import recipes
from atoll.environments.built.records import Environment
from atoll.environments.stores import Stores, UserEnvironments
from atoll.errors import EnvironmentBuildError
from atoll.model.mounts import Identity
from atoll.model.options.environments import EnvironmentsSettings
from atoll.model.specs import EnvironmentSpec
from atoll.sandbox.policy import confine
from tests.environments import Machine, serve

pytestmark = pytest.mark.as_user


class Two:
    """The environments of two users of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.uids: list[int] = []
        stores = self.stores = Stores(
            machine.settings.environments_directory, self._confinement, machine.identities.builder
        )
        self.ann, self.bob = (stores.of(user, asyncio.Semaphore(2)) for user in ("u-ann", "u-bob"))

    def _confinement(self, identity: Identity) -> Any:
        async def run(command: Sequence[str], *, binds: Any, environment: Any, on_line: Any = None, **_: Any) -> Any:
            self.uids.append(identity.uid)
            machine, variables = self.machine.launcher.machine, tuple(environment.items())
            policy = confine(command, machine=machine, identity=identity, binds=binds, environment=variables)
            return await self.machine.launcher.run(policy, on_line=on_line)

        return run

    def spec(self, *names: str) -> EnvironmentSpec:
        """Return a request to the index that counts as the default one here: the wheels of this machine."""
        return self.machine.spec(*names, "--no-index", index={"UV_FIND_LINKS": str(self.machine.wheels)})


@pytest.fixture
def two(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Two:
    monkeypatch.setattr(recipes, "_CHOOSING", recipes._CHOOSING | {"UV_FIND_LINKS"})
    return Two(machine)


def ensure(of: UserEnvironments, spec: EnvironmentSpec) -> Environment:
    return asyncio.run(of.ensure(spec))


def test_wheels_of_the_default_index_are_shared_and_stay(two: Two) -> None:
    """The second user finds the first one's; neither removes it, and an upgrade gives a user one of their own."""
    two.machine.wheel("alpha")
    spec = two.spec("alpha")
    shared = ensure(two.ann, spec)
    assert ensure(two.bob, spec).directory == shared.directory
    assert shared.directory.parent.name == "shared"
    assert asyncio.run(two.bob.prune()).removed == ()
    assert two.bob.find(shared.key).key == two.ann.find(shared.key).key == shared.key
    own, changed = asyncio.run(two.bob.upgrade(spec))
    assert changed
    assert own.directory.parent.name == "u-bob"
    assert ensure(two.bob, spec).directory == own.directory
    assert ensure(two.ann, spec).directory == shared.directory
    assert own.key not in {record.key for record in two.ann.list()}
    assert [one.key for one in asyncio.run(two.bob.prune()).removed] == [own.key]


def test_an_environment_whose_build_ran_code_is_its_users_own(two: Two) -> None:
    """Each user's code runs as a builder of that user's own, and writes what that user alone gets."""
    two.machine.sdist("gamma", "    import os; note = str(os.getuid())")
    spec = two.spec("gamma")
    ann, bob = ensure(two.ann, spec), ensure(two.bob, spec)
    assert ann.key != bob.key
    assert [one.directory.parent.name for one in (ann, bob)] == ["u-ann", "u-bob"]
    if os.geteuid() == 0:
        notes = [two.machine.python(one, "import gamma; print(gamma.NOTE)") for one in (ann, bob)]
        assert notes[0] != notes[1]
        assert notes == [str(two.machine.identities.builder(user).uid) for user in ("u-ann", "u-bob")]
        assert str(two.machine.identities.builder().uid) not in notes
    assert two.bob.list()[0].key == bob.key
    assert len(two.bob.list()) == 1
    with pytest.raises(EnvironmentBuildError) as seen:
        two.bob.find(ann.key)
    with pytest.raises(EnvironmentBuildError) as unknown:
        two.bob.find("0" * len(ann.key))
    assert seen.value.message.replace(ann.key, "") == unknown.value.message.replace("0" * len(ann.key), "")
    assert two.bob.text(ann.key, "build.log") == ""
    assert asyncio.run(two.bob.prune(only=[ann.key])).removed == ()
    assert ann.directory.exists()


def test_what_credentials_let_in_serves_nobody_else(two: Two) -> None:
    """An index of one's own, with or without credentials, gives an environment and a cache of one's own."""
    two.machine.wheel("secretive")
    with serve(two.machine.wheels) as port:
        known = two.machine.spec("secretive", index={"UV_DEFAULT_INDEX": f"http://me:hunter27x@127.0.0.1:{port}/"})
        unknown = two.machine.spec("secretive", index={"UV_DEFAULT_INDEX": f"http://127.0.0.1:{port}/"})
        ann = ensure(two.ann, known)
        assert ann.directory.parent.name == "u-ann"
        for spec in (unknown, two.machine.spec("secretive", index={"UV_OFFLINE": "1"})):
            with pytest.raises(EnvironmentBuildError):
                ensure(two.bob, spec)
        assert ensure(two.bob, known).key != ann.key  # who has the credentials fetches it again
    caches = two.machine.settings.environments_directory / "users"
    assert not list((two.machine.settings.environments_directory / "shared").glob("*/env"))
    if os.geteuid() == 0:
        owners = {user: (caches / user / ".cache").stat().st_uid for user in ("u-ann", "u-bob")}
        assert owners["u-ann"] != owners["u-bob"]


def test_the_operators_index_is_everybodys_and_no_request_names_its_place(two: Two, tmp_path: Path) -> None:
    """Users who name no index share what comes from the operator's directory, also one that is private to the operator."""
    two.machine.wheel("alpha")
    two.machine.wheels.chmod(0o755)
    plain = two.machine.spec("alpha", index={"UV_OFFLINE": ""})
    two.stores.apply(
        EnvironmentsSettings(users_find_links=(str(two.machine.wheels),), users_index_url=f"{tmp_path}/no")
    )
    (tmp_path / "no").mkdir()
    (tmp_path / "no").chmod(0o755)
    shared = ensure(two.ann, plain)
    assert shared.directory.parent.name == "shared"
    assert ensure(two.bob, plain).directory == shared.directory
    with pytest.raises(EnvironmentBuildError):  # an index of one's own is asked in place of it
        ensure(two.bob, two.machine.spec("alpha", "--no-index", index={}))
    two.stores.apply(EnvironmentsSettings())
    assert asyncio.run(two.ann._shared.built(plain)) is None, "another index is another environment"
    two.stores.apply(EnvironmentsSettings(users_extra_index_urls=(f"{tmp_path}/not-mounted",)))
    with pytest.raises(
        EnvironmentBuildError, match="not-mounted` is not there"
    ):  # never from the next index in silence
        ensure(two.bob, plain)


def test_nobody_decides_what_others_import_ahead(two: Two) -> None:
    """A shared environment's list of modules is each user's own."""
    from atoll.environments.built import preloads

    two.machine.wheel("alpha")
    shared = ensure(two.ann, two.spec("alpha"))
    place = {user: preloads.place_of(shared.directory, user) for user in ("u-ann", "u-bob")}
    preloads.write(place["u-ann"], preloads.Preloads(("alpha",)), trusted=True)
    assert preloads.read(place["u-ann"], trusted=True).modules == ("alpha",)
    assert preloads.read(place["u-bob"], trusted=True).modules == ()


def test_a_removed_user_leaves_no_environments(two: Two) -> None:
    """A build under way ends first; another user's environments and logs stay."""
    two.machine.sdist("delta", "    import time; time.sleep(0.5); note = 'x'")
    spec = two.spec("delta")
    bob = ensure(two.bob, spec)
    directory = two.machine.settings.environments_directory

    async def removed() -> None:
        building = asyncio.ensure_future(two.ann.ensure(spec))
        while two.ann._built.is_set():  # noqa: ASYNC110 - the build has no event for its begin
            await asyncio.sleep(0.01)
        await two.stores.remove("u-ann", 60)
        assert building.done()
        await building

    asyncio.run(removed())
    assert not (directory / "users" / "u-ann").exists()
    assert not (directory.parent / "logs" / "u-ann").exists()
    assert (directory.parent / "logs" / "u-bob").exists()
    assert bob.directory.exists()
