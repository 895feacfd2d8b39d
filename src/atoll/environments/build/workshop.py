"""The workshop, where environments are built: a directory of the builder's identity, and commands confined to it.

It shares a file system with the finished environments, so that moving one is a rename.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from atoll import process
from atoll.environments.asked.redaction import redact
from atoll.environments.built.records import make_directory
from atoll.model.mounts import Bind, Identity

VARIABLES: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "GIT_TERMINAL_PROMPT": "0",
}
"""Environment variables of every builder's command."""

CACHES = ("uv", "conda")
"""Caches of the ordinary way of fetching, one directory for each tool; see `caches`."""


class Confinement(Protocol):
    """Runs a command as the builder's identity in a sandbox: the system's libraries, `/tmp`, the network, the binds."""

    async def __call__(
        self,
        command: Sequence[str],
        *,
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        reaches: Sequence[str] | None = None,
    ) -> process.Completed:
        """Run the command; see `Workshop.run`."""


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Args:
        place: the directory that holds `env`; the caller moves that away.
        lock: the text of `requirements.lock`, without hashes that are only asked for later.
        python_version: as in `3.11.7`.
        interpreter: the base interpreter's path; for environments that have a Python of their own, the path inside.
    """

    place: Path
    lock: str
    python_version: str
    interpreter: str


class Workshop:
    """The builder's directory: the caches, and a place for each environment in work.

    Args:
        directory: `ATOLL_HOME/environments/.cache`.
        confinement: how commands run.
        identity: user and group of the commands, and owner of the files.
    """

    def __init__(self, directory: Path, confinement: Confinement, identity: Identity) -> None:
        self.directory = directory
        self._confinement = confinement
        self._identity = identity

    def place(self, name: str) -> Path:
        """Return the directory in which `name` is built; `env` in it is the environment."""
        return self.directory / "work" / name

    def make_place(self, name: str) -> Path:
        """Make the directory in which `name` is built, which must be absent."""
        place = self.place(name)
        make_directory(place)
        self.own(place)
        return place

    def prepare(self) -> None:
        """Make the directories."""
        for directory in (self.directory, self.directory / "work", *(self.directory / name for name in CACHES)):
            make_directory(directory, exist_ok=True)
            self.own(directory)  # also where another process has just made it

    def own(self, path: Path) -> None:
        """Give a file or directory to the builder's identity, where this process may."""
        if os.geteuid() == 0:
            os.chown(path, self._identity.uid, self._identity.gid, follow_symlinks=False)

    def own_tree(self, directory: Path) -> None:
        """Give a directory with all that is in it to the builder's identity."""
        for parent, inner, names in os.walk(directory):
            for name in (*inner, *names):
                self.own(Path(parent, name))
        self.own(directory)

    async def run(
        self,
        command: Sequence[str],
        *,
        binds: Sequence[Bind],
        environment: Mapping[str, str] = VARIABLES,
        on_line: Callable[[str], None] | None = None,
        reaches: Sequence[str] | None = None,
    ) -> process.Completed:
        """Run a command confined, with files readable for everyone.

        Args:
            reaches: texts with the addresses that it needs besides those in its environment, if code of packages runs
                in it; None if none runs.
        """
        return await self._confinement(
            ["/bin/sh", "-c", 'umask 022; exec "$@"', "sh", *command],
            binds=binds,
            environment=environment,
            on_line=on_line,
            reaches=reaches,
        )


class NotForEverybody(Exception):
    """An environment needs code of packages, or a place of its user's own, and so is that user's own."""


class Cleaner:
    """Passes lines on without the secrets in them."""

    def __init__(self, secrets: frozenset[str], log: Callable[[str], None]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._log = log

    def __call__(self, line: str) -> None:
        self._log(self.text(line))

    def text(self, text: str) -> str:
        """Return `text` without the secrets in it."""
        for secret in self._secrets:
            text = text.replace(secret, "****")
        return redact(text)


MAX_CHARACTERS = 10 << 20
MAX_LINES = 20_000


class BoundedLog:
    """Passes lines on up to a limit, then prints one notice.

    Args:
        to: takes the lines.
    """

    def __init__(self, to: Callable[[str], None]) -> None:
        self._to = to
        self._characters = 0
        self._lines = 0

    def __call__(self, line: str) -> None:
        if self._lines > MAX_LINES or self._characters > MAX_CHARACTERS:
            return
        self._lines += 1
        self._characters += len(line)
        if self._lines > MAX_LINES or self._characters > MAX_CHARACTERS:
            self._lines = MAX_LINES + 1
            self._to("The builder prints more than is kept; the rest is left out")
        else:
            self._to(line)


def open_log(path: Path) -> IO[str]:
    """Open a build's log anew, private to the owner."""
    return open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))
