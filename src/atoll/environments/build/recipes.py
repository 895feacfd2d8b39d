"""Recipes from specs: requirements read, index settings gathered, key computed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from atoll.environments.asked import credentials, index, key, local_sources, operator_index, reading, requirements
from atoll.environments.asked.certificates import Certificates
from atoll.environments.asked.index import Index
from atoll.environments.asked.operator_index import NO_INDEX, OperatorIndex
from atoll.environments.asked.redaction import redact
from atoll.environments.asked.requirements import Requirements
from atoll.environments.build import lockfile
from atoll.environments.build.caches import Caches
from atoll.environments.build.python_downloads import Pythons
from atoll.environments.build.virtualenv import Builder, Request, VirtualenvRecipe
from atoll.environments.build.workshop import Built, NotForEverybody, Workshop
from atoll.environments.built import interpreter
from atoll.environments.built.directory import Shelf
from atoll.environments.built.records import Environment
from atoll.errors import EnvironmentBuildError
from atoll.model.specs import EnvironmentSpec, digest

if TYPE_CHECKING:
    from atoll.environments.asked.conda_packages import CondaRequirements
    from atoll.environments.build.conda import CondaRecipe

_VIRTUAL = {"CONDA_OVERRIDE_CUDA": "cuda", "CONDA_OVERRIDE_GLIBC": "libc", "CONDA_OVERRIDE_ARCHSPEC": "archspec"}
"""The caller's variables that override the machine's abilities, with rattler's names for them."""


Log = Callable[[str], None]


@dataclass(frozen=True)
class KeptFor:
    """Whose environments a store keeps.

    Args:
        user: one user of a server, in whose keys this id is; empty for the machine's owner.
        everybody: all users of a server: wheels of the default index alone, and no code of packages runs.
        operator: returns the index of users who name none.
    """

    user: str = ""
    everybody: bool = False
    operator: Callable[[], OperatorIndex] = field(default=lambda: NO_INDEX, compare=False)


OWNER = KeptFor()


class Recipe(Protocol):
    """An environment as it was asked for: its key, and how to make it.

    Recipes of equal keys give the same environment.
    """

    @property
    def key(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def shown(self) -> tuple[str, ...]:
        """Its requirements for messages, without credentials; empty for an empty environment."""

    @property
    def python(self) -> str:
        """The requested or known Python, for messages."""

    @property
    def volatile(self) -> bool:
        """Return whether the key may change at any moment: local paths are keyed by their content."""

    @property
    def hint(self) -> str:
        """An addition to the hint of a failed build."""

    def renewed(self) -> Recipe:
        """Return the recipe of the newest versions, free from those that were locked."""

    async def build(self, name: str, log: Log) -> Built:
        """Build into the workshop's place for `name`, which must be empty or absent.

        Raises:
            EnvironmentBuildError: it cannot be built as asked.
            DiskFull: there is no space for it.
        """

    async def hashed(self, name: str, text: str, log: Log) -> str:
        """Return the lock `text` of the built environment with all the hashes that can be had.

        Args:
            name: whose place in the workshop may be used.
        """

    def environment(self, directory: Path) -> Environment:
        """Return the complete environment in `directory`."""


class Recipes:
    """Makes the recipes of one machine's environments.

    Args:
        workshop: where they are built.
        shelf: where they are kept, and with them the versions that were locked.
    """

    def __init__(self, workshop: Workshop, shelf: Shelf, kept_for: KeptFor = OWNER) -> None:
        self._kept_for = kept_for
        self._workshop = workshop
        self._shelf = shelf
        self.certificates = Certificates()
        """Those that requests name."""
        self._caches = Caches(workshop, shelf.lock_path)
        self._builder = Builder(workshop, self._caches)
        self._pythons = Pythons(workshop, shelf.lock_path("pythons"), shelf.keyed)

    async def read(self, spec: EnvironmentSpec, log: Log = lambda _line: None, *, nested: bool = False) -> Recipe:
        """Return the recipe of a spec, with its locked versions.

        Args:
            log: called with lines about progress, if that takes time.
            nested: a function asks; its builds must not run code beside credentials of its program.

        Raises:
            EnvironmentBuildError: the spec cannot be read, or no Python fits.
        """
        if spec.kind == "conda":
            if self._kept_for.everybody:  # link scripts are code of packages
                raise NotForEverybody("a conda environment is its user's own")
            return await self._conda(spec, nested)
        if spec.kind != "virtualenv":
            raise EnvironmentBuildError(f"environments of kind `{spec.kind}` cannot be built here")
        parsed = requirements.parse(spec.requirements)
        if self._kept_for.everybody and not _for_everybody(spec, parsed):
            raise NotForEverybody("an environment with packages of other places is its user's own")
        python = await self._pythons.find(spec, log, nested=nested)
        contents, sources = await _contents(parsed), await self._index(dict(spec.index), parsed)
        found = self._named(key.key(spec.kind, parsed, python, index=sources.facts, contents=contents))
        pins = "" if parsed.empty else await self._shelf.pins.read(found)
        constraints = (*parsed.constraints, *lockfile.constraints(pins))
        request = Request(found, parsed, python, sources, constraints, **_rights(spec, nested))
        if self._kept_for.everybody:
            request = replace(request, for_everybody=True)
        return VirtualenvRecipe(self._builder, request)

    async def _conda(self, spec: EnvironmentSpec, nested: bool) -> CondaRecipe:
        from atoll.environments.asked import conda_packages  # with `conda`, 9 ms of the daemon's start
        from atoll.environments.build import conda  # as above

        wanted = read_conda(spec)
        sent = {name: text for name, text in spec.index if not wanted.pip.empty or _reaches(name)}
        own = [text for text in (*wanted.packages, *wanted.channels) if conda_packages.cleaned(text) != text]
        contents, sources = await _contents(wanted.pip), await self._index(sent, wanted.pip, own)
        if wanted.local_channels:  # a channel of the network could name the digests of their archives
            local = digest({"cache": sources.cache, "channels": sorted(wanted.local_channels)})
            sources = replace(sources, cache=local)
        caller = await interpreter.probe(spec.interpreter or os.path.realpath(sys.executable))
        python = _python(spec.python_version, caller.version)
        virtual = tuple(sorted(_virtual(spec).items()))
        found = conda_packages.key_of(
            conda_packages.facts(
                wanted,
                python=python,
                platform=caller.platform,
                virtual=dict(virtual),
                pip_facts=key.pip_facts(wanted.pip, index=sources.facts, contents=contents),
                fetch=sources.fetch,
            )
        )
        found = self._named(found)
        pinned, on_top = conda_packages.pinned(await self._shelf.pins.read(found))
        inner = conda.inner_python(python)
        request = Request(
            found, wanted.pip, inner, sources, (*wanted.pip.constraints, *on_top), **_rights(spec, nested)
        )
        offline = dict(spec.index).get("UV_OFFLINE", "").lower() in ("1", "true", "yes")
        cache_lock = self._shelf.lock_path("conda-cache")
        return conda.CondaRecipe(
            found,
            self._workshop,
            self._caches,
            cache_lock,
            wanted,
            python,
            virtual,
            request,
            pinned=pinned,
            offline=offline,
        )

    def _named(self, found: str) -> str:
        """Return a key that no other store gives: keys name environments of all stores in the engine."""
        if self._kept_for == OWNER:
            return found
        return digest({"key": found, "user": self._kept_for.user, "everybody": self._kept_for.everybody})

    async def _index(self, sent: dict[str, str], parsed: Requirements, also: Iterable[str] = ()) -> Index:
        operator = NO_INDEX if parsed.empty else self._kept_for.operator()
        read = partial(index.read, sent, parsed, self._shelf.keyed, self.certificates.text, also, operator)
        if operator == NO_INDEX:
            return read()
        absent = await asyncio.to_thread(operator_index.missing, operator)  # on a file server, perhaps
        if absent:  # uv would take the packages from the next index
            raise EnvironmentBuildError(f"the operator's index `{absent}` is not there", hint="ask the operator")
        return await asyncio.to_thread(read)

    def prepare(self) -> None:
        """Make the directories of packages that are kept for further builds."""
        self._caches.prepare()
        self._workshop.prepare()

    async def collect(self) -> None:
        """Remove packages that are kept for further builds and that nobody has asked for in a while."""
        await self._caches.collect()

    def cache_directories(self) -> tuple[Path, ...]:
        """Return the directories that `clear_caches` empties."""
        above = self._workshop.directory
        return (above / "uv", above / "conda" / "archives", above / "conda" / "repodata", above / "fetched")

    async def clear_caches(self) -> None:
        """Remove the packages that are kept for further builds, of every kind."""
        from atoll.environments.build import conda  # as in `_conda`

        await self._builder.clear_cache()
        await self._caches.clear()
        await conda.clear_cache(self._workshop, self._shelf.lock_path("conda-cache"))


def _for_everybody(spec: EnvironmentSpec, parsed: Requirements) -> bool:
    """Return whether an environment may be shared by users who distrust one another, if wheels will do.

    Nothing of the request may decide where packages come from, or by which way.
    """
    if parsed.paths or parsed.may_need_building or parsed.names_addresses:
        return False
    return all(name in _CHOOSING or not text for name, text in spec.index)


_CHOOSING = frozenset(
    {"UV_EXCLUDE_NEWER", "UV_PRERELEASE", "UV_INDEX_STRATEGY", "UV_HTTP_TIMEOUT", credentials.LOCAL, *_VIRTUAL}
)
"""Settings that choose among the packages of the default index, or say nothing of packages."""


def read_conda(spec: EnvironmentSpec) -> CondaRequirements:
    """Return the requirements of a spec of kind `conda`.

    Raises:
        EnvironmentBuildError: an entry cannot be read.
    """
    from atoll.environments.asked import conda_packages  # as in `_conda`

    here, wanted = reading.known(), (spec.packages, spec.channels, spec.pip)
    if wanted not in here:
        here[wanted] = conda_packages.parse(
            reading.in_steps(spec.packages), spec.channels, requirements.parse(spec.pip)
        )
    found: CondaRequirements = here[wanted]
    return found


def refuse_host_paths(spec: EnvironmentSpec) -> None:
    """Refuse local paths and everything but packages and addresses of the network.

    Raises:
        EnvironmentBuildError: an entry is something else; the message names it.
    """
    if spec.kind == "conda":
        from atoll.environments.asked import conda_packages  # as in `_conda`

        wanted = read_conda(spec)
        conda_packages.refuse_host_paths(wanted)
        requirements.refuse_host_paths(wanted.pip)
    else:
        requirements.refuse_host_paths(requirements.parse(spec.requirements))


def names_addresses(spec: EnvironmentSpec) -> bool:
    """Return whether a spec itself names an address, of a package, an index or a channel."""
    if spec.kind == "conda":
        wanted = read_conda(spec)
        return wanted.pip.names_addresses or any("://" in name for name in (*spec.packages, *spec.channels))
    return requirements.parse(spec.requirements).names_addresses


async def _contents(parsed: Requirements) -> dict[str, str]:
    return {path.location: await asyncio.to_thread(local_sources.digest_of, path) for path in parsed.paths}


def _rights(spec: EnvironmentSpec, nested: bool) -> dict[str, bool]:
    """Return what a request may do, as arguments of `Request`.

    A function could read its program's credentials while code of packages runs. The credentials that are its own, in
    the addresses that it names, could make caches without end.
    """
    if not nested:
        return {}
    names = (*spec.requirements, *spec.packages, *spec.channels, *spec.pip)
    return {
        "runs_code": credentials.without_credentials(spec.index) == spec.index,
        "keeps_cache": not any(redact(name) != name or "/t/" in name for name in names),
    }


def _reaches(name: str) -> bool:
    """Return whether a setting counts for conda's packages, too."""
    return "proxy" in name.lower() or name in ("certificates", "UV_OFFLINE", credentials.WITHHELD)


def _python(wanted: str, callers: str) -> str:
    """Return the solver's Python version: the caller's minor version if it fits."""
    wanted = wanted.strip()
    if re.fullmatch(r"\d+\.\d+(\.\d+)?", wanted):
        return wanted
    if interpreter.fits(callers, wanted):
        return ".".join(callers.split(".")[:2])
    if wanted.isdecimal():
        return wanted
    raise EnvironmentBuildError(f"`{wanted}` is not a version of Python", hint='write it as in `python_version="3.11"`')


def _virtual(spec: EnvironmentSpec) -> dict[str, str]:
    found = {}
    for name, value in spec.index:
        if name in _VIRTUAL:
            if re.fullmatch(r"[A-Za-z0-9._-]{1,50}", value) is None:
                raise EnvironmentBuildError(f"`{name}` has the value `{value[:50]}`", hint="give a version")
            found[_VIRTUAL[name]] = value
    return found
