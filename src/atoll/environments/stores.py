"""The stores of environments of one machine: its owner's, and those of a server's users, who distrust one another.

Theory of operation. Users share an environment only where nothing of the request decides where its packages come from,
and no code of a package has run while it was built: wheels of the default index. A user's other environments are below
a directory of their own, with caches, locked versions and a builder's uid of their own, and the user is in their keys.
The default index is the operator's, if there is one.
So nobody gets packages that another's credentials, index or build have brought. A plain user never removes or renews
what all share: an upgrade gives the user an environment of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from atoll.environments.asked import operator_index
from atoll.environments.asked.operator_index import NO_INDEX, OperatorIndex
from atoll.environments.build.recipes import KeptFor
from atoll.environments.build.workshop import Confinement, NotForEverybody
from atoll.environments.built import locks
from atoll.environments.built.preloads import SHARED, USERS
from atoll.environments.built.records import Environment, EnvironmentRecord
from atoll.environments.built.removal import remove_tree
from atoll.environments.store import EnvironmentStore, Progress, Removed, silent
from atoll.errors import EnvironmentBuildError
from atoll.model.mounts import Identity
from atoll.model.options.environments import EnvironmentsSettings
from atoll.model.specs import EnvironmentSpec


class Stores:
    """All stores below one directory.

    Args:
        directory: `ATOLL_HOME/environments`, the owner's.
        confinement: returns how a builder's commands are run.
        builder: returns the identity that builds for the owner (empty), or for a user.
        shared_pins: versions of all machines that share a file system; None where this one shares nothing.
    """

    def __init__(
        self,
        directory: Path,
        confinement: Callable[[Identity], Confinement],
        builder: Callable[[str], Identity],
        shared_pins: Path | None = None,
    ) -> None:
        self._shared_pins = shared_pins
        self.operator = NO_INDEX
        """The index of users who name none."""
        self._directory = directory
        self._confinement = confinement
        self._builder = builder
        self._made: dict[Path, EnvironmentStore] = {}
        self._users: dict[str, UserEnvironments] = {}
        self.owner = self._store(directory, "", KeptFor())

    def _store(self, directory: Path, user: str, kept_for: KeptFor) -> EnvironmentStore:
        if directory not in self._made:
            identity = self._builder(user)
            self._made[directory] = EnvironmentStore(
                directory,
                self._confinement(identity),
                identity,
                logs=self._directory.parent / "logs" / user if user else self._directory.parent / "logs",
                kept_for=kept_for,
                shared_pins=self._shared_pins,
            )
        return self._made[directory]

    def of(self, user: str, turns: asyncio.Semaphore) -> UserEnvironments:
        """Return the environments of a user of a server.

        Args:
            turns: bounds the user's builds at a time.
        """
        if user not in self._users:
            shared = self._store(self._directory / SHARED, "", KeptFor(everybody=True, operator=self._operator))
            own = self._store(self._directory / USERS / user, user, KeptFor(user, operator=self._operator))
            own.certificates_of(self.owner)
            self._users[user] = UserEnvironments(own, shared, turns)
        return self._users[user]

    async def remove(self, user: str, seconds: float) -> None:
        """Remove a user's environments, caches and logs; the user is gone.

        Args:
            seconds: for builds to end, which go on no longer than somebody waits for them.
        """
        found = self._users.get(user)
        if found is not None:
            await found.wait_built(seconds)
        for directory in (self._directory / USERS, self._directory.parent / "logs"):
            await asyncio.to_thread(remove_tree, directory / user)

    def apply(self, options: EnvironmentsSettings) -> None:
        """Build by other rules from now on."""
        self.operator = operator_index.of_settings(options)

    def _operator(self) -> OperatorIndex:
        return self.operator

    def hold(self, environment: Environment) -> locks.Lock:
        """See `EnvironmentStore.hold`."""
        return self._made[environment.directory.parent].hold(environment)


class UserEnvironments:
    """The environments of one user of a server; as `EnvironmentStore`, as far as requests need one."""

    def __init__(self, own: EnvironmentStore, shared: EnvironmentStore, turns: asyncio.Semaphore) -> None:
        self._own = own
        self._shared = shared
        self._turns = turns
        self._building = 0
        self._built = asyncio.Event()
        self._built.set()

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        """Count a request that builds, or waits for its turn."""
        self._building += 1
        self._built.clear()
        try:
            yield
        finally:
            self._building -= 1
            if not self._building:
                self._built.set()

    async def wait_built(self, seconds: float) -> None:
        """Wait until no build of the user is under way, or for some seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._built.wait(), seconds)

    async def ensure(
        self, spec: EnvironmentSpec, progress: Progress = silent, *, nested: bool = False, worker: str = ""
    ) -> Environment:
        """See `EnvironmentStore.ensure`."""
        with self._work():
            found = await self._own.built(spec)
            if found is not None:
                return found
            with contextlib.suppress(NotForEverybody):
                found = await self._shared.built(spec)
                if found is not None:
                    return found
                async with self._turns:
                    return await self._shared.ensure(spec, progress, nested=nested, worker=worker)
            async with self._turns:
                return await self._own.ensure(spec, progress, nested=nested, worker=worker)

    async def upgrade(self, spec: EnvironmentSpec, progress: Progress = silent) -> tuple[Environment, bool]:
        """See `EnvironmentStore.upgrade`; the result is the user's own."""
        with self._work():
            async with self._turns:
                return await self._own.upgrade(spec, progress)

    async def lock(self, spec: EnvironmentSpec, progress: Progress = silent) -> str:
        """See `EnvironmentStore.lock`."""
        with self._work():
            environment = await self.ensure(spec, progress)
            store = self._shared if environment.directory.parent == self._shared.directory else self._own
            async with self._turns:
                return await store.lock(spec, progress)

    def list(self) -> list[EnvironmentRecord]:
        """Return the user's own environments and those that all share, the most recently used first."""
        return sorted([*self._own.list(), *self._shared.list()], key=lambda record: -record.last_used)

    def find(self, prefix: str) -> EnvironmentRecord:
        """See `EnvironmentStore.find`."""
        with contextlib.suppress(EnvironmentBuildError):
            return self._own.find(prefix)
        return self._shared.find(prefix)

    def place(self, name: str) -> Path:
        """Return the directory of an environment."""
        return next((one.place(name) for one in (self._own, self._shared) if one.place(name).exists()), Path())

    def text(self, name: str, file: str) -> str:
        """See `EnvironmentStore.text`."""
        return self._own.text(name, file) or self._shared.text(name, file)

    async def prune(
        self, *, unused_seconds: float = 0.0, dry_run: bool = False, only: Collection[str] | None = None
    ) -> Removed:
        """See `EnvironmentStore.prune`; those that all share stay."""
        return await self._own.prune(unused_seconds=unused_seconds, dry_run=dry_run, only=only)

    async def clear_cache(self) -> None:
        """See `EnvironmentStore.clear_cache`; of the user's own."""
        await self._own.clear_cache()

    async def cache_sizes(self) -> tuple[int, int]:
        """See `EnvironmentStore.cache_sizes`; of the user's own."""
        return await self._own.cache_sizes()
