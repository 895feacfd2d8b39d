"""Recipes: the store's view of a requested environment of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll.environments.built.records import Environment

Log = Callable[[str], None]


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
