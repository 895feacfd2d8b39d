"""Build a virtual environment: with `python_downloads` the only module that knows uv.

Theory of operation. Functions see an environment read-only at `/opt/atoll/env`, so that is where the build sandbox
has it too, and the scripts' first lines are right. uv links files from its cache by hard links, which work within
one mount only; the cache is shared by all environments, and the environment in work must not show the others.
Therefore the *workshop* (caches and environments in work) is one bind, and `/opt/atoll` is a small read-only
directory in which `env` is a symlink into it. Each way of fetching has a cache of its own (see `caches`).

There are two phases (docs/decisions/0003-wheels-first.md). *Wheels*: nothing is built, so no code of any package runs,
and the shared cache can be written. *Sources*, only where wheels are not enough: code of packages runs, in a sandbox
that sees this one environment and a private cache that is thrown away. Bytecode is compiled by the base interpreter
without `site`, since a `.pth` file of the environment is code of a package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from atoll import process
from atoll.environments.asked.index import CERTIFICATES, PRIVATE, Index
from atoll.environments.asked.local_sources import copy_source
from atoll.environments.asked.requirements import Requirements
from atoll.environments.build import caches, compile_bytecode, diagnosis, lockfile
from atoll.environments.build.caches import Caches
from atoll.environments.build.python_downloads import uv_program
from atoll.environments.build.workshop import VARIABLES, Built, Cleaner, NotForEverybody, Workshop
from atoll.environments.built.interpreter import Interpreter
from atoll.environments.built.records import (
    INSIDE,
    PYTHON,
    Environment,
    create,
    has_shape,
    make_directory,
    site_packages_of,
)
from atoll.environments.built.removal import remove_tree
from atoll.errors import CallerError, EnvironmentBuildError
from atoll.model.mounts import Bind

_INPUT = "/opt/atoll/input"
_UV = "/opt/atoll-uv"
_WORKSHOP = "/opt/atoll-workshop"


@dataclass(frozen=True)
class Request:
    """A virtual environment to build.

    Args:
        key: names the environment in messages.
        requirements, interpreter, index: as they were read.
        constraints: versions to keep to where a package is needed, as lines of a requirements file.
        refresh: ask the index again.
        runs_code: False where code of packages must not run: it could read the credentials of the index.
        keeps_cache: False for a cache that is thrown away.
        for_everybody: users who distrust one another share it, so no code of packages may run.
    """

    key: str
    requirements: Requirements
    interpreter: Interpreter
    index: Index
    constraints: tuple[str, ...] = ()
    refresh: bool = False
    runs_code: bool = True
    keeps_cache: bool = True
    for_everybody: bool = False


class Builder:
    """Builds virtual environments in a workshop; several at a time."""

    def __init__(self, workshop: Workshop, caches: Caches) -> None:
        self.workshop = workshop
        self.caches = caches

    async def build(self, name: str, request: Request, log: Callable[[str], None]) -> Path:
        """Build into the workshop's place for `name`, which must be empty or absent; return the directory that holds `env`; the caller moves it away.

        Args:
            log: is called with each line that the builder prints, without secrets.

        Raises:
            EnvironmentBuildError: the requirements cannot be installed.
            DiskFull: there is no space for them.
        """
        place = self.workshop.make_place(name)
        create(place / "env", request.interpreter)
        self.workshop.own_tree(place / "env")
        if request.requirements.empty:
            return place
        await asyncio.to_thread(self._write_inputs, place, request)
        check_complete(request)
        attempt = _Attempt(self, place, request, Cleaner(request.index.secrets, log))
        async with self.caches.use(request.index.cache if request.keeps_cache else ""):
            if request.requirements.may_need_building or not await attempt.wheels():
                check_runs_code(request)
                await attempt.sources()
        if not has_shape(place / "env", request.interpreter):
            raise EnvironmentBuildError(
                f"could not build environment `{request.key[:8]}`: a package's build changed the environment's shape",
                hint="look at the build scripts of its packages",
            )
        await attempt.compile()
        (place / "env" / ".lock").unlink(missing_ok=True)  # uv's own
        return place

    async def add(self, place: Path, request: Request, log: Callable[[str], None]) -> None:
        """Install the requirements into the environment at `place`, which has a Python of its own.

        That Python runs for it, so this is confined like the build of sources: one environment, and no shared cache.

        Raises:
            EnvironmentBuildError: the requirements cannot be installed.
            DiskFull: there is no space for them.
        """
        check_runs_code(request)
        await asyncio.to_thread(self._write_inputs, place, request)
        self._write_private(place, request.index.build_private)
        try:
            await _Attempt(self, place, request, Cleaner(request.index.secrets, log)).on_top()
        finally:
            for leftover in ("cache", "input", "inside"):
                await asyncio.to_thread(remove_tree, place / leftover)

    async def resolve(self, name: str, request: Request, log: Callable[[str], None]) -> str:
        """Return lock lines with hashes for the resolution of `request`; wheels only.

        Raises:
            EnvironmentBuildError: the index cannot be asked.
        """
        place = self.workshop.make_place(name)
        try:
            create(place / "env", request.interpreter)
            self.workshop.own_tree(place / "env")
            await asyncio.to_thread(self._write_inputs, place, request)
            attempt = _Attempt(self, place, request, Cleaner(request.index.secrets, log))
            async with self.caches.use(request.index.cache if request.keeps_cache else ""):
                return await attempt.compile_lock()
        finally:
            await asyncio.to_thread(remove_tree, place)

    async def clear_cache(self) -> None:
        """Remove every package from the ordinary cache; builds that run now are waited for.

        Raises:
            EnvironmentBuildError: the cache cannot be removed.
        """
        cache = f"{_WORKSHOP}/uv"
        binds = [Bind(str(self.workshop.directory), _WORKSHOP, writable=True), Bind(uv_program(), f"{_UV}/uv")]
        command = [f"{_UV}/uv", "cache", "clean", "--cache-dir", cache, "--no-config", "--color", "never"]
        done = await self.workshop.run(command, binds=binds)
        if done.status != 0:
            raise EnvironmentBuildError("could not remove the cache", hint="see the log", log=done.output[-4000:])
        self.workshop.prepare()

    def _write_inputs(self, place: Path, request: Request) -> None:
        """Write the builder's files into `input`, which only its identity can read."""
        inside = place / "inside"
        make_directory(inside)
        for part in ("env", "input"):
            (inside / part).symlink_to(f"{_WORKSHOP}/work/{place.name}/{part}")
        directory = place / "input"
        directory.mkdir(mode=0o700)
        lines = list(request.requirements.packages)
        for number, path in enumerate(request.requirements.paths):
            source = Path(path.path)
            copy = directory / f"source-{number}" / source.name
            copy.parent.mkdir()
            copy_source(source, copy)
            lines.append(path.entry(f"{_INPUT}/source-{number}/{source.name}"))
        (directory / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
        (directory / "constraints.txt").write_text("".join(f"{line}\n" for line in request.constraints))
        self.workshop.own_tree(directory)
        self._write_private(place, request.index.private)

    def _write_private(self, place: Path, files: Sequence[tuple[str, str]]) -> None:
        """Put the files with credentials into `input`, instead of those of the phase before."""
        for variable in PRIVATE:
            (place / "input" / variable).unlink(missing_ok=True)
        for variable, text in files:
            path = place / "input" / variable
            path.touch(mode=0o600)
            path.write_text(text)
            self.workshop.own(path)


class _Attempt:
    """The commands of one build."""

    def __init__(self, builder: Builder, place: Path, request: Request, log: Cleaner) -> None:
        self._builder = builder
        self._place = place
        self._request = request
        self._log = log

    async def wheels(self) -> bool:
        """Install wheels; return False when a package has none."""
        command = [*self._install(self._cache()), "--no-build", "--link-mode", "hardlink"]
        done = await self._run(command, shared=True)
        if done.status != 0 and diagnosis.needs_building(done.output):
            return False
        self._check(done)
        return True

    async def sources(self) -> None:
        """Install with building allowed, from an empty environment."""
        self._log("Building from source, apart from the shared cache")
        environment = self._place / "env"
        await asyncio.to_thread(remove_tree, environment)
        create(environment, self._request.interpreter)
        self._builder.workshop.own_tree(environment)
        self._builder._write_private(self._place, self._request.index.build_private)
        self._check(await self._run([*self._install("/opt/atoll/cache"), "--link-mode", "hardlink"], shared=False))

    async def on_top(self) -> None:
        """Install into the existing environment, with building allowed; fitting packages stay."""
        command = [*self._install("/opt/atoll/cache"), "--link-mode", "hardlink", "--break-system-packages"]
        self._check(await self._run(command, shared=False))

    async def compile(self) -> None:
        """Compile bytecode; a file that does not compile is left as it is."""
        self._log("Compiling bytecode")
        command = [self._request.interpreter.executable, "-I", "-S", "-c", compile_bytecode.PROGRAM, f"{INSIDE}/lib"]
        done = await self._builder.workshop.run(command, binds=[*self._request.interpreter.binds, self._private()])
        if done.status != 0:
            self._check(done)

    async def compile_lock(self) -> str:
        """Resolve with hashes; return the lines."""
        command = [f"{_UV}/uv", "pip", "compile", *self._common(self._cache()), "--no-build", "--quiet"]
        command += ["--python", PYTHON, "--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url"]
        command += ["--no-emit-find-links", "--constraints", f"{_INPUT}/constraints.txt", *self._options()]
        done = await self._run([*command, f"{_INPUT}/requirements.txt"], shared=True, quiet=True)
        self._check(done)
        return done.output

    def _cache(self) -> str:
        """Return the cache of the first phase: that of the way of fetching, or one that goes with the place."""
        if not self._request.keeps_cache:
            return f"{_WORKSHOP}/work/{self._place.name}/cache"
        return f"{_WORKSHOP}/{caches.within('uv', self._request.index.cache)}"

    def _common(self, cache: str) -> list[str]:
        # through a pipe, uv tells begin and end of large downloads; a bar is drawn on terminals alone
        return ["--cache-dir", cache, "--color", "never", "--no-python-downloads"]

    def _install(self, cache: str) -> list[str]:
        command = [f"{_UV}/uv", "pip", "install", *self._common(cache), "--python", PYTHON, *self._options()]
        # overrides the user's uv.toml: compiling would start the environment's interpreter, and with it `.pth` files
        command.append("--no-compile-bytecode")
        if self._request.refresh:
            command.append("--refresh")
        if self._request.constraints:
            command += ["--constraints", f"{_INPUT}/constraints.txt"]
        return [*command, "--requirements", f"{_INPUT}/requirements.txt"]

    def _options(self) -> list[str]:
        words: list[str] = []
        for name, value in self._request.requirements.options:
            if name in ("--no-binary", "--only-binary"):
                words.append(f"{name}={value}")
            elif name == "--trusted-host":
                words.append(f"--allow-insecure-host={value}")
            elif name == "--pre":
                words.append("--prerelease=allow")
            elif name in ("--no-index", "--no-deps", "--require-hashes"):
                words.append(name)
        return words

    def _private(self) -> Bind:
        return Bind(str(self._place), "/opt/atoll", writable=True)  # and nothing else of the workshop

    async def _run(self, command: Sequence[str], *, shared: bool, quiet: bool = False) -> process.Completed:
        request = self._request
        private = request.index.private if shared else request.index.build_private
        environment = {**VARIABLES, **request.index.variables}
        if shared:
            workshop = self._builder.workshop.directory
            places = [
                Bind(str(workshop), _WORKSHOP, writable=True),
                # the daemon runs these to learn their versions
                *(Bind(str(path), f"{_WORKSHOP}/{path.name}") for path in sorted(workshop.glob("pythons*"))),
                Bind(str(self._place / "inside"), "/opt/atoll"),
            ]
        else:
            places = [self._private()]
        environment["UV_NO_CONFIG"] = "1"
        for variable, _ in private:
            environment[variable] = f"{_INPUT}/{variable}"
            if variable == "UV_CONFIG_FILE":
                del environment["UV_NO_CONFIG"]
            if variable in CERTIFICATES:
                environment.update(dict.fromkeys(CERTIFICATES, environment[variable]))
        binds = [*request.interpreter.binds, *places, Bind(uv_program(), f"{_UV}/uv"), *request.index.binds]
        asked = (*request.requirements.packages, *(value for _, value in request.requirements.options))
        done = await self._builder.workshop.run(
            command,
            binds=binds,
            environment=environment,
            on_line=None if quiet else self._log,
            reaches=None if shared else (*asked, *(text for _, text in private)),
        )
        return process.Completed(done.status, self._log.text(done.output))

    def _check(self, done: process.Completed) -> None:
        if done.status != 0:
            raise diagnosis.explain(self._request.key, done.status, done.output)


@dataclass(frozen=True)
class VirtualenvRecipe:
    """Recipe of a virtual environment (see `recipes.Recipe`)."""

    builder: Builder
    request: Request
    kind: str = "virtualenv"

    @property
    def key(self) -> str:
        return self.request.key

    @property
    def shown(self) -> tuple[str, ...]:
        return () if self.request.requirements.empty else tuple(self.request.requirements.redacted())

    @property
    def python(self) -> str:
        return self.request.interpreter.version

    @property
    def volatile(self) -> bool:
        return bool(self.request.requirements.paths)

    @property
    def hint(self) -> str:
        return hint(locked=bool(self.request.constraints), withheld=self.request.index.withholds)

    def renewed(self) -> VirtualenvRecipe:
        return replace(self, request=replace(self.request, constraints=(), refresh=True))

    async def build(self, name: str, log: Callable[[str], None]) -> Built:
        interpreter = self.request.interpreter
        place = await self.builder.build(name, self.request, log)
        text = await asyncio.to_thread(lockfile.installed, site_packages_of(place / "env", interpreter))
        return Built(place, text, interpreter.version, interpreter.executable)

    async def hashed(self, name: str, text: str, log: Callable[[str], None]) -> str:
        if "--hash=" in text or self.request.requirements.empty:
            return text
        request = replace(self.request, constraints=tuple(lockfile.constraints(text)))
        try:
            return lockfile.with_hashes(text, await self.builder.resolve(name, request, log))
        except CallerError:
            return text  # sources and repositories have no hashes of wheels

    def environment(self, directory: Path) -> Environment:
        return Environment(directory.name, directory, directory / "env", self.request.interpreter)


def check_complete(request: Request) -> None:
    """Refuse to build without the certificates that the request names: the machine's own would be trusted instead.

    Raises:
        EnvironmentBuildError: they are not here.
    """
    if not request.index.complete:
        raise EnvironmentBuildError(
            f"could not build environment `{request.key[:8]}`: the certificates of its program are not here any more",
            hint="build it once from the program itself",
        )


def check_runs_code(request: Request) -> None:
    """Refuse to run code of packages beside credentials that a function could learn from it.

    Raises:
        EnvironmentBuildError, NotForEverybody: the request must not.
    """
    if request.for_everybody:
        raise NotForEverybody("a package has no wheel")
    if not request.runs_code:
        raise EnvironmentBuildError(
            f"could not build environment `{request.key[:8]}`: a package has no wheel, and code of packages never runs "
            "with the program's credentials where a function asks",
            hint="build it once from the program itself",
        )


def hint(*, locked: bool, withheld: bool) -> str:
    """Return a failed build's hint about locked versions and withheld credentials."""
    text = "; `atoll env upgrade` forgets the versions that were locked" if locked else ""
    return text + ("; a function's own requests have none of the program's credentials" + SAYS_SO if withheld else "")


SAYS_SO = " (`environments.functions_use_credentials` in `settings.toml` changes that)"
