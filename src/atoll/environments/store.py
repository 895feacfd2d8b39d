"""The environments of one machine: each complete or absent, built once, never removed while in use.

An environment is built in the builder's workshop and moved to its directory, where `record.json` is written last.
Without a readable record the directory counts as absent, and is removed at the next start or request. A build or
removal holds the environment's lock exclusively, sandboxes hold it shared. Requests of one process share one task;
other processes wait for the lock and follow the log.

Most requirements allow several versions, at least of their dependencies. An environment keeps its first versions, also
when it is pruned and built again (`.pins`), until `upgrade` builds its next generation beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from atoll.environments.asked import key
from atoll.environments.asked.certificates import Certificates
from atoll.environments.build import downloads, lockfile, workshop
from atoll.environments.build.recipes import OWNER, KeptFor, Recipe, Recipes
from atoll.environments.build.workshop import Confinement, Workshop
from atoll.environments.built import directory as shelf
from atoll.environments.built import locks, records
from atoll.environments.built.directory import translated
from atoll.environments.built.files import write_text
from atoll.environments.built.pins import OtherVersions
from atoll.environments.built.records import Environment, EnvironmentRecord, make_directory
from atoll.environments.built.removal import remove_tree
from atoll.errors import AtollError, EnvironmentBuildError, StateUnusable
from atoll.model.build_progress import BuildLine, BuildProgress, Reader
from atoll.model.mounts import Identity
from atoll.model.specs import EnvironmentSpec

Progress = Callable[[str], None]

NESTED_BUILDS = 2
"""Builds at a time that the code of one worker asks for; its further ones wait."""

_RECENT, _RECENT_SECONDS = 64, 1.0
"""Number of specs, and seconds, for which a key is remembered without reading the index's configuration again."""


def silent(_line: str) -> None: ...


@dataclass(frozen=True)
class Removed:
    """Environments that `prune` removed or would remove, and those that a sandbox uses."""

    removed: tuple[EnvironmentRecord, ...] = ()
    in_use: tuple[EnvironmentRecord, ...] = ()


@dataclass
class _Build:
    """A build that several tasks wait for; it is cancelled when the last of them is."""

    task: asyncio.Task[Environment]
    reader: Reader
    listeners: list[Progress] = field(default_factory=list)


class EnvironmentStore:
    """Finds and builds environments below one directory; several processes may use it at the same time.

    Its methods belong to one event loop. `OSError`s of the state's own files come as `DiskFull` or `StateUnusable`.

    Args:
        directory: `ATOLL_HOME/environments`.
        confinement: runs the builder's commands in a sandbox.
        builder_identity: user and group of the commands, and owner of the environments.
        logs: where build logs are kept.
        kept_for: see `recipes.KeptFor`.
        shared_pins: see `Shelf`.
    """

    def __init__(
        self,
        directory: Path,
        confinement: Confinement,
        builder_identity: Identity,
        *,
        logs: Path | None = None,
        kept_for: KeptFor = OWNER,
        shared_pins: Path | None = None,
    ) -> None:
        self.directory = directory
        self._logs = directory.parent / "logs" if logs is None else logs
        self._workshop = Workshop(directory / ".cache", confinement, builder_identity)
        self._shelf = shelf.Shelf(directory, self._workshop.directory / "work", shared_pins)
        self._recipes = Recipes(self._workshop, self._shelf, kept_for)
        self._builds: dict[str, _Build] = {}
        self._recent: dict[EnvironmentSpec, tuple[float, Recipe]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._prepared = False

    @property
    def certificates(self) -> Certificates:
        """The certificates that requests name; their senders let them be learned first."""
        return self._recipes.certificates

    def certificates_of(self, other: EnvironmentStore) -> None:
        """Know the certificates that another store knows, and that are named by their digests."""
        self._recipes.certificates = other.certificates

    def place(self, name: str) -> Path:
        """Return the directory of an environment."""
        return self._shelf.path(name)

    # --- finding and building -----------------------------------------------------------------------------------

    async def ensure(
        self, spec: EnvironmentSpec, progress: Progress = silent, *, nested: bool = False, worker: str = ""
    ) -> Environment:
        """Return the environment, built first if it is absent.

        Args:
            nested: a function asks (see `recipes`).
            progress: called with lines about the build; not called for an existing environment.
            worker: the one whose code asks; its builds take turns.

        Raises:
            EnvironmentBuildError: it cannot be built as asked.
            DiskFull, StateUnusable: the state cannot be written.
        """
        with translated(self.directory):
            self.prepare()
            recent = self._recent.get(spec)
            if recent is not None and recent[0] > time.monotonic():
                current = self._shelf.current(recent[1].key)
                if current is not None and current not in self._builds:
                    return self._environment(current, recent[1])
            recipe = await self._recipes.read(spec, progress, nested=nested)
            current = self._shelf.current(recipe.key)
            if current is None or current in self._builds:  # complete, and its builder has not let go of it yet
                async with self._turn(worker if recipe.key not in self._builds else ""):
                    with contextlib.suppress(OtherVersions):
                        return await self._join(current or recipe.key, recipe, progress)
                    recipe = await self._recipes.read(spec, progress, nested=nested)
                    return await self._join(recipe.key, recipe, progress)
            self._shelf.touch(current)
            if not recipe.volatile:
                now = time.monotonic()
                recent_ones = list(self._recent.items())[-_RECENT:]
                self._recent = {one: kept for one, kept in recent_ones if kept[0] > now}  # specs may be large
                self._recent[spec] = now + _RECENT_SECONDS, recipe
            return self._environment(current, recipe)

    async def built(self, spec: EnvironmentSpec) -> Environment | None:
        """Return the environment if it is complete."""
        with translated(self.directory):
            self.prepare()
            current = self._shelf.current((await self._recipes.read(spec)).key)
            return None if current is None or current in self._builds else await self.ensure(spec)

    async def upgrade(self, spec: EnvironmentSpec, progress: Progress = silent) -> tuple[Environment, bool]:
        """Build anew with the newest versions that fit; return the environment and whether any version changed.

        The old one stays for the sandboxes that use it and goes with the last of them. When nothing has changed the
        old one stays.
        """
        with translated(self.directory):
            self.prepare()
            recipe = (await self._recipes.read(spec, progress)).renewed()
            old = self._shelf.current(recipe.key)
            if old is None:
                environment = await self._join(recipe.key, recipe, progress)
                return environment, True
            generation = (records.split(old) or ("", 1))[1] + 1
            environment = await self._join(records.name_of(recipe.key, generation), recipe, progress, instead_of=old)
            await asyncio.to_thread(self._shelf.remove_superseded, recipe.key)
            return environment, environment.key != old

    async def lock(self, spec: EnvironmentSpec, progress: Progress = silent) -> str:
        """Return the lines that pin the environment's packages: names, versions, hashes; no download addresses.

        Wheels from an index have hashes.
        """
        with translated(self.directory):
            environment = await self.ensure(spec, progress)
            text = (path := environment.directory / "requirements.lock").read_text("utf-8")
            recipe = await self._recipes.read(spec, progress)
            name = f"lock-{environment.key}"
            with await locks.wait_exclusive(self._shelf.lock_path(name), lambda: None):
                await asyncio.to_thread(remove_tree, self._workshop.place(name))
                hashed = await recipe.hashed(name, text, progress)
            if hashed != text:
                write_text(path, hashed)
            return hashed

    @contextlib.asynccontextmanager
    async def _turn(self, worker: str) -> AsyncIterator[None]:
        """Wait for the turn of a worker's build; others do not wait."""
        if not worker:
            yield
            return
        async with self._turns.setdefault(worker, asyncio.Semaphore(NESTED_BUILDS)):  # lives as long as one is here
            yield

    async def _join(self, name: str, recipe: Recipe, progress: Progress, instead_of: str = "") -> Environment:
        """Wait for the build of `name`, which is started unless this process is at it already."""
        build = self._builds.get(name)
        if build is None:
            listeners: list[Progress] = []
            reader = Reader(name)

            def publish(line: str) -> None:
                told = reader.take(line)
                for listener in tuple(listeners):
                    listener(told)

            work = downloads.watched(
                self._build_locked(name, recipe, publish, instead_of), self._workshop, name, reader, publish
            )
            task = asyncio.create_task(work, name=f"build {name}")
            build = self._builds[name] = _Build(task, reader, listeners)
            task.add_done_callback(lambda _: self._forget(name, task))
        elif build.reader.progress.step:
            progress(BuildLine("", build.reader.progress))
        build.listeners.append(progress)
        try:
            return await asyncio.shield(build.task)
        finally:
            build.listeners.remove(progress)
            if not build.listeners and not build.task.done():
                self._forget(name, build.task)  # later requests start another build
                build.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await build.task

    def _forget(self, name: str, task: asyncio.Task[Environment]) -> None:
        if name in self._builds and self._builds[name].task is task:
            del self._builds[name]

    async def _build_locked(self, name: str, recipe: Recipe, publish: Progress, instead_of: str) -> Environment:
        asked = time.time()
        log_path = self._logs / f"environment-{name}.log"
        other = locks.Tail(log_path)
        waited = False

        def read_along() -> None:
            nonlocal waited
            if not waited:
                publish(f"Waiting for another process that builds environment {name[:8]}")
            waited = True
            for line in other.lines():
                publish(line)

        with await locks.wait_exclusive(self._shelf.lock_path(name), read_along) as lock:
            if records.complete(self.directory / name):
                return self._environment(name, recipe)
            if waited and (failure := lock.failure_since(asked)) is not None:
                raise failure
            lock.note_failure(None)
            await asyncio.to_thread(self._shelf.discard, name)
            with contextlib.suppress(FileNotFoundError):
                log_path.unlink()  # a new inode tells those who read along that this is another build
            with workshop.open_log(log_path) as log:

                def note(line: str) -> None:
                    print(line, file=log, flush=True)
                    publish(line)

                try:
                    return await self._build(name, recipe, note, instead_of)
                except AtollError as error:
                    print(f"failed: {error}", file=log)
                    lock.note_failure(error)
                    raise
                finally:
                    await asyncio.to_thread(self._shelf.drop_leftovers, name)
                    await self._recipes.collect()

    async def _build(self, name: str, recipe: Recipe, note: Progress, instead_of: str) -> Environment:
        started = time.monotonic()
        if recipe.shown:
            note(f"Building environment {name[:8]} with Python {recipe.python}: {', '.join(recipe.shown)}")
        try:
            built = await recipe.build(name, workshop.BoundedLog(note))
        except EnvironmentBuildError as error:
            error.hint += recipe.hint
            raise
        text = built.lock
        if instead_of and text == lockfile.versions_in(self.directory / instead_of / "requirements.lock"):
            note("Nothing is newer")
            return self._environment(instead_of, recipe)
        directory = self.directory / name
        make_directory(directory)
        (built.place / "env").rename(directory / "env")
        size = await asyncio.to_thread(shelf.size_bytes, directory / "env")
        write_text(directory / "requirements.lock", text)
        seconds = time.monotonic() - started
        if recipe.shown:
            packages = sum(1 for line in text.splitlines() if line[:1].isalnum())
            ended = BuildProgress(name[:8], "built", packages=packages, size_bytes=size, seconds=seconds)
            note(BuildLine(f"Built environment {name[:8]} in {seconds:.1f} s", ended))
            shutil.copyfile(self._logs / f"environment-{name}.log", directory / "build.log")
            self._shelf.pins.keep(recipe.key, text, renewed=bool(instead_of))
        record = EnvironmentRecord(
            key=name,
            kind=recipe.kind,
            requirements=recipe.shown,
            python_version=built.python_version,
            interpreter=built.interpreter,
            size_bytes=size,
            created=time.time(),
            build_seconds=round(seconds, 3),
            builder=f"{key.BUILDER_VERSION}",
        )
        records.write(directory, record)
        return self._environment(name, recipe)

    def hold(self, environment: Environment) -> locks.Lock:
        """Keep the environment from being removed until the returned lock is released.

        Raises:
            StateUnusable: it has been removed since it was ensured; ensure it again.
        """
        deadline = time.monotonic() + 1.0
        while (lock := locks.try_lock(self._shelf.lock_path(environment.key), exclusive=False)) is None:
            if not records.complete(environment.directory) or time.monotonic() > deadline:
                break
            time.sleep(0.002)  # `list` looks at locks by taking them, for microseconds
        if lock is not None and records.complete(environment.directory):
            self._shelf.touch(environment.key)
            return lock
        if lock is not None:
            lock.release()
        raise StateUnusable(f"environment `{environment.key[:8]}` has just been removed", hint="call again")

    def _environment(self, name: str, recipe: Recipe) -> Environment:
        return recipe.environment(self.directory / name)

    def list(self) -> list[EnvironmentRecord]:
        """Return the complete environments, the most recently used first."""
        return self._shelf.list()

    def find(self, prefix: str) -> EnvironmentRecord:
        """Return the one environment whose key starts with `prefix`.

        Raises:
            EnvironmentBuildError: there is none, or more than one.
        """
        return self._shelf.find(prefix)

    def text(self, name: str, file: str) -> str:
        """Return `build.log` or `requirements.lock` of an environment, empty where it has none."""
        return self._shelf.text(name, file)

    async def prune(
        self, *, unused_seconds: float = 0.0, dry_run: bool = False, only: Collection[str] | None = None
    ) -> Removed:
        """Remove environments that nobody uses and that were last used at least `unused_seconds` ago.

        Superseded generations are removed regardless of their last use. Environments in use stay.

        Args:
            only: keys of those that may go; None for any.
        """
        with translated(self.directory):
            self.prepare()
            removed, in_use = list[EnvironmentRecord](), list[EnvironmentRecord]()
            for record in self.list():
                if only is not None and record.key not in only:
                    continue
                if record.superseded or time.time() - record.last_used >= unused_seconds:
                    done = not record.in_use if dry_run else await asyncio.to_thread(self._shelf.remove, record.key)
                    (removed if done else in_use).append(record)
            return Removed(tuple(removed), tuple(in_use))

    def remove(self, name: str) -> bool:
        """Remove one environment; return False when a sandbox uses it or it is being built."""
        with translated(self.directory):
            return self._shelf.remove(name)

    async def clear_cache(self) -> None:
        """Remove the packages that are kept for further builds; the environments stay as they are."""
        with translated(self.directory):
            self.prepare()
            await self._recipes.clear_caches()

    async def cache_sizes(self) -> tuple[int, int]:
        """Return the bytes of the packages that are kept for further builds, and those that `clear_cache` frees."""
        return await asyncio.to_thread(shelf.shared_sizes, self._recipes.cache_directories())

    def prepare(self) -> None:
        """Make the directories and, once per process, remove leftovers of killed builds and removals."""
        if self._prepared and self.directory.is_dir():
            return
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._shelf.prepare()
        self._recipes.prepare()
        self._shelf.clean()
        self._prepared = True
