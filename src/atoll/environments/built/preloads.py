"""The modules that workers of an environment have imported before their first call: `preload.json`.

The file lies beside `record.json` and is a hint: where it is missing or damaged, the next calls make it anew. Trusted
sandboxes and others have a part each, since an import runs code that the sandbox's functions need not have named.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SHARED, USERS = "shared", "users"
"""Directories beside the owner's environments: those that a server's users share, and each user's own."""

MOST_MODULES = 2000
_FILES = {True: "preload.json", False: "preload-data.json"}
"""By trust. A file that does not say `trusted` was learned from functions of both kinds, and counts for neither."""


@dataclass(frozen=True)
class Preloads:
    """What an environment has preloaded.

    Args:
        modules: to be imported ahead.
        implied: modules that calls have imported and that the import of `modules` brings.
        refused: modules that cannot be imported ahead, each with the reason.
    """

    modules: tuple[str, ...] = ()
    implied: frozenset[str] = frozenset()
    refused: tuple[tuple[str, str], ...] = ()

    def with_imported(self, names: Iterable[str]) -> Preloads:
        """Return these and what calls have imported since; equal where nothing of it is new."""
        known = {*self.modules, *self.implied, *dict(self.refused)}
        new = [name for name in dict.fromkeys(names) if name not in known]
        return replace(self, modules=(*self.modules, *new[: max(0, MOST_MODULES - len(known))]))

    def with_outcome(self, asked: Iterable[str], needed: Iterable[str], refused: Mapping[str, str]) -> Preloads:
        """Return these after a preloader has imported `asked`, of which `needed` bring the others."""
        reasons = dict(self.refused)
        for name, reason in refused.items():
            if name in reasons or len(reasons) < MOST_MODULES:  # functions may name any
                reasons[name] = reason
        kept = {name for name in needed if name not in reasons}
        done = set(asked) - kept
        modules = tuple(name for name in self.modules if name not in done and name not in reasons)
        return Preloads(modules, (self.implied | done) - reasons.keys(), tuple(sorted(reasons.items())))

    def to_data(self) -> dict[str, Any]:
        return {"modules": list(self.modules), "implied": sorted(self.implied), "refused": dict(self.refused)}


def place_of(directory: Path, user: str) -> Path:
    """Return where a user's file is for the environment in `directory`: nobody decides what others import ahead."""
    if directory.parent.name != SHARED:
        return directory
    place = directory.parent.with_name(USERS) / user / "preloads" / directory.name
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def read(directory: Path, *, trusted: bool) -> Preloads:
    """Return the modules that sandboxes of this trust preload, for the environment in `directory`."""
    try:
        data = json.loads((directory / _FILES[trusted]).read_text("utf-8"))
        if data["trusted"] is not trusted:
            return Preloads()
        refused = {str(name): str(reason) for name, reason in data["refused"].items()}
        implied = frozenset(map(str, data["implied"]))
        return Preloads(tuple(map(str, data["modules"])), implied, tuple(sorted(refused.items())))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Preloads()


def write(directory: Path, found: Preloads, *, trusted: bool) -> None:
    """Keep it; where it cannot be written, the next daemon learns it anew."""
    temporary = directory / f"preload.json.{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps({**found.to_data(), "trusted": trusted}, indent=1), "utf-8")
        temporary.rename(directory / _FILES[trusted])
