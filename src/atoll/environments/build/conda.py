"""Build a conda environment: the only module, with its program, that knows rattler.

Theory of operation (docs/decisions/0008-conda-environments.md). Packages embed the path where they are installed, so
they are installed where functions see them: every sandbox of the build has the environment at `/opt/atoll/env`.
There are four steps, each in a sandbox of its own. *Solve*: repodata is read, and archives are fetched into the
shared cache under their digests; none is opened. *Link*: the archives of this environment, read-only, are unpacked
into it, and their link scripts run. *On top*: uv installs the pip requirements. *Finish*: the environment's own
Python compiles bytecode, which proves that it runs. The last three run code of packages, or follow links that a
package has planted: they see this environment alone, and no other environment trusts their output.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll.environments.asked import conda_packages
from atoll.environments.asked.conda_packages import CondaRequirements
from atoll.environments.asked.index import Index
from atoll.environments.build import caches, compile_bytecode, diagnosis
from atoll.environments.build.caches import Caches
from atoll.environments.build.conda_program import ARCHIVES, CACHE, FAILED, RESULT
from atoll.environments.build.virtualenv import Builder, Request, check_complete, check_runs_code, hint
from atoll.environments.build.workshop import VARIABLES, Built, Cleaner, Workshop
from atoll.environments.built import locks, records
from atoll.environments.built.interpreter import Interpreter, probe
from atoll.environments.built.records import PYTHON, Environment, make_directory
from atoll.environments.built.removal import remove_tree
from atoll.errors import EnvironmentBuildError, StateUnusable
from atoll.model.mounts import Bind

_PROGRAM = "/opt/atoll-rattler"
_REQUEST = "/opt/atoll-request"

_FINISH = (
    """
import glob, json, os, sys, sysconfig
sys.argv = ["", os.path.join(sys.prefix, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")]
"""
    + compile_bytecode.PROGRAM
    + """
on_top = []
places = {sys.argv[1], sysconfig.get_paths()["purelib"]}  # which uv asks for
for path in (path for place in places for path in glob.glob(os.path.join(glob.escape(place), "*.dist-info"))):
    try:
        with open(os.path.join(path, "INSTALLER")) as file:
            if file.read(10).strip() == "uv":
                on_top.append("==".join(os.path.basename(path)[:-10].rsplit("-", 1)))
    except (OSError, ValueError):
        pass
version = "%d.%d.%d" % sys.version_info[:3]
print("atoll-result " + json.dumps({"version": version, "on_top": sorted(on_top)}), flush=True)
"""
)
"""Compiles the installed modules and prints facts of the environment; run by the environment's own Python."""


@dataclass(frozen=True)
class CondaRecipe:
    """Recipe of a conda environment (see `recipes.Recipe`).

    Args:
        found: packages to install; its `pip` part is that of `on_top` too.
        python: the version that was asked for, `3.11` or more exact.
        virtual: the caller's overrides of the machine's abilities, by the names of `VirtualPackageOverrides`.
        on_top: the request for the pip requirements; its interpreter is a placeholder.
        pinned: match specs that constrain the solver to the locked packages.
        offline: use cached repodata and archives only.
    """

    key: str
    workshop: Workshop
    caches: Caches
    cache_lock: Path
    found: CondaRequirements
    python: str
    virtual: tuple[tuple[str, str], ...]
    on_top: Request
    pinned: tuple[str, ...] = ()
    offline: bool = False
    kind: str = "conda"

    @property
    def shown(self) -> tuple[str, ...]:
        return self.found.shown()

    @property
    def volatile(self) -> bool:
        return bool(self.found.pip.paths)

    @property
    def hint(self) -> str:
        return hint(locked=bool(self.pinned or self.on_top.constraints), withheld=self.on_top.index.withholds)

    def renewed(self) -> CondaRecipe:
        return replace(self, pinned=(), on_top=replace(self.on_top, constraints=(), refresh=True))

    async def hashed(self, _name: str, text: str, _log: Callable[[str], None]) -> str:
        return text  # the solver has told them

    def environment(self, directory: Path) -> Environment:
        record = records.read(directory)
        if record is None:
            raise StateUnusable(f"environment `{directory.name[:8]}` has just been removed", hint="call again")
        return Environment(
            directory.name, directory, directory / "env", inner_python(record.python_version), kind="conda"
        )

    @property
    def cache(self) -> str:
        """The name of the cache that is kept, empty for the ordinary one."""
        return self.on_top.index.cache if self.on_top.keeps_cache else ""

    async def build(self, name: str, log: Callable[[str], None]) -> Built:
        place = self.workshop.make_place(name)
        clean = Cleaner(self.found.secrets | self.on_top.index.secrets, lambda line: log(conda_packages.cleaned(line)))
        steps = _Steps(self, place, clean)
        check_complete(self.on_top)
        if not self.found.pip.empty:
            check_runs_code(self.on_top)
        with await locks.wait_shared(self.cache_lock):
            async with self.caches.use(self.cache):
                packages = await steps.solve()
                await steps.link(packages)
        if not self.found.pip.empty:
            await Builder(self.workshop, self.caches).add(place, self.on_top, log)
        facts = await steps.finish()
        if not _has_shape(place / "env"):
            raise _failed(self.key, "a package changed the environment's shape", "look at the package's link scripts")
        locked = [(one["name"], one["version"], one["build"], one["sha256"]) for one in packages]
        return Built(place, conda_packages.lock_text(self.found, locked, facts.on_top), facts.version, PYTHON)


@dataclass(frozen=True)
class _Facts:
    version: str
    on_top: tuple[str, ...]


class _Steps:
    """The commands of one build."""

    def __init__(self, recipe: CondaRecipe, place: Path, clean: Cleaner) -> None:
        self._recipe = recipe
        self._place = place
        self._clean = clean
        self._specs = [*recipe.found.packages, f"python {recipe.python}.*"]
        kept = recipe.workshop.directory / caches.within("conda", recipe.cache)
        self._cache = kept if recipe.on_top.keeps_cache else place / "conda"

    async def solve(self) -> list[dict[str, Any]]:
        """Return the packages, whose archives are in the cache."""
        recipe = self._recipe
        for part in (self._cache, self._cache / "archives", self._cache / "repodata"):
            make_directory(part, exist_ok=True)
            recipe.workshop.own(part)
        request = {
            "specs": self._specs,
            "channels": recipe.found.channels,
            "constraints": recipe.pinned,
            "virtual": dict(recipe.virtual),
            # rattler writes addresses into it as they are: with credentials, it goes with the sandbox
            "repodata": "/tmp/repodata" if recipe.found.secrets else f"{CACHE}/repodata",
            "cache_action": "force-cache-only"
            if recipe.offline
            else "no-cache"
            if recipe.on_top.refresh
            else "cache-or-fetch",
        }
        binds = [Bind(str(self._cache), str(CACHE), writable=True), *_local(recipe), *recipe.on_top.index.binds]
        output = await self._program("solve", request, binds, recipe.on_top.index)
        packages: list[dict[str, Any]] = output
        return packages

    async def link(self, packages: Sequence[Mapping[str, Any]]) -> None:
        """Unpack the packages into `env`, which is where it belongs afterwards."""
        root, archives = self._place / "root", self._place / "archives"
        for directory in (root, archives):
            make_directory(directory)
        self._recipe.workshop.own(root)
        await asyncio.to_thread(self._show_archives, archives, packages)
        shown = [
            {
                **one,
                "url": conda_packages.cleaned(one["url"]),
                "channel": conda_packages.shown_channel(one["channel"].rstrip("/")),
            }
            for one in packages
        ]
        request = {"packages": shown}
        binds = [Bind(str(root), "/opt/atoll", writable=True), Bind(str(archives), str(ARCHIVES))]
        await self._program("link", request, binds, Index())
        if not _has_shape(root / "env"):
            raise _failed(self._recipe.key, "the packages make no environment", "is `python` of these channels whole?")
        (root / "env").rename(self._place / "env")
        for directory in (root, archives):
            await asyncio.to_thread(remove_tree, directory)

    def _show_archives(self, archives: Path, packages: Sequence[Mapping[str, Any]]) -> None:
        """Let the link step see these archives and no others of the cache."""
        cached = self._cache / "archives"
        for one in packages:
            digest, file = str(one["sha256"]), str(one["file"])
            if re.fullmatch(r"[0-9a-f]{64}", digest) is None or "/" in file or file in ("", ".", ".."):
                raise _failed(self._recipe.key, f"a package has the name `{file}`", "use another channel")
            make_directory(archives / digest, exist_ok=True)
            os.link(cached / digest / file, archives / digest / file, follow_symlinks=False)

    async def finish(self) -> _Facts:
        """Compile bytecode with the environment's own Python; return its version and pip packages."""
        done = await self._recipe.workshop.run(
            [PYTHON, "-I", "-S", "-c", _FINISH],
            binds=[Bind(str(self._place), "/opt/atoll", writable=True)],
            reaches=(),
        )
        said = _result(done.output, RESULT)
        try:
            version, on_top = str(said["version"]), tuple(str(line)[:200] for line in said["on_top"])
        except (TypeError, KeyError) as error:
            raise _failed(
                self._recipe.key,
                "its Python does not run here",
                "is it made for this machine?",
                self._clean.text(done.output),
            ) from error
        if re.fullmatch(r"\d+\.\d+\.\d+", version) is None or not f"{version}.".startswith(f"{self._recipe.python}."):
            raise _failed(self._recipe.key, f"its Python is `{version[:20]}`", f"`{self._recipe.python}` is needed")
        plain = re.compile(r"[A-Za-z0-9._+!=-]+")
        return _Facts(version, tuple(line for line in on_top if plain.fullmatch(line)))

    async def _program(self, action: str, request: Mapping[str, Any], binds: Sequence[Bind], index: Index) -> Any:
        """Run one action of the program, which reaches the network as `index` says; return its result."""
        directory = self._place / action
        directory.mkdir(mode=0o700)
        (directory / "request.json").write_text(json.dumps(request), "utf-8")
        variables = {name: value for name, value in index.variables.items() if "proxy" in name.lower()}
        if index.certificates:
            (directory / "certificates.pem").write_text(index.certificates, "utf-8")
            variables["SSL_CERT_FILE"] = f"{_REQUEST}/certificates.pem"
        self._recipe.workshop.own_tree(directory)
        python = await probe(getattr(sys, "_base_executable", None) or sys.executable)
        command = [python.executable, "-I", "-S", f"{_PROGRAM}/program.py", action, f"{_REQUEST}/request.json"]
        done = await self._recipe.workshop.run(
            command,
            binds=[*python.binds, *binds, Bind(str(directory), _REQUEST), *_rattler()],
            environment={**VARIABLES, **variables},
            on_line=self._pass_on,
            reaches=() if action == "link" else None,
        )
        await asyncio.to_thread(remove_tree, directory)
        if done.status != 0:
            text = conda_packages.cleaned(self._clean.text(done.output))
            failure = _result(done.output, FAILED) or {}
            kind, message = (
                str(failure.get("kind", "")),
                conda_packages.cleaned(self._clean.text(str(failure.get("message", "")))),
            )
            raise diagnosis.explain_conda(self._recipe.key, done.status, text, kind=kind, message=message)
        return _result(done.output, RESULT)

    def _pass_on(self, line: str) -> None:
        if not line.startswith((RESULT, FAILED)):
            self._clean(line)


def inner_python(version: str) -> Interpreter:
    """Return the Python that an environment has itself: nothing of the host need be shown for it."""
    return Interpreter(PYTHON, version, "cpython", "", "", os.path.dirname(os.path.dirname(PYTHON)), ())


def _local(recipe: CondaRecipe) -> list[Bind]:
    for path in recipe.found.local_channels:
        if not os.path.isdir(path):
            raise _failed(recipe.key, f"there is no channel at `{path}`", "check the path in `channels`")
    return [Bind(path, path) for path in recipe.found.local_channels]


def _rattler() -> list[Bind]:
    """Return the binds of rattler and its program.

    Raises:
        EnvironmentBuildError: it is not installed.
    """
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("rattler")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentBuildError(
            "environments of kind `conda` need the package `py-rattler`, which is not installed",
            hint="`pip install 'atoll[conda]'`, then `atoll stop`",
        )
    package = os.path.realpath(spec.submodule_search_locations[0])
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "conda_program.py")
    return [Bind(package, f"{_PROGRAM}/rattler"), Bind(program, f"{_PROGRAM}/program.py")]


def _result(output: str, mark: str) -> Any:
    for line in reversed(output.splitlines()):
        if line.startswith(mark):
            try:
                return json.loads(line.removeprefix(mark))
            except (ValueError, RecursionError):
                return None
    return None


def _has_shape(environment: Path) -> bool:
    """Return whether an environment may be moved and mounted: real directories with a Python in them."""
    try:
        directories = all(stat.S_ISDIR(path.lstat().st_mode) for path in (environment, environment / "bin"))
        return directories and os.path.lexists(environment / "bin" / "python")
    except OSError:
        return False


def _failed(key: str, message: str, what_next: str, log: str = "") -> EnvironmentBuildError:
    text = f"could not build environment `{key[:8]}`: {message}"
    return EnvironmentBuildError(text, hint=what_next, log=log[-diagnosis.LOG_CHARACTERS :])


async def clear_cache(workshop: Workshop, cache_lock: Path) -> None:
    """Remove cached repodata and archives, after the running builds have ended."""
    with await locks.wait_exclusive(cache_lock, lambda: None):
        for part in ("archives", "repodata"):
            await asyncio.to_thread(remove_tree, workshop.directory / "conda" / part)
    workshop.prepare()
